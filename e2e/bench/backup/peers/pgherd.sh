# shellcheck shell=bash
# pgherd, with its defaults. The agent's part of archiving is a stand-in that the benchmark starts.
version() { pgherd --version; }
backup() { pgherd backup --location keys/pgherd.json --host "$PGHOST" ${RATE:+--max-rate "$RATE"}; }
restore() { pgherd restore --location keys/pgherd.json --target "$RESTORED"; }
archive_command() { echo 'pgherd archive-wal %p %f'; }
