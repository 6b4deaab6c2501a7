#!/usr/bin/env bash
# deps.sh : what a build needs beyond a Debian without anything: packages by apt, and a Rust that is new enough. The
# cluster installs its own (cluster/build.sh).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"

ROOT=$(cd "$HERE/../.." && pwd)
# postgresql-15: the tests of the agent and of the backup stream run against a real server; age: an encrypted backup is opened by
# the command that users have.
PACKAGES=(gcc g++ libc6-dev make binutils pkg-config ca-certificates curl git jq openssl shellcheck postgresql-15 zstd age)

missing_packages() {
  local p
  for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q '^install ok installed' || echo "$p"
  done
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "not a Debian: please install the like of: ${missing[*]}"
  need_root
  # A database of Debian's own would be started on installing, and is not wanted.
  mkdir -p /etc/postgresql-common
  [ -e /etc/postgresql-common/createcluster.conf ] ||
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  mkdir -p "$CACHE/log"
  with_heartbeat "apt-get update" "$CACHE/log/apt-update.log" apt-get update -q
  with_heartbeat "apt-get install ${missing[*]}" "$CACHE/log/apt-install-deps.log" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

# True if the version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

check_rust() {
  local wanted have=none
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
  if command -v cargo >/dev/null; then have=$(cargo --version | cut -d' ' -f2); fi
  if [ "$have" != none ] && at_least "$have" "$wanted"; then return 0; fi
  {
    echo "error: pgherd needs Rust $wanted or newer (here: $have; Debian 12 has an older one). Get it by:"
    if command -v rustup >/dev/null; then
      echo "    rustup toolchain install stable && rustup default stable"
    else
      echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy"
      echo "    . \"\$HOME/.cargo/env\""
    fi
    echo "and run make again."
  } >&2
  exit 1
}

install_packages
check_rust
