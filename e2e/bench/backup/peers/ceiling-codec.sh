# shellcheck shell=bash
# What zstd 1 with two threads compresses of the same files, from the page cache to nowhere.
version() { zstd --version; }
backup() { find data/base data/global -type f -print0 | xargs -0 cat | zstd -q -1 -T2 >/dev/null; }
