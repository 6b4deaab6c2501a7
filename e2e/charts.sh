#!/usr/bin/env bash
# charts.sh : lints the charts, renders them in their modes, and asks the API server of KUBECONFIG about every object (as
# a dry run; nothing is made).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

helm lint --strict --quiet charts/pgherd charts/postgres-cluster

OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT
store=cluster.backup.objectStore
helm template pgherd charts/pgherd --namespace default >"$OUT/all.yaml"
helm template pgherd charts/pgherd --namespace default --set 'watch.namespaces={default}' --set crds.enabled=false \
  --set commonAnnotations.team=db --set podLabels.team=db --set serviceAccount.annotations.role=x >"$OUT/scoped.yaml"
if grep -q '^kind: ClusterRoleBinding' "$OUT/scoped.yaml"; then
  echo "error: with watch.namespaces the operator must have no rights in the whole cluster" >&2
  exit 1
fi
[ "$(grep -c 'helm.sh/resource-policy: keep' "$OUT/all.yaml")" = 3 ] || {
  echo "error: all three definitions must outlive the release" >&2
  exit 1
}
kubectl apply -f crds/ >/dev/null
helm template shop charts/postgres-cluster --namespace default --set-string $store.endpoint=https://minio.minio.svc:9000 \
  --set $store.bucket=backups --set $store.credentialsSecretRef.name=minio \
  --set 'schedules.nightly.schedule=0 3 * * *' >"$OUT/cluster.yaml"
for file in "$OUT"/*.yaml; do
  kubectl apply --dry-run=server -f "$file" >/dev/null
  echo "$(basename "$file"): $(grep -c '^kind:' "$file") objects accepted"
done
if helm template pgherd charts/pgherd --set images.tag=x >/dev/null 2>&1; then
  echo "error: values.schema.json must refuse a misspelt value" >&2
  exit 1
fi
