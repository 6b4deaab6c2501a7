# shellcheck shell=bash
# The best pipe of standard tools: zstd with two threads beside pg_basebackup.
version() { zstd --version; }
backup() {
  pg_basebackup -Ft -X fetch -c fast -D - ${RATE:+--max-rate="${RATE}k"} | zstd -q -1 -T2 |
    mc pipe --quiet store/backups/basebackup-zstd/base.tar.zst
}
restore() {
  mkdir -m 0700 "$RESTORED"
  mc cat --quiet store/backups/basebackup-zstd/base.tar.zst | zstd -dc | tar -x -f - -C "$RESTORED"
}
