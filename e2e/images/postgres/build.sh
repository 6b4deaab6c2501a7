#!/usr/bin/env bash
# build.sh [MAJOR] : a PostgreSQL image from Debian packages, as much like the
# official `postgres` image as matters here: binaries in
# /usr/lib/postgresql/MAJOR/bin and on PATH, user postgres with uid 999, zstd,
# no entry point that does anything by itself.
# Writes $PGHERD_CACHE/images/postgres-MAJOR.tar, localhost/pgherd-postgres:MAJOR.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"
. "$HERE/image-lib.sh"

MAJOR=${1:-17}
APT_OPTIONS=()
case $MAJOR in
  15) SUITE=bookworm ;;
  17) SUITE=trixie ;;
  18)
    SUITE=forky
    # Testing's release file expires within a week; a mirror may lag behind.
    APT_OPTIONS+=(--aptopt='Acquire::Check-Valid-Until "false"')
    ;;
  *) die "which Debian has PostgreSQL $MAJOR? 15, 17 and 18 are known here" ;;
esac
OUT=$IMAGES/postgres-$MAJOR.tar
MIRROR=${PGHERD_DEBIAN_MIRROR:-http://deb.debian.org/debian}

root_file_system() {
  local bin=/usr/lib/postgresql/$MAJOR/bin
  # - The user comes first, so that the packages take its fixed uid (the
  #   official image's) instead of making one.
  # - create_main_cluster=false: an image holds programs, not a database.
  # - The manual pages go last, since the packages insist on them when set up.
  # - Without LLVM the image is half the size; PostgreSQL goes without JIT then.
  mmdebstrap --mode=root --variant=essential --format=tar "${APT_OPTIONS[@]}" \
    --include="postgresql-$MAJOR,postgresql-client-$MAJOR,ca-certificates,tzdata,zstd" \
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
    --customize-hook='rm -rf "$1"/etc/postgresql/*/main "$1"/var/lib/postgresql/*' \
    --customize-hook='rm -rf "$1"/var/cache/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1"/usr/share/postgresql/*/man/man*/* "$1"/usr/share/zoneinfo/right "$1"/etc/hostname "$1"/etc/resolv.conf' \
    --customize-hook='mkdir -p "$1/var/lib/postgresql/data" && chroot "$1" chown -R postgres:postgres /var/lib/postgresql /run/postgresql && chmod 3777 "$1/run/postgresql"' \
    --customize-hook="chroot \"\$1\" su postgres -c '$bin/postgres --version'" \
    "$SUITE" "$1" "$MIRROR"
}

postgres_image() {
  with_heartbeat "PostgreSQL $MAJOR image: root file system from Debian $SUITE" \
    "$CACHE/log/postgres-$MAJOR.log" root_file_system "$TMP/root.tar"
  docker_archive "$OUT" "localhost/pgherd-postgres:$MAJOR" "{
    \"User\": \"999:999\", \"WorkingDir\": \"/\", \"Cmd\": [\"postgres\"], \"StopSignal\": \"SIGINT\",
    \"Env\": [\"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/$MAJOR/bin\",
              \"LANG=C.UTF-8\", \"PG_MAJOR=$MAJOR\", \"PGDATA=/var/lib/postgresql/data\"]}" "$TMP/root.tar"
  log "wrote $OUT ($(du -h "$OUT" | cut -f1))"
}

main() {
  need_root
  mkdir -p "$IMAGES" "$CACHE/log"
  TMP=$(mktemp -d "$IMAGES/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  build_once "$OUT" "${BASH_SOURCE[0]}" "$HERE/image-lib.sh" -- postgres_image
}

main
