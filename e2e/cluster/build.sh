#!/usr/bin/env bash
# Builds everything the embedded cluster and its tests run, once, into
# $PGHERD_CACHE/bin-<hash of the versions>. What is there already is skipped, so
# a second run takes no time and an interrupted one goes on where it stopped.
#   --tools-only   just what a cluster made by others and the tests without one need: kubectl, helm, MinIO, mc, versitygw
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PACKAGES=(
  etcd-server etcd-client containernetworking-plugins nftables iptables conntrack iproute2 kmod socat
  mmdebstrap buildah busybox debian-archive-keyring
  gcc libc6-dev pkg-config libseccomp-dev
  openssl ca-certificates curl jq util-linux procps
)

install_packages() {
  local missing=() p
  for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q '^install ok installed' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  need_root
  command -v apt-get >/dev/null || die "not a Debian: please install the like of: ${missing[*]}"
  with_heartbeat "apt-get update" "$LOGS/apt-update.log" apt-get update -q
  with_heartbeat "apt-get install ${missing[*]}" "$LOGS/apt-install.log" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
  # Debian starts an etcd of its own on installing the package; the cluster
  # runs its own one in a namespace.
  if [[ " ${missing[*]} " == *" etcd-server "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now etcd.service >/dev/null 2>&1 || true
  fi
}

# Go >= 1.26, or one >= 1.21 which fetches the right toolchain by itself, is
# used as it is. Else Debian's old Go serves as a downloader: the toolchain is
# a module, checked against the checksum database like any other.
find_go() {
  export GOTOOLCHAIN=auto
  local minor=0
  if command -v go >/dev/null; then
    minor=$(GOTOOLCHAIN=local go env GOVERSION | sed -nE 's/^go1\.([0-9]+).*/\1/p')
  fi
  if [ "${minor:-0}" -ge 21 ]; then return 0; fi
  local own=$CACHE/go-$GO_VERSION module
  module=golang.org/toolchain@v0.0.1-go$GO_VERSION.linux-$(dpkg --print-architecture)
  if [ ! -x "$own/bin/go" ]; then
    if [ "${minor:-0}" -lt 11 ]; then
      need_root
      with_heartbeat "apt-get install golang-go (to fetch Go $GO_VERSION with)" "$LOGS/apt-go.log" \
        env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends golang-go
    fi
    with_heartbeat "Go $GO_VERSION from the module proxy" "$LOGS/go.log" fetch_go "$module" "$own"
  fi
  export PATH=$own/bin:$PATH
  export GOTOOLCHAIN=local
}

fetch_go() {
  local module=$1 own=$2 dir
  dir=$(cd / && GO111MODULE=on go mod download -json "$module" | jq -r .Dir)
  rm -rf "$own.tmp"
  cp -r "$dir" "$own.tmp"
  chmod -R u+w "$own.tmp"
  chmod +x "$own.tmp"/bin/* "$own.tmp"/pkg/tool/*/*
  # In a module's zip no other go.mod may exist; they are stored as _go.mod.
  find "$own.tmp" -name _go.mod -execdir mv {} go.mod \;
  mv "$own.tmp" "$own"
}

have() {
  local b
  for b in "$@"; do [ -x "$BIN/$b" ] || return 1; done
}

# step WHAT "BINARIES" COMMAND... : unless the binaries are there, runs the
# command, which leaves them in $TMP, then moves them into place.
step() {
  local what=$1 names b
  read -ra names <<<"$2"
  shift 2
  if have "${names[@]}"; then return 0; fi
  with_heartbeat "$what" "$LOGS/${names[0]}.log" "$@"
  for b in "${names[@]}"; do mv "$TMP/$b" "$BIN/$b"; done
}

build_kubernetes() {
  local v=k8s.io/component-base/version pkgs=() b
  for b in "$@"; do pkgs+=("k8s.io/kubernetes/cmd/$b"); done
  cd "$HERE/tools"
  CGO_ENABLED=0 go build -v -mod=readonly -trimpath -o "$TMP/" -ldflags \
    "-s -w -X $v.gitVersion=$KUBERNETES_VERSION -X $v.gitMajor=1 -X $v.gitMinor=37 -X $v.gitTreeState=clean" \
    "${pkgs[@]}"
}

install_go() { # CGO TAGS PACKAGE@VERSION...
  local cgo=$1 tags=$2
  shift 2
  cd /
  CGO_ENABLED=$cgo GOBIN=$TMP go install -v -trimpath -tags "$tags" -ldflags "-s -w" "$@"
}

build_versitygw() { # NAME
  install_go 0 "" "github.com/versity/versitygw/cmd/versitygw@$VERSITYGW_VERSION"
  mv "$TMP/versitygw" "$TMP/$1"
}

main() {
  local start=$SECONDS
  mkdir -p "$BIN" "$CACHE/log"
  LOGS=$CACHE/log
  # One builder at a time; a second one waits and then finds all done.
  exec 9>"$CACHE/build.lock"
  flock -n 9 || { log "another build.sh is at work, waiting for it"; flock 9; }
  install_packages
  local versitygw=versitygw-$VERSITYGW_VERSION
  local all=(kubectl helm minio mc "$versitygw") tools_only=no
  if [ "${1:-}" = --tools-only ]; then
    tools_only=yes
  else
    all+=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy
      containerd containerd-shim-runc-v2 ctr runc coredns local-path-provisioner)
  fi
  if have "${all[@]}"; then return 0; fi
  log "building what is missing in $BIN (the first time: 15 to 25 minutes on two cores)"
  find_go
  TMP=$(mktemp -d "$BIN/.tmp.XXXXXX")
  trap 'rm -rf "$TMP"' EXIT
  export GOFLAGS=-buildvcs=false

  if [ $tools_only = no ]; then cluster_programs; fi
  step "kubectl $KUBERNETES_VERSION" kubectl build_kubernetes kubectl
  step "helm $HELM_VERSION" helm install_go 0 "" "helm.sh/helm/v4/cmd/helm@$HELM_VERSION"
  step "MinIO $MINIO_VERSION" minio install_go 0 "" "github.com/minio/minio@$MINIO_VERSION"
  step "mc $MC_VERSION" mc install_go 0 "" "github.com/minio/mc@$MC_VERSION"
  step "versitygw $VERSITYGW_VERSION" "$versitygw" build_versitygw "$versitygw"
  log "all built in $((SECONDS - start))s: $BIN"
}

cluster_programs() {
  local k8s=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
  step "Kubernetes $KUBERNETES_VERSION" "${k8s[*]}" build_kubernetes "${k8s[@]}"
  local c=github.com/containerd/containerd/v2/cmd
  step "containerd $CONTAINERD_VERSION" "containerd containerd-shim-runc-v2 ctr" install_go 0 "" \
    "$c/containerd@$CONTAINERD_VERSION" "$c/containerd-shim-runc-v2@$CONTAINERD_VERSION" "$c/ctr@$CONTAINERD_VERSION"
  step "runc $RUNC_VERSION" runc install_go 1 seccomp "github.com/opencontainers/runc@$RUNC_VERSION"
  step "CoreDNS $COREDNS_VERSION" coredns install_go 0 "" "github.com/coredns/coredns@$COREDNS_VERSION"
  step "local-path-provisioner $LOCAL_PATH_VERSION" local-path-provisioner install_go 0 "" \
    "github.com/rancher/local-path-provisioner@$LOCAL_PATH_VERSION"
}

main "$@"
