#!/usr/bin/env bash
# with-cluster.sh COMMAND... : runs a command with KUBECONFIG set to the cluster that is up, and with kubectl, helm and mc
# on PATH.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"
use_cluster
exec "$@"
