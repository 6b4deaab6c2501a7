# shellcheck shell=bash
# What one walsender gives: the same stream to nowhere.
version() { pg_basebackup --version; }
backup() { pg_basebackup -Ft -X fetch -c fast -D - >/dev/null; }
