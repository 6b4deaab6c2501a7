# shellcheck shell=bash
# pgherd, with its defaults, reading the data directory itself.
version() { pgherd --version; }
backup() { pgherd backup --location keys/pgherd-local.json --local /work/data --host "$PGHOST" ${RATE:+--max-rate "$RATE"}; }
restore() { pgherd restore --location keys/pgherd-local.json --target "$RESTORED"; }
