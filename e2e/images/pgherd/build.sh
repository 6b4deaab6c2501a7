#!/usr/bin/env bash
# build.sh : the images of what `cargo build` left in the target folder, each one static binary and nothing else:
#   target/images/pgherd.tar      localhost/pgherd:dev       the operator, the agent and the backup Job
#   target/images/pgherd-e2e.tar  localhost/pgherd-e2e:dev   the writer that tests run in the cluster (if it was built)
# The same binary gives the same bytes, so what the nodes have already isn't loaded again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../cluster/lib.sh"
. "$HERE/image-lib.sh"

ROOT=$(cd "$HERE/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
BUILT=$TARGET/$(rustc -vV | sed -n 's/^host: //p')/debug
OUT=$TARGET/images
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

static_image() { # BINARY NAME:TAG USER PROGRAM
  local root=$TMP/$1 binary=$4
  mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/tmp"
  chmod 1777 "$root/tmp"
  # Names of functions stay, for backtraces; line tables are most of the size.
  strip --strip-debug -o "$root/usr/bin/$1" "$binary"
  chmod 0755 "$root/usr/bin/$1"
  install -m 0644 "$CERTIFICATES" "$root/etc/ssl/certs/ca-certificates.crt"
  printf 'root:x:0:0:root:/:/sbin/nologin\npgherd:x:65532:65532:pgherd:/tmp:/sbin/nologin\n' >"$root/etc/passwd"
  printf 'root:x:0:\npgherd:x:65532:\n' >"$root/etc/group"
  layer_of "$root" "$TMP/$1.tar"
  docker_archive "$OUT/$1.tar" "$2" "{\"User\": \"$3\", \"Entrypoint\": [\"/usr/bin/$1\"],
    \"Env\": [\"PATH=/usr/bin\", \"SSL_CERT_FILE=$CERTIFICATES\"]}" "$TMP/$1.tar"
  log "wrote ${OUT#"$ROOT/"}/$1.tar, $2 ($(du -h "$OUT/$1.tar" | cut -f1))"
}

image_of() { # BINARY NAME:TAG
  local binary=$BUILT/$1
  [ -x "$binary" ] || die "no $binary: run \`cargo build --workspace --bins\` first"
  # A binary that needs a library would run here and not in the image.
  if LC_ALL=C readelf -l "$binary" | grep -q 'Requesting program interpreter'; then
    die "$binary is not static: it must be built with this tree's .cargo/config.toml"
  fi
  build_once "$OUT/$1.tar" "${BASH_SOURCE[0]}" "$HERE/image-lib.sh" "$CERTIFICATES" "$binary" -- \
    static_image "$1" "$2" 65532:65532 "$binary"
}

main() {
  mkdir -p "$OUT"
  TMP=$(mktemp -d "$OUT/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  image_of pgherd localhost/pgherd:dev
  if [ -x "$BUILT/pgherd-e2e" ]; then image_of pgherd-e2e localhost/pgherd-e2e:dev; fi
}

main
