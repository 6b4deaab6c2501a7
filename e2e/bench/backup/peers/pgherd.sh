# shellcheck shell=bash
# pgherd, with its defaults. A backup carries its WAL, so none is archived beside it; for the archive the benchmark starts a
# stand-in for the agent.
version() { pgherd --version; }
backup() { pgherd backup --location keys/pgherd.json --host "$PGHOST" ${RATE:+--max-rate "$RATE"}; }
restore() { pgherd restore --location keys/pgherd.json --target "$RESTORED"; }
archive_command_agent() { echo 'pgherd archive-wal %p %f'; }
