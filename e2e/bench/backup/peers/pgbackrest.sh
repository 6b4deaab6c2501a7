# shellcheck shell=bash
# pgBackRest: reads the data directory with two processes; zstd 1, small files in bundles. It cannot be held to a rate.
pgbackrest() { command pgbackrest --config=/work/keys/pgbackrest.conf --stanza=bench "$@"; }
version() { command pgbackrest version; }
prepare() { pgbackrest stanza-create; }
backup() { pgbackrest --type=full backup; }
restore() {
  mkdir -m 0700 "$RESTORED"
  pgbackrest --pg1-path="$RESTORED" restore
}
archive_command() { echo 'pgbackrest --config=/work/keys/pgbackrest.conf --stanza=bench archive-push %p'; }
archive_command_ahead() { echo 'pgbackrest --config=/work/keys/pgbackrest.conf --stanza=bench --archive-async archive-push %p'; }
