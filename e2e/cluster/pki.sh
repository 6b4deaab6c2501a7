# shellcheck shell=bash
# Certificates and kubeconfigs of the embedded cluster. Sourced.

pki_up() {
  if [ -d "$STATE/pki" ]; then return 0; fi
  log "making certificates"
  local tmp=$STATE/pki.tmp n
  rm -rf "$tmp"
  mkdir -m 700 "$tmp"
  (
    cd "$tmp"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=pgherd-cluster-ca \
      -keyout ca.key -out ca.crt
    local names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
    certificate apiserver /CN=kube-apiserver \
      "$names,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:$CONTROL_IP,IP:10.96.0.1"
    certificate admin /O=system:masters/CN=admin
    certificate addons /O=system:masters/CN=addons
    certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    for n in "${NODES[@]}"; do
      certificate "$n" "/O=system:nodes/CN=system:node:$n" "IP:$(ip_of "$n"),DNS:$n"
    done
    openssl genrsa -out sa.key 2048
    openssl rsa -in sa.key -pubout -out sa.pub
  ) >"$STATE/log/pki.log" 2>&1 || die "making certificates failed, see $STATE/log/pki.log"
  mv "$tmp" "$STATE/pki"
}

certificate() { # NAME SUBJECT [ALTERNATIVE-NAMES]
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "${3:-DNS:$1}")
}

kubeconfig() { # FILE CERTIFICATE SERVER
  local pki=$STATE/pki
  (
    umask 077
    cat >"$STATE/$1.kubeconfig.tmp" <<C
apiVersion: v1
kind: Config
current-context: pgherd
contexts: [{name: pgherd, context: {cluster: pgherd, user: $2}}]
clusters:
- name: pgherd
  cluster: {server: "$3", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}
users:
- name: $2
  user:
    client-certificate-data: $(base64 -w0 "$pki/$2.crt")
    client-key-data: $(base64 -w0 "$pki/$2.key")
C
  )
  mv "$STATE/$1.kubeconfig.tmp" "$STATE/$1.kubeconfig"
}

kubeconfigs_up() {
  local api=https://$CONTROL_IP:6443 n
  kubeconfig admin admin "https://127.0.0.1:$API_PORT"
  kubeconfig addons addons "$api"
  kubeconfig controller-manager controller-manager "$api"
  kubeconfig scheduler scheduler "$api"
  kubeconfig proxy proxy "$api"
  for n in "${NODES[@]}"; do kubeconfig "$n" "$n" "$api"; done
}
