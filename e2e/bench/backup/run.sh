#!/usr/bin/env bash
# run.sh BENCH-BACKUP PGHERD ARGUMENT... : runs the backup benchmark in namespaces of its own (processes, mounts, network),
# so that nothing of it outlives it, however it ends: not a server, not a mount, not a port. Its folder and its control
# groups go when it has ended.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"
BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=$(cd "$HERE/../.." && pwd)/target/bench

# Inside the namespaces, as their first process.
inside() {
  ip link set lo up
  mount --bind "$BIN" "$ROOT/opt/bin"
  mount --bind "$BENCH/peers" "$ROOT/opt/peers"
  mount --bind "$WORK" "$ROOT/work"
  mount -t proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount -t tmpfs tmpfs "$ROOT/tmp"
  mount -t tmpfs tmpfs "$ROOT/run"
  chmod 1777 "$ROOT/tmp" "$ROOT/run"
  exec "$WORK/bin/bench-backup" run --root "$ROOT" --groups "$GROUPS_DIR" --out "$OUT" --pgherd "$PGHERD" "$@"
}

random() { head -c "$1" /dev/urandom | od -An -tx1 | tr -d ' \n'; }

# A private CA and MinIO's certificate.
certificates() {
  (
    cd "$WORK/tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=bench-ca -keyout ca.key -out ca.crt
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout private.key -out tls.csr
    openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out public.crt \
      -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n')
  ) 2>"$WORK/log/openssl.log" || die "making MinIO's certificate failed: $(cat "$WORK/log/openssl.log")"
}

# Every tool reads the same random credentials from the file that it knows.
configure() {
  local user secret
  user=$(random 8)
  secret=$(random 20)
  printf %s "$user" >"$WORK/keys/accessKeyId"
  printf %s "$secret" >"$WORK/keys/secretAccessKey"
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$user" "$secret" >"$WORK/keys/aws"
  cp "$WORK/tls/ca.crt" "$WORK/mc/certs/CAs/"
  cat >"$WORK/mc/config.json" <<END
{"version": "10", "aliases": {"store": {"url": "https://localhost:9000", "accessKey": "$user", "secretKey": "$secret",
 "api": "s3v4", "path": "on"}}}
END
  local name
  for name in pgherd pgherd-local; do
    cat >"$WORK/keys/$name.json" <<END
{"store": {"endpoint": "https://localhost:9000", "bucket": "backups", "prefix": "$name", "pathStyle": true,
 "credentialsDir": "/work/keys", "caFile": "/work/tls/ca.crt"}, "cluster": "bench", "systemId": "", "backupId": ""}
END
  done
  cat >"$WORK/keys/pgbackrest.conf" <<END
[global]
repo1-type=s3
repo1-path=/pgbackrest
repo1-s3-bucket=backups
repo1-s3-endpoint=localhost
repo1-storage-port=9000
repo1-storage-ca-file=/work/tls/ca.crt
repo1-s3-uri-style=path
repo1-s3-region=us-east-1
repo1-s3-key=$user
repo1-s3-key-secret=$secret
repo1-bundle=y
repo1-retention-full=9
compress-type=zst
compress-level=1
process-max=2
start-fast=y
log-level-console=warn
log-level-file=off
lock-path=/work/lock
spool-path=/work/spool

[bench]
pg1-path=/work/data
pg1-socket-path=/work/run
pg1-user=postgres
END
  printf 'export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n' "$user" "$secret" >"$WORK/keys/env"
}

prepare() {
  mkdir -p "$WORK"/{bin,home,keys,lock,log,mc/certs/CAs,run,spool,store,tls}
  install -m 0755 "$1" "$WORK/bin/bench-backup"
  # As e2e/images/pgherd/build.sh packs it.
  strip --strip-debug -o "$WORK/bin/pgherd" "$2"
  certificates
  configure
  chown -R 999:999 "$WORK"
  chmod -R go= "$WORK/keys" "$WORK/tls" "$WORK/mc"
}

# All processes of the namespaces die with their first one; the control groups are empty soon after.
clean_up() {
  local group
  kill -KILL "$INSIDE" 2>/dev/null || true
  wait "$INSIDE" 2>/dev/null || true
  if [ -d "$GROUPS_DIR" ]; then
    for group in "$GROUPS_DIR"/*/; do
      if [ -d "$group" ]; then until_ok 60 "the end of what runs in $group" rmdir "$group"; fi
    done
    rmdir "$GROUPS_DIR"
  fi
  rm -rf "$WORK"
}

main() {
  local program=$1 pgherd=$2 rc=0
  shift 2
  need_root
  ROOT=$("$BENCH/setup.sh")
  [ -x "$program" ] && [ -x "$pgherd" ] || die "no $program or no $pgherd: run \`make build\` first"
  WORK=$(mktemp -d "${PGHERD_BENCH_DIR:-$CACHE/bench}/work.XXXXXX")
  GROUPS_DIR=/sys/fs/cgroup
  if [ ! -e "$GROUPS_DIR/cgroup.controllers" ]; then GROUPS_DIR=/sys/fs/cgroup/cpuacct; fi
  GROUPS_DIR=$GROUPS_DIR/pgherd-bench-${WORK##*.}
  INSIDE=
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  mkdir "$GROUPS_DIR"
  prepare "$program" "$pgherd"
  mkdir -p "$OUT"
  PGHERD=$pgherd
  export ROOT WORK GROUPS_DIR PGHERD
  unshare --mount --net --pid --fork --kill-child --mount-proc "${BASH_SOURCE[0]}" --inside "$@" &
  INSIDE=$!
  wait "$INSIDE" || rc=$?
  return "$rc"
}

if [ "${1:-}" = --inside ]; then
  shift
  inside "$@"
else
  main "$@"
fi
