# shellcheck shell=bash
# The pipe that many have: one thread of gzip in pg_basebackup.
version() { pg_basebackup --version; }
backup() {
  pg_basebackup -Ft -z -X fetch -c fast -D - ${RATE:+--max-rate="${RATE}k"} | mc pipe --quiet store/backups/basebackup-gzip/base.tar.gz
}
restore() {
  mkdir -m 0700 "$RESTORED"
  mc cat --quiet store/backups/basebackup-gzip/base.tar.gz | gzip -dc | tar -x -f - -C "$RESTORED"
}
