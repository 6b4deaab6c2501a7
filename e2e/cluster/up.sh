#!/usr/bin/env bash
# Starts the embedded cluster: Kubernetes with three nodes on this machine, each
# node a network namespace with its own kubelet, containerd and kube-proxy. Run
# again, it starts what has died and leaves the rest alone. build.sh comes first.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/proc.sh"
. "$HERE/network.sh"
. "$HERE/pki.sh"
. "$HERE/node-config.sh"
IMAGES=$CACHE/images
export KUBECONFIG=$STATE/admin.kubeconfig

in_control() { ip netns exec $CONTROL "$@"; }

control_plane_up() {
  local pki=$STATE/pki
  # The data is worthless once the cluster is down, so etcd needn't wait for the disk.
  ensure etcd - ip netns exec $CONTROL etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  ensure apiserver - ip netns exec $CONTROL "$BIN/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 --advertise-address=$CONTROL_IP --secure-port=6443 \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-cluster-ip-range=10.96.0.0/16 \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
    --kubelet-preferred-address-types=InternalIP --endpoint-reconciler-type=lease
  # The way from the host to the API server: a unix socket has no network
  # namespace, so one end of it is in the control plane's and the other outside.
  ensure socat-in - ip netns exec $CONTROL socat "UNIX-LISTEN:$STATE/api.sock,fork,unlink-early,mode=600" TCP:127.0.0.1:6443
  ensure socat-out - socat "TCP-LISTEN:$API_PORT,bind=127.0.0.1,reuseaddr,fork" "UNIX-CONNECT:$STATE/api.sock"
}

controllers_up() {
  local pki=$STATE/pki c=$STATE/controller-manager.kubeconfig s=$STATE/scheduler.kubeconfig
  ensure controller-manager - ip netns exec $CONTROL "$BIN/kube-controller-manager" \
    --kubeconfig="$c" --authentication-kubeconfig="$c" --authorization-kubeconfig="$c" --leader-elect=false \
    --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
    --node-monitor-grace-period=20s --node-monitor-period=2s
  ensure scheduler - ip netns exec $CONTROL "$BIN/kube-scheduler" --kubeconfig="$s" \
    --authentication-kubeconfig="$s" --authorization-kubeconfig="$s" --leader-elect=false
  # DNS answers from memory and caches nothing: a failover is seen at once. Any
  # other name does not exist, as there is no way out of these namespaces.
  cat >"$STATE/Corefile" <<C
cluster.local:53 10.in-addr.arpa:53 {
  bind $CONTROL_IP
  errors
  ready $CONTROL_IP:8181
  kubernetes {
    kubeconfig $STATE/addons.kubeconfig
    pods insecure
    ttl 2
  }
}
.:53 {
  bind $CONTROL_IP
  template ANY ANY {
    rcode NXDOMAIN
  }
}
C
  ensure coredns - ip netns exec $CONTROL "$BIN/coredns" -conf "$STATE/Corefile"
}

cgroups_up() { # NODE
  local mount
  while read -r mount; do
    mkdir -p "$mount/$1"
    if [ -e "$mount/cgroup.subtree_control" ]; then
      local c
      for c in $(cat "$mount/cgroup.controllers"); do
        echo "+$c" >"$mount/cgroup.subtree_control" || true
        echo "+$c" >"$mount/$1/cgroup.subtree_control" || true
      done 2>/dev/null
    elif [ -e "$mount/$1/cpuset.cpus" ] && [ -z "$(cat "$mount/$1/cpuset.cpus")" ]; then
      cat "$mount/cpuset.cpus" >"$mount/$1/cpuset.cpus"
      cat "$mount/cpuset.mems" >"$mount/$1/cpuset.mems"
    fi
  done < <(cgroup_mounts)
  # The node's own programs, so that freezing the node freezes them too.
  mkdir -p "$(freezer_of "$1")/system"
}

containerd_up() { # NODE
  local n=$1 dir=$STATE/$1
  mkdir -p "$dir/cni" "$dir/kubelet" "$dir/logs" "$dir/volumes" "$dir/loaded" "/run/$n"
  chmod 711 "$dir/volumes"
  cgroups_up "$n"
  cni_config "$n" >"$dir/cni/10-ptp.conflist"
  containerd_config "$n" >"$dir/containerd.toml"
  kubelet_config "$n" >"$dir/kubelet.yaml"
  alive "containerd-$n" || rm -f "/run/$n/containerd.sock"
  # nsenter, not `ip netns exec`: that mounts a fresh /sys and hides the cgroups.
  ensure "containerd-$n" "$(freezer_of "$n")/system/cgroup.procs" \
    nsenter --net="/run/netns/$n" env PATH="$BIN:$PATH" "$BIN/containerd" -c "$dir/containerd.toml"
}

kubelet_up() { # NODE
  local n=$1 dir=$STATE/$1 enter
  enter=$(freezer_of "$n")/system/cgroup.procs
  until_ok 60 "containerd of $n ($STATE/log/containerd-$n.log)" "$BIN/ctr" -a "/run/$n/containerd.sock" version
  "$HERE/load-image.sh" --node "$n" "$IMAGES/pause.tar" "$IMAGES/busybox.tar" >/dev/null
  ensure "kubelet-$n" "$enter" nsenter --net="/run/netns/$n" "$BIN/kubelet" --config="$dir/kubelet.yaml" \
    --kubeconfig="$STATE/$n.kubeconfig" --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet/pki" \
    --hostname-override="$n" --node-ip="$(ip_of "$n")" -v=1
  ensure "kube-proxy-$n" "$enter" nsenter --net="/run/netns/$n" "$BIN/kube-proxy" \
    --kubeconfig="$STATE/proxy.kubeconfig" --hostname-override="$n" --proxy-mode=nftables \
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 --healthz-bind-address=127.0.0.1:10256
}

# Volumes: the provisioner runs beside the control plane; on each node a short
# pod makes or removes the folder. All nodes share this machine's disk, hence a
# folder per node.
volumes_up() {
  local n paths=()
  for n in "${NODES[@]}"; do paths+=("{\"node\": \"$n\", \"paths\": [\"$STATE/$n/volumes\"]}"); done
  (IFS=, && echo "{\"nodePathMap\": [${paths[*]}]}") >"$STATE/local-path.json"
  "$BIN/kubectl" apply -f "$HERE/local-path.yaml" >/dev/null
  ensure local-path-provisioner - ip netns exec $CONTROL "$BIN/local-path-provisioner" start \
    --config "$STATE/local-path.json" --kubeconfig "$STATE/addons.kubeconfig" \
    --namespace local-path-storage --service-account-name local-path-helper --helper-image localhost/pgherd-busybox:1
}

nodes_ready() { "$BIN/kubectl" wait --for=condition=Ready --timeout=1s node "${NODES[@]}"; }

main() {
  local start=$SECONDS n
  need_root
  for n in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl containerd \
    containerd-shim-runc-v2 ctr runc coredns local-path-provisioner; do
    [ -x "$BIN/$n" ] || die "$BIN/$n is missing: run $HERE/build.sh first"
  done
  "$HERE/base-images.sh"
  mkdir -p "$STATE/run" "$STATE/log"
  exec 9>"$STATE/lock"
  flock 9
  echo embedded >"$STATE/engine"
  if all_alive && "$BIN/kubectl" get --raw /readyz >/dev/null 2>&1 && nodes_ready >/dev/null 2>&1; then
    log "the cluster is up already: KUBECONFIG=$KUBECONFIG"
    return 0
  fi
  alive socat-out || port_free || die "port $API_PORT on 127.0.0.1 is taken; set PGHERD_API_PORT to another"
  log "starting the control plane"
  network_up
  pki_up
  kubeconfigs_up
  control_plane_up
  for n in "${NODES[@]}"; do containerd_up "$n"; done
  until_ok 120 "the API server ($STATE/log/apiserver.log)" "$BIN/kubectl" get --raw /readyz
  controllers_up
  log "starting the nodes ${NODES[*]}"
  for n in "${NODES[@]}"; do kubelet_up "$n"; done
  volumes_up
  until_ok 120 "all nodes Ready ($STATE/log/kubelet-*.log)" nodes_ready
  until_ok 60 "cluster DNS ($STATE/log/coredns.log)" in_control curl -fsS "http://$CONTROL_IP:8181/ready"
  until_ok 60 "the default service account" "$BIN/kubectl" get serviceaccount default
  log "the cluster is up in $((SECONDS - start))s: KUBECONFIG=$KUBECONFIG"
}

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$API_PORT") 2>/dev/null; }

all_alive() {
  local name
  for name in $(components); do alive "$name" || return 1; done
}

main
