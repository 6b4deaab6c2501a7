#!/usr/bin/env bash
# load-image.sh [--node NODE] ARCHIVE.tar... : brings image archives (docker save
# or OCI) to every node, in parallel. An image that is there already is skipped.
# Pods name them with imagePullPolicy IfNotPresent or Never.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What an archive holds, told by its index, which names everything by digest.
identity() {
  { tar -xOf "$1" --occurrence=1 manifest.json 2>/dev/null || tar -xOf "$1" --occurrence=1 index.json; } | sha256sum
}

load_into() { # NODE ARCHIVE
  # Unpacked on first use only, so a node pays for what it runs. (Its warnings
  # are about cgroup v1; they are of use only when it fails.)
  "$BIN/ctr" -a "/run/$1/containerd.sock" -n k8s.io images import --no-unpack "$2" \
    >"$STATE/log/load-$1.log" 2>&1 || die "loading $2 into $1 failed: $(cat "$STATE/log/load-$1.log")"
}

load_embedded() { # ARCHIVE
  local start=$SECONDS n name id missing=() pids=() pid rc=0
  name=$(basename "$1")
  id=$(identity "$1")
  for n in "${TARGETS[@]}"; do
    [ "$(cat "$STATE/$n/loaded/$name" 2>/dev/null)" = "$id" ] || missing+=("$n")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  for n in "${missing[@]}"; do
    load_into "$n" "$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
  [ "$rc" = 0 ] || die "could not load $1"
  for n in "${missing[@]}"; do echo "$id" >"$STATE/$n/loaded/$name"; done
  log "loaded $name into ${missing[*]} in $((SECONDS - start))s"
}

TARGETS=("${NODES[@]}")
if [ "${1:-}" = --node ]; then
  TARGETS=("$2")
  shift 2
fi
[ $# -gt 0 ] || die "usage: load-image.sh [--node NODE] ARCHIVE.tar..."
for archive in "$@"; do
  [ -s "$archive" ] || die "no such archive: $archive"
  case $(engine) in
    embedded) load_embedded "$archive" ;;
    kind) kind load image-archive "$archive" --name pgherd ;;
    external) log "not loaded, as this cluster is not ours: its nodes must be able to pull what $archive holds" ;;
  esac
done
