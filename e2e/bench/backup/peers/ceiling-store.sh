# shellcheck shell=bash
# How long the store takes for as many bytes as pgherd's backup has, in three parts of 5 MiB at a time.
version() { mc --version | head -n 1; }
backup() {
  head -c "$STORED" /dev/zero | mc pipe --quiet --concurrent 3 --part-size 5MiB store/backups/ceiling-store/zeros
}
