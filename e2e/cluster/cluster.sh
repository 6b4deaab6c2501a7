#!/usr/bin/env bash
# cluster.sh build|up|down|status|kubeconfig : a Kubernetes for demo and tests, the
# first of these which can be had:
#   external  KUBECONFIG is set and its cluster answers: used as it is, and left alone
#   kind      docker works and kind is there: a kind cluster called pgherd, three workers
#   embedded  else: Kubernetes built from source, three nodes on this machine (root)
# PGHERD_ENGINE=external|kind|embedded asks for one of them. build makes the programs that up starts, and starts nothing.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

choose() {
  if [ -n "${PGHERD_ENGINE:-}" ]; then
    echo "$PGHERD_ENGINE"
  elif [ -n "${KUBECONFIG:-}" ] && [ "$KUBECONFIG" != "$STATE/admin.kubeconfig" ] && answers; then
    echo external
  elif [ -e "$STATE/engine" ]; then
    engine # up twice is the same one
  elif command -v docker >/dev/null && docker info >/dev/null 2>&1 && command -v kind >/dev/null; then
    echo kind
  else
    echo embedded
  fi
}

answers() {
  PATH=$PATH:$BIN
  command -v kubectl >/dev/null || "$HERE/build.sh" --tools-only >&2
  kubectl --request-timeout=10s get --raw /readyz >/dev/null 2>&1
}

kind_up() {
  "$HERE/build.sh" --tools-only
  mkdir -p "$STATE"
  if ! kind get clusters 2>/dev/null | grep -qx pgherd; then
    kind create cluster --name pgherd --kubeconfig "$STATE/admin.kubeconfig" --wait 180s --config - <<C
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]
C
  fi
  kind export kubeconfig --name pgherd --kubeconfig "$STATE/admin.kubeconfig"
  echo kind >"$STATE/engine"
}

external_up() {
  "$HERE/build.sh" --tools-only
  mkdir -p "$STATE"
  echo "$KUBECONFIG" >"$STATE/external"
  echo external >"$STATE/engine"
  log "using the cluster of KUBECONFIG=$KUBECONFIG"
}

build() {
  case $(choose) in
    embedded) "$HERE/build.sh" ;;
    *) "$HERE/build.sh" --tools-only ;;
  esac
}

up() {
  local e
  e=$(choose)
  if [ -e "$STATE/engine" ] && [ "$e" != "$(engine)" ]; then
    die "a cluster of the engine $(engine) is up, but $e was asked for: cluster.sh down first, or unset KUBECONFIG"
  fi
  case $e in
    external) external_up ;;
    kind) kind_up ;;
    embedded)
      "$HERE/build.sh"
      "$HERE/up.sh"
      ;;
    *) die "no such engine: $e" ;;
  esac
}

down() {
  case $(engine) in
    external)
      rm -f "$STATE/engine" "$STATE/external"
      rmdir "$STATE" 2>/dev/null || true
      ;;
    kind)
      kind delete cluster --name pgherd
      rm -rf "$STATE"
      ;;
    embedded) "$HERE/down.sh" ;;
  esac
}

case ${1:-} in
  build) build ;;
  up) up ;;
  down) down ;;
  status) exec "$HERE/status.sh" ;;
  kubeconfig)
    use_cluster
    echo "$KUBECONFIG"
    ;;
  *) die "usage: cluster.sh build|up|down|status|kubeconfig" ;;
esac
