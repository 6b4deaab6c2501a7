#!/usr/bin/env bash
# The image localhost/pgherd-minio:1: the real MinIO server (/minio), its client
# (/mc) and a busybox shell, from the binaries e2e/cluster/build.sh made.
# Beside it localhost/pgherd-e2e:1: the PostgreSQL 17 image with mc added, in
# which tests restore a backup by hand (mc, zstd, tar, pg_verifybackup).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"
. "$HERE/image-lib.sh"

minio_image() {
  local root=$TMP/minio
  add_basics "$root"
  add_busybox "$root"
  cp "$BIN/minio" "$BIN/mc" "$root/"
  mkdir "$root/data"
  chmod 1777 "$root/data"
  layer_of "$root" "$TMP/minio.tar"
  docker_archive "$IMAGES/minio.tar" localhost/pgherd-minio:1 \
    '{"User": "1000:1000", "Cmd": ["/minio"], "Env": ["PATH=/bin:/", "HOME=/tmp"]}' "$TMP/minio.tar"
  log "wrote $IMAGES/minio.tar ($(du -h "$IMAGES/minio.tar" | cut -f1))"
}

e2e_image() {
  local postgres=$IMAGES/postgres-17.tar layer
  layer=$(tar -xOf "$postgres" manifest.json | jq -r '.[0].Layers[0]')
  tar -C "$TMP" -xf "$postgres" "$layer"
  mkdir -p "$TMP/e2e/usr/local/bin"
  cp "$BIN/mc" "$TMP/e2e/usr/local/bin/"
  layer_of "$TMP/e2e" "$TMP/e2e.tar"
  docker_archive "$IMAGES/e2e.tar" localhost/pgherd-e2e:1 '{"User": "999:999", "Cmd": ["bash"], "Env":
    ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/usr/lib/postgresql/17/bin", "LANG=C.UTF-8", "HOME=/tmp"]}' \
    "$TMP/$layer" "$TMP/e2e.tar"
  log "wrote $IMAGES/e2e.tar ($(du -h "$IMAGES/e2e.tar" | cut -f1))"
}

main() {
  local me=${BASH_SOURCE[0]}
  mkdir -p "$IMAGES"
  TMP=$(mktemp -d "$IMAGES/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  build_once "$IMAGES/minio.tar" "$me" "$HERE/image-lib.sh" "$BIN/minio" "$BIN/mc" -- minio_image
  "$(dirname "$me")/../postgres/build.sh" 17
  build_once "$IMAGES/e2e.tar" "$me" "$HERE/image-lib.sh" "$BIN/mc" "$IMAGES/postgres-17.tar.inputs" -- e2e_image
}

main
