#!/usr/bin/env bash
# The image localhost/pgherd-minio:1: the real MinIO server (/minio), its client
# (/mc) and a busybox shell, from the binaries e2e/cluster/build.sh made.
# Beside it localhost/pgherd-toolbox:MAJOR: the image of that PostgreSQL with mc
# added, in which tests restore a backup by hand (mc, zstd, tar, pg_verifybackup).
#   build.sh [MAJOR]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"
. "$HERE/image-lib.sh"

MAJOR=${1:-17}

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

toolbox_image() {
  local postgres=$IMAGES/postgres-$MAJOR.tar layer
  layer=$(tar -xOf "$postgres" manifest.json | jq -r '.[0].Layers[0]')
  tar -C "$TMP" -xf "$postgres" "$layer"
  mkdir -p "$TMP/toolbox/usr/local/bin"
  cp "$BIN/mc" "$TMP/toolbox/usr/local/bin/"
  layer_of "$TMP/toolbox" "$TMP/toolbox.tar"
  docker_archive "$OUT" "localhost/pgherd-toolbox:$MAJOR" "{\"User\": \"999:999\", \"Cmd\": [\"bash\"], \"Env\":
    [\"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/usr/lib/postgresql/$MAJOR/bin\", \"LANG=C.UTF-8\", \"HOME=/tmp\"]}" \
    "$TMP/$layer" "$TMP/toolbox.tar"
  log "wrote $OUT ($(du -h "$OUT" | cut -f1))"
}

main() {
  local me=${BASH_SOURCE[0]}
  OUT=$IMAGES/toolbox-$MAJOR.tar
  mkdir -p "$IMAGES"
  TMP=$(mktemp -d "$IMAGES/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  build_once "$IMAGES/minio.tar" "$me" "$HERE/image-lib.sh" "$BIN/minio" "$BIN/mc" -- minio_image
  "$(dirname "$me")/../postgres/build.sh" "$MAJOR"
  build_once "$OUT" "$me" "$HERE/image-lib.sh" "$BIN/mc" "$IMAGES/postgres-$MAJOR.tar.inputs" -- toolbox_image
}

main
