#!/usr/bin/env bash
# call.sh PEER FUNCTION : runs a function of a peer's file in this folder, inside the benchmark's root file system.
#   version                                            one line
#   prepare, backup, restore, archive_command          what each peer has; not all have all of them
# In the environment: RESTORED (the folder to restore into), RATE (kB/s that the server may be read at, or empty),
# STORED (bytes that pgherd's backup of this data takes in the store).
set -euo pipefail
export PGHOST=/work/run PGUSER=postgres PGDATABASE=postgres
export MC_CONFIG_DIR=/work/mc AWS_SHARED_CREDENTIALS_FILE=/work/keys/aws AWS_CA_BUNDLE=/work/tls/ca.crt
PEER=$1
cd /work
# What a peer need not have.
prepare() { :; }
archive_command() { echo /bin/true; }
# shellcheck source=/dev/null
. "/opt/peers/$PEER.sh"
"$2"
