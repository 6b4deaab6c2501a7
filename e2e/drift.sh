#!/usr/bin/env bash
# drift.sh CRDGEN : fails if a generated file is not what its source says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

"$1" --check crds docs/api.md
diff <(cd crds && cat ./*.yaml) <(cd charts/pgherd/files/crds && cat ./*.yaml) >/dev/null ||
  fail "charts/pgherd/files/crds differs from crds: run \`make chart\`"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
for chart in charts/*/Chart.yaml; do
  [ "$(grep -cxE "(version|appVersion): $version" "$chart")" = 2 ] || fail "$chart is not of version $version: run \`make chart\`"
done
echo "crds, charts: current"
