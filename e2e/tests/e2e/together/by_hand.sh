# What docs/backup-by-hand.md says, with BACKUP and WAL set to folders in the store and `mc` able to reach it.
mkdir -m 0700 /work/pgdata
cd /work/pgdata
for name in $(mc ls "$BACKUP/" | awk '{print $NF}' | grep '^base[.]tar[.]zst' | sort); do mc cat "$BACKUP/$name"; done |
  zstd -dc | tar xf -
mc cat "$BACKUP/backup_manifest" >backup_manifest
pg_verifybackup --no-parse-wal .

cat >postgresql.conf <<'CONF'
port = 5433
unix_socket_directories = '/tmp'
restore_command = 'bash /work/fetch-wal %f %p'
CONF
# What recovery insists on is at least what the primary had.
pg_controldata . | sed -n 's/^\(max_[a-z_]*\) setting: *\([0-9]*\)$/\1 = \2/p' |
  sed 's/max_prepared_xacts/max_prepared_transactions/; s/max_locks_per_xact/max_locks_per_transaction/' >>postgresql.conf
echo 'local all all trust' >pg_hba.conf
: >pg_ident.conf
rm -f postgresql.auto.conf standby.signal
touch recovery.signal

{
  declare -f mc
  echo "WAL=$WAL"
  cat <<'FETCH'
set -euo pipefail
case $1 in
  *.history) mc cat "$WAL/$1" >"$2" ;;
  *) mc cat "$WAL/${1:0:8}/${1:8:8}/$1.zst" | zstd -dcq >"$2" ;;
esac
FETCH
} >/work/fetch-wal

pg_ctl -D . -w -t 120 -l /work/log start >/dev/null || {
  cat /work/log >&2
  exit 1
}
for _ in $(seq 120); do
  [ "$(psql -h /tmp -p 5433 -U postgres -d postgres -XAtqc 'SELECT pg_is_in_recovery()')" = f ] && exit 0
  sleep 0.5
done
cat /work/log >&2
exit 1
