#!/usr/bin/env bash
# setup.sh : the programs that the backup benchmark compares, once, into $PGHERD_CACHE/bench. Prints the folder of their
# root file system on standard output; all else goes to standard error.
#   PostgreSQL 17, pgBackRest and barman-cloud: Debian packages, in one root file system, so that all use the same libraries
#   MinIO and mc: as the local cluster has them (e2e/cluster/build.sh)
#   WAL-RUS: from crates.io; where it can't be built, absent/wal-rus says why, and the benchmark says so too
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"

SUITE=trixie
MIRROR=${PGHERD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
# barman compresses by this library; Debian 13's own package of it crashes (0.5.3, Python 3.13).
SNAPPY=(python-snappy==0.7.3 cramjam==2.14.0)
WAL_RUS_VERSION=0.4.1
# It compiles in some minutes of two cores; a machine that takes far longer goes without.
WAL_RUS_MINUTES=30

# As e2e/images/postgres/build.sh makes the image, and its peers beside it.
root_file_system() {
  mmdebstrap --mode=root --variant=essential --format=directory \
    --include=postgresql-17,postgresql-client-17,ca-certificates,tzdata,zstd,pgbackrest,barman-cli-cloud,python3-pip \
    --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/lib/*/libLLVM*' \
    --dpkgopt='path-exclude=/usr/lib/llvm-*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/llvmjit*' \
    --dpkgopt='path-exclude=/usr/lib/postgresql/*/lib/bitcode/*' \
    --essential-hook='echo "postgres:x:999:" >>"$1/etc/group"' \
    --essential-hook='echo "postgres:x:999:999::/var/lib/postgresql:/bin/bash" >>"$1/etc/passwd"' \
    --essential-hook='echo "postgres:!::0:::::" >>"$1/etc/shadow"' \
    --essential-hook='mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"' \
    --customize-hook='rm -rf "$1"/var/cache/* "$1"/var/lib/apt/lists/*' \
    --customize-hook='echo "127.0.0.1 localhost" >"$1/etc/hosts"' \
    --customize-hook='mkdir -p "$1/work" "$1/opt/bin" "$1/opt/peers"' \
    "$SUITE" "$1" "$MIRROR"
}

# With the certificates that this machine trusts.
python_snappy() {
  cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"
  chroot "$1" env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    pip install --no-cache-dir --root-user-action=ignore --break-system-packages "${SNAPPY[@]}"
}

HASH=$({ declare -f root_file_system python_snappy; echo "$SUITE $MIRROR ${SNAPPY[*]}"; } | sha256sum | cut -c1-12)
ROOT=$CACHE/bench/root-$HASH

# Not in this checkout: its configuration of cargo makes static programs of our own. Where a mirror lacks a version that it
# is locked to, with the newest that there is.
wal_rus() {
  cd /
  timeout "$((WAL_RUS_MINUTES * 60))" cargo install --locked --root "$1" "wal-rus@$WAL_RUS_VERSION" ||
    timeout "$((WAL_RUS_MINUTES * 60))" cargo install --root "$1" "wal-rus@$WAL_RUS_VERSION"
}

# A failure is an answer: the benchmark goes without, and says why.
try_wal_rus() {
  local out=$CACHE/bench/wal-rus-$WAL_RUS_VERSION log=$CACHE/log/wal-rus.log
  rm -f "$ROOT/absent/wal-rus"
  if [ ! -x "$out/bin/walrus" ] && ! (with_heartbeat "WAL-RUS $WAL_RUS_VERSION" "$log" wal_rus "$out") >&2; then
    grep -m 1 '^error' "$log" >"$ROOT/absent/wal-rus" || echo "see $log" >"$ROOT/absent/wal-rus"
    return 0
  fi
  install -m 0755 "$out/bin/walrus" "$ROOT/usr/local/bin/walrus"
}

main() {
  need_root
  "$HERE/build.sh" --tools-only >&2
  mkdir -p "$CACHE/bench" "$CACHE/log"
  exec 9>"$CACHE/bench/setup.lock"
  flock 9
  if [ ! -e "$ROOT" ]; then
    rm -rf "$CACHE"/bench/root-*
    with_heartbeat "root file system with PostgreSQL 17, pgBackRest and barman-cloud" "$CACHE/log/bench-root.log" \
      root_file_system "$ROOT.tmp" >&2
    with_heartbeat "python-snappy" "$CACHE/log/bench-snappy.log" python_snappy "$ROOT.tmp" >&2
    mkdir -p "$ROOT.tmp/absent"
    mv "$ROOT.tmp" "$ROOT"
  fi
  if [ "${PGHERD_BENCH_WAL_RUS:-yes}" = yes ]; then
    try_wal_rus
  else
    rm -f "$ROOT/usr/local/bin/walrus"
    echo "left out by PGHERD_BENCH_WAL_RUS=$PGHERD_BENCH_WAL_RUS" >"$ROOT/absent/wal-rus"
  fi
  echo "$ROOT"
}

main
