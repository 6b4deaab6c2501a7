#!/usr/bin/env bash
# Stops the embedded cluster and leaves nothing of it: no process, mount,
# network namespace, cgroup or file. Harmless if there is none. What build.sh
# made stays in the cache.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/proc.sh"
. "$HERE/network.sh"

# Every cgroup of a node, in every hierarchy, the innermost first.
node_cgroups() {
  local mount n
  while read -r mount; do
    for n in "${NODES[@]}"; do
      [ ! -d "$mount/$n" ] || find "$mount/$n" -depth -type d
    done
  done < <(cgroup_mounts)
}

# Whatever belongs to the cluster: in its namespaces, in its nodes' cgroups, or
# started by up.sh outside of both.
cluster_pids() {
  local n d name pid started
  for n in $CONTROL "${NODES[@]}"; do
    if has_netns "$n"; then ip netns pids "$n" 2>/dev/null || true; fi
  done
  node_cgroups | while read -r d; do cat "$d/cgroup.procs" 2>/dev/null || true; done
  for name in $(components); do
    if alive "$name"; then
      read -r pid started <"$STATE/run/$name.pid"
      echo "$pid"
    fi
  done
}

kill_all() {
  local n pids limit=$((SECONDS + 60))
  # A frozen process can't even die.
  for n in "${NODES[@]}"; do [ ! -d "$(freezer_of "$n")" ] || thaw "$n"; done
  while pids=$(cluster_pids | sort -un) && [ -n "$pids" ]; do
    # shellcheck disable=SC2086 # a list of numbers
    kill -KILL $pids 2>/dev/null || true
    [ $SECONDS -lt $limit ] || die "these processes don't end: $pids"
    sleep 0.1
  done
}

our_mounts() {
  local n at=("$STATE")
  for n in "${NODES[@]}"; do at+=("/run/$n"); done
  local IFS='|'
  awk '{print $2}' /proc/self/mounts | grep -E "^(${at[*]})/" | sort -r || true
}

unmount_all() {
  local m
  # Twice, as one mount may have hidden another.
  for _ in 1 2; do our_mounts | while read -r m; do umount -l "$m" 2>/dev/null || true; done; done
  # Behind a mount left in place are others' files: never delete through one.
  [ -z "$(our_mounts)" ] || die "these mounts don't go: $(our_mounts | tr '\n' ' ')"
}

remove_cgroups() {
  local limit=$((SECONDS + 20)) d
  while [ -n "$(node_cgroups)" ]; do
    node_cgroups | while read -r d; do rmdir "$d" 2>/dev/null || true; done
    [ $SECONDS -lt $limit ] || die "these cgroups don't go: $(node_cgroups | tr '\n' ' ')"
  done
}

main() {
  local n start=$SECONDS
  need_root
  if [ ! -e "$STATE/engine" ] && ! has_netns $CONTROL; then
    log "no cluster is up"
    return 0
  fi
  kill_all
  unmount_all
  for n in "${NODES[@]}" $CONTROL; do ! has_netns "$n" || ip netns del "$n"; done
  remove_cgroups
  for n in "${NODES[@]}"; do rm -rf --one-file-system "/run/$n"; done
  # Only a folder of ours: up.sh leaves `engine` in it.
  [ ! -e "$STATE/engine" ] || rm -rf --one-file-system "$STATE"
  log "the cluster is down, nothing is left of it ($((SECONDS - start))s)"
}

main
