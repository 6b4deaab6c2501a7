# shellcheck shell=bash
# The configuration files of one node. Sourced.

# Each pod is wired to its node by a cable of its own (ptp), not by a bridge: all
# traffic is routed then, and Services work between pods of one node without
# the kernel module br_netfilter. No masquerading: pods see each other's addresses.
cni_config() {
  cat <<C
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false, "mtu": 1500,
  "ipam": {"type": "host-local", "dataDir": "/run/$1/ipam", "ranges": [[{"subnet": "$(pods_of "$1")"}]],
           "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
}

containerd_config() {
  cat <<C
version = 3
root = "$STATE/$1/containerd"
state = "/run/$1/containerd"
[grpc]
address = "/run/$1/containerd.sock"
[plugins.'io.containerd.cri.v1.runtime']
# Without CAP_SYS_RESOURCE no process may lower its score, and runc would fail.
restrict_oom_score_adj = true
# Else they go to /run/netns, among those of others.
netns_mounts_under_state_dir = true
# Its socket is one path for all of them: of three that start at once, one would find the address in use and end.
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = "$STATE/$1/cni"
bin_dirs = ["/usr/lib/cni"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/pause:1"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "$BIN/runc"
C
}

# - failCgroupV1: Debian 12 in some machines still runs with cgroup v1.
# - resolvConf: there is no resolver but the cluster's.
# - imageGC at 100 %: images can't be pulled again, so they must never go.
# - nodeLeaseDurationSeconds: renewed at a quarter of it, to suit the 20 s after
#   which the controller manager takes a node for lost.
kubelet_config() {
  cat <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /$1
clusterDNS: [$CONTROL_IP]
clusterDomain: cluster.local
resolvConf: ""
containerRuntimeEndpoint: unix:///run/$1/containerd.sock
podLogsDir: $STATE/$1/logs
volumePluginDir: $STATE/$1/volume-plugins
authentication: {x509: {clientCAFile: $STATE/pki/ca.crt}, anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
tlsCertFile: $STATE/pki/$1.crt
tlsPrivateKeyFile: $STATE/pki/$1.key
nodeStatusUpdateFrequency: 2s
nodeStatusReportFrequency: 10s
nodeLeaseDurationSeconds: 16
syncFrequency: 10s
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
C
}
