#!/usr/bin/env bash
# Shows the cluster: its processes, nodes and what doesn't run. Exit code 0 if all is well.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/proc.sh"

main() {
  local rc=0 name dead=()
  if [ ! -e "$STATE/engine" ]; then
    echo "no cluster is up (cluster.sh up starts one)"
    return 3
  fi
  use_cluster
  echo "engine:     $(engine)"
  echo "kubeconfig: $KUBECONFIG"
  if [ "$(engine)" = embedded ]; then
    for name in $(components); do alive "$name" || dead+=("$name"); done
    echo "processes:  $(components | wc -w), dead: ${dead[*]:-none}"
    echo "state:      $STATE (logs in log/), $(du -sh "$STATE" 2>/dev/null | cut -f1)"
    [ ${#dead[@]} = 0 ] || rc=1
  fi
  kubectl get nodes -o wide || return 1
  if kubectl get nodes --no-headers | grep -qv ' Ready '; then rc=1; fi
  echo "pods which don't run:"
  kubectl get pods -A --field-selector=status.phase!=Running,status.phase!=Succeeded
  return $rc
}

main
