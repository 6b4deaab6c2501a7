#!/usr/bin/env bash
# Starts MinIO in the cluster (namespace minio, https://minio.minio.svc:9000) with
# a private CA, random credentials and a bucket `backups`. Again: no harm.
#   Secret minio-root: user, password          Secret minio-tls: tls.crt, tls.key, ca.crt
# The image must be loaded: images/minio/build.sh, load-image.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
use_cluster

random() { head -c "$1" /dev/urandom | od -An -tx1 | tr -d ' \n'; }
has_secret() { kubectl -n minio get secret "$1" >/dev/null 2>&1; }

credentials() {
  if has_secret minio-root; then return 0; fi
  random 8 >"$TMP/user"
  random 20 >"$TMP/password"
  kubectl -n minio create secret generic minio-root --from-file="$TMP/user" --from-file="$TMP/password"
}

certificates() {
  if has_secret minio-tls; then return 0; fi
  local names=DNS:minio.minio.svc,DNS:minio.minio.svc.cluster.local,DNS:minio.minio,DNS:localhost,IP:127.0.0.1
  (
    cd "$TMP"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=minio-ca \
      -keyout ca.key -out ca.crt
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=minio -keyout tls.key -out tls.csr
    openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out tls.crt \
      -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names")
  ) 2>"$TMP/openssl.log" || die "making MinIO's certificate failed: $(cat "$TMP/openssl.log")"
  kubectl -n minio create secret generic minio-tls --type=kubernetes.io/tls \
    --from-file="$TMP/tls.crt" --from-file="$TMP/tls.key" --from-file="$TMP/ca.crt"
}

# mc runs beside the server, which knows the credentials; none is on a command line.
# shellcheck disable=SC2016 # expanded in the pod
make_bucket() {
  kubectl -n minio exec deploy/minio -- sh -c '
    mkdir -p /tmp/mc/certs/CAs && cp /certs/CAs/ca.crt /tmp/mc/certs/CAs/
    export MC_HOST_local="https://$(cat /credentials/user):$(cat /credentials/password)@localhost:9000"
    /mc --config-dir /tmp/mc --quiet mb --ignore-existing local/backups'
}

main() {
  local start=$SECONDS
  TMP=$(mktemp -d)
  trap 'rm -rf "$TMP"' EXIT
  kubectl get namespace minio >/dev/null 2>&1 || kubectl create namespace minio
  kubectl label namespace minio --overwrite pod-security.kubernetes.io/enforce=restricted >/dev/null
  credentials
  certificates
  kubectl apply -f "$HERE/minio.yaml"
  kubectl -n minio rollout status deploy/minio --timeout=180s
  until_ok 60 "the bucket" make_bucket
  log "MinIO is ready in $((SECONDS - start))s: https://minio.minio.svc:9000, bucket backups"
}

main
