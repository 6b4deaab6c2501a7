#!/usr/bin/env bash
# apply.sh : applies the definitions to the cluster of KUBECONFIG by plain `kubectl apply`, then asks its API server about
# each fixture. Nothing is left but the definitions. A fixture of two documents is an update: the first must exist.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAMESPACE=pgherd-crds-test
OUT=$(mktemp -d)
kubectl create namespace $NAMESPACE --dry-run=client -o yaml | kubectl apply -f - >/dev/null
trap 'rm -rf "$OUT"; kubectl delete namespace $NAMESPACE --wait=false >/dev/null' EXIT
passed=0 failed=0

kubectl apply -f . 2>&1 | tee "$OUT/applied"
if grep -i warning "$OUT/applied"; then
  echo "error: the API server warns of the definitions" >&2
  exit 1
fi
# Unlike `apply`, `wait` goes into subfolders unless told not to. Its warnings (of watches that it ended itself) are of
# use only when it fails.
kubectl wait --for=condition=Established --timeout=30s -R=false -f . >"$OUT/wait" 2>&1 || {
  cat "$OUT/wait" >&2
  exit 1
}

k() { kubectl --namespace $NAMESPACE "$@"; }

# Splits a fixture into old.yaml (empty without one) and new.yaml.
split() {
  : >"$OUT/old.yaml"
  if grep -qx -- --- "$1"; then
    sed '/^---$/,$d' "$1" >"$OUT/old.yaml"
    sed '1,/^---$/d' "$1" >"$OUT/new.yaml"
  else
    cp "$1" "$OUT/new.yaml"
  fi
}

# ask FIXTURE : what the API server says of it is in answer; false if it rejects it.
ask() {
  local rc=0
  split "$1"
  if [ -s "$OUT/old.yaml" ]; then k apply -f "$OUT/old.yaml" >/dev/null; fi
  k apply --dry-run=server -f "$OUT/new.yaml" >"$OUT/answer" 2>&1 || rc=1
  if [ -s "$OUT/old.yaml" ]; then k delete -f "$OUT/old.yaml" >/dev/null; fi
  return $rc
}

verdict() { # OK FIXTURE
  if [ "$1" = yes ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED %s\n%s\n' "$2" "$(cat "$OUT/answer")" >&2
  fi
}

for fixture in tests/fixtures/accept/*.yaml; do
  if ask "$fixture"; then verdict yes "$fixture"; else verdict no "$fixture"; fi
done
for fixture in tests/fixtures/reject/*.yaml; do
  expected=$(sed -n '1s/^# expect: //p' "$fixture")
  if ask "$fixture"; then
    verdict no "$fixture (accepted)"
  elif grep -qF -- "$expected" "$OUT/answer"; then
    verdict yes "$fixture"
  else
    verdict no "$fixture (expected: $expected)"
  fi
done

# What was applied is what is kept: no default was filled in.
k apply -f tests/fixtures/accept/minimal.yaml >/dev/null
kept=$(k get -f tests/fixtures/accept/minimal.yaml -o jsonpath='{.spec}')
k delete -f tests/fixtures/accept/minimal.yaml >/dev/null
[ "$kept" = '{"instances":3,"storage":{"size":"10Gi"},"suspend":true}' ] || {
  failed=$((failed + 1))
  echo "FAILED: the API server changed the spec: $kept" >&2
}

echo "rules: $passed passed, $failed failed"
[ "$failed" = 0 ]
