# shellcheck shell=bash
# Processes that outlive the script which starts them. Sourced.

# A pid alone may since belong to someone else; pid and start time don't.
# Nothing is printed for one that has ended, though it may not be reaped yet.
start_time() { sed -E 's/^.*\) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" && $1 != "X" {print $20}'; }

alive() { # NAME
  local pid started
  read -r pid started 2>/dev/null <"$STATE/run/$1.pid" || return 1
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}

# ensure NAME CGROUP COMMAND... : starts it unless it runs. CGROUP is a file to
# enter it by (cgroup.procs), or - for none.
ensure() {
  local name=$1 cgroup=$2 pid
  shift 2
  if alive "$name"; then return 0; fi
  [ ! -e "$STATE/run/$name.pid" ] || log "$name was dead, starting it again"
  (
    [ "$cgroup" = - ] || echo "$BASHPID" >"$cgroup"
    ulimit -n 65536 2>/dev/null || true
    cd "$STATE" || exit 1
    # The lock of this script (fd 9) is not theirs to hold.
    exec setsid "$@" </dev/null >>"$STATE/log/$name.log" 2>&1 9>&-
  ) &
  pid=$!
  echo "$pid $(start_time "$pid")" >"$STATE/run/$name.pid"
}

# The cgroup mounts: one line each, every v1 hierarchy or the v2 one.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/mounts; }
cgroup_v2() { [ -e /sys/fs/cgroup/cgroup.controllers ]; }

# The folder by which all of a node's processes can be frozen at once.
freezer_of() { if cgroup_v2; then echo "/sys/fs/cgroup/$1"; else echo "/sys/fs/cgroup/freezer/$1"; fi; }

freeze() {
  if cgroup_v2; then echo 1 >"$(freezer_of "$1")/cgroup.freeze"; else echo FROZEN >"$(freezer_of "$1")/freezer.state"; fi
}
thaw() {
  if cgroup_v2; then echo 0 >"$(freezer_of "$1")/cgroup.freeze"; else echo THAWED >"$(freezer_of "$1")/freezer.state"; fi
}

# Every process of the cluster, by name.
components() {
  local n
  echo etcd apiserver socat-in socat-out controller-manager scheduler coredns local-path-provisioner
  for n in "${NODES[@]}"; do echo "containerd-$n kubelet-$n kube-proxy-$n"; done
}
