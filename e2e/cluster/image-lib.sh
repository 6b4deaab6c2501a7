# shellcheck shell=bash
# Makes container images without a container engine: an image is a tar of its
# files, a JSON file that says how to run it, and a list of both. Sourced.

IMAGES=$CACHE/images

# docker_archive OUT NAME:TAG CONFIG-JSON LAYER.tar... : writes an archive as
# `docker save` does, which ctr, kind and docker load all read. Atomic.
docker_archive() {
  local out=$1 name=$2 config=$3 work layers=() diff_ids=() sum layer
  shift 3
  work=$(mktemp -d "$out.tmp.XXXXXX")
  for layer in "$@"; do
    sum=$(sha256sum "$layer" | cut -d' ' -f1)
    mkdir "$work/$sum"
    ln "$layer" "$work/$sum/layer.tar" 2>/dev/null || cp "$layer" "$work/$sum/layer.tar"
    layers+=("$sum/layer.tar")
    diff_ids+=("sha256:$sum")
  done
  local arch
  arch=$(dpkg --print-architecture)
  jq -cn --argjson config "$config" --arg arch "$arch" '{architecture: $arch, os: "linux", config: $config,
    created: "2026-01-01T00:00:00Z", rootfs: {type: "layers", diff_ids: $ARGS.positional}}' \
    --args "${diff_ids[@]}" >"$work/config.json"
  sum=$(sha256sum "$work/config.json" | cut -d' ' -f1)
  mv "$work/config.json" "$work/$sum.json"
  jq -cn --arg name "$name" --arg config "$sum.json" \
    '[{Config: $config, RepoTags: [$name], Layers: $ARGS.positional}]' --args "${layers[@]}" >"$work/manifest.json"
  tar -C "$work" -cf "$work.tar" manifest.json "$sum.json" "${layers[@]}"
  rm -rf "$work"
  mv "$work.tar" "$out"
}

# layer_of DIR OUT.tar : the folder as a layer, the same bytes for the same files.
layer_of() {
  tar -C "$1" --sort=name --mtime='2026-01-01 00:00Z' --owner=0 --group=0 --numeric-owner -cf "$2" .
}

# build_once OUT INPUT... -- COMMAND... : runs the command, which writes OUT,
# unless OUT was made from inputs of the same content. (Their times say nothing:
# a fresh clone has new ones.)
build_once() {
  local out=$1 inputs=() sum
  shift
  while [ "$1" != -- ]; do
    inputs+=("$1")
    shift
  done
  shift
  sum=$(cat "${inputs[@]}" | sha256sum)
  if [ -s "$out" ] && [ "$(cat "$out.inputs" 2>/dev/null)" = "$sum" ]; then return 0; fi
  rm -f "$out.inputs"
  "$@"
  echo "$sum" >"$out.inputs"
}

# add_busybox ROOT : a busybox with a link for each of its commands, and the
# libraries it needs (installing the static one would remove it from this machine).
add_busybox() {
  mkdir -p "$1/bin"
  cp /bin/busybox "$1/bin/busybox"
  local library
  for library in $(ldd /bin/busybox | grep -oE '/[^ ]+'); do
    mkdir -p "$1$(dirname "$library")"
    cp -L "$library" "$1$library"
  done
  local applet
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$1/bin/$applet"
  done
}

# add_basics ROOT : what programs expect of any system: users, names, /tmp.
add_basics() {
  mkdir -p "$1/etc" "$1/tmp" "$1/home/app"
  chmod 1777 "$1/tmp" "$1/home/app"
  printf 'root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n' >"$1/etc/passwd"
  printf 'root:x:0:\napp:x:1000:\n' >"$1/etc/group"
  echo 'hosts: files dns' >"$1/etc/nsswitch.conf"
}
