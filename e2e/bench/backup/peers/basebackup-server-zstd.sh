# shellcheck shell=bash
# The server compresses. pg_basebackup cannot put its manifest into an archive that is compressed already.
version() { pg_basebackup --version; }
backup() {
  pg_basebackup -Ft --compress=server-zstd:level=1,workers=2 -X fetch -c fast --no-manifest -D - ${RATE:+--max-rate="${RATE}k"} |
    mc pipe --quiet store/backups/basebackup-server-zstd/base.tar.zst
}
restore() {
  mkdir -m 0700 "$RESTORED"
  mc cat --quiet store/backups/basebackup-server-zstd/base.tar.zst | zstd -dc | tar -x -f - -C "$RESTORED"
}
