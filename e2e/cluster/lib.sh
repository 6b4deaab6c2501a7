# shellcheck shell=bash
# Shared by the scripts of this folder: where things are, how they speak, which
# versions are used. Sourced, never run.

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${PGHERD_CACHE:-${HOME:-/root}/.cache/pgherd}
STATE=${PGHERD_CLUSTER_DIR:-/var/lib/pgherd-cluster}
API_PORT=${PGHERD_API_PORT:-6443}

GO_VERSION=1.26.8 # fetched only where there is no Go, or one too old
KUBERNETES_VERSION=v1.37.2
CONTAINERD_VERSION=v2.4.2
RUNC_VERSION=v1.4.0
COREDNS_VERSION=v1.15.0
HELM_VERSION=v4.3.1
LOCAL_PATH_VERSION=v0.0.30
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
MC_VERSION=v0.0.0-20250313080218-cf909e1063a9
# The second S3 server of the backup tests. Not in the hash: its version is in its program's name.
VERSITYGW_VERSION=v1.8.0

# Anything that changes a binary belongs in here: a new hash is a new folder.
bin_hash() {
  {
    echo "$KUBERNETES_VERSION $CONTAINERD_VERSION $RUNC_VERSION $COREDNS_VERSION $HELM_VERSION" \
      "$LOCAL_PATH_VERSION $MINIO_VERSION $MC_VERSION"
    cat "$HERE/tools/go.mod" "$HERE/tools/go.sum"
  } | sha256sum | cut -c1-12
}
BIN=${PGHERD_BIN:-$CACHE/bin-$(bin_hash)}

NODES=(kn1 kn2 kn3)

log() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
need_root() { [ "$(id -u)" = 0 ] || die "${0##*/} must run as root (it makes network namespaces, mounts and cgroups)"; }

# Which kind of cluster is up: embedded, kind or external (see cluster.sh).
engine() { cat "$STATE/engine" 2>/dev/null || echo embedded; }

# until_ok SECONDS WHAT COMMAND... : waits for a condition, never for a time.
until_ok() {
  local limit=$1 what=$2 start=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $((SECONDS - start)) -lt "$limit" ] || die "after ${limit}s still waiting for: $what"
    sleep 0.2
  done
}

# with_heartbeat WHAT LOGFILE COMMAND... : runs a slow command with its output
# in a file, says every 15 s that it lives, and shows the end of it if it fails.
with_heartbeat() {
  local what=$1 file=$2 start=$SECONDS pid rc=0 next=15
  shift 2
  log "$what ..."
  # A process group of its own (set -m), so that an interrupt can take all of it
  # along; else a compiler would go on unseen.
  set -m
  "$@" >"$file" 2>&1 </dev/null &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    if [ $((SECONDS - start)) -ge "$next" ]; then
      log "$what ... ${next}s, $(wc -l <"$file") lines of output"
      next=$((next + 15))
    fi
    sleep 0.5
  done
  wait "$pid" || rc=$?
  trap - INT TERM
  if [ "$rc" != 0 ]; then
    tail -n 30 "$file" >&2
    die "$what failed (exit $rc); all of its output: $file"
  fi
  log "$what: done in $((SECONDS - start))s"
}

# Points kubectl and helm (and all else in $BIN) at the cluster that is up.
use_cluster() {
  if [ "$(engine)" = external ]; then
    KUBECONFIG=$(cat "$STATE/external")
  else
    KUBECONFIG=$STATE/admin.kubeconfig
  fi
  export KUBECONFIG PATH=$BIN:$PATH
}
