#!/usr/bin/env bash
# node.sh cut|heal|freeze|thaw|ip NODE : does to a node what happens to nodes.
#   cut    pulls its network cable: no API server, no other node, nothing; what
#          runs on it runs on.   heal plugs it in again.
#   freeze stops everything on it, as if the machine hung.   thaw lets it go on.
#   ip     prints its address.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/proc.sh"
. "$HERE/network.sh"

embedded() { # ACTION NODE
  need_root
  has_netns "$2" || die "no such node: $2 (there are ${NODES[*]})"
  case $1 in
    cut) disconnect "$2" ;;
    heal) connect "$2" ;;
    freeze) freeze "$2" ;;
    thaw) thaw "$2" ;;
    ip) ip_of "$2" ;;
  esac
}

# In kind a node is a container; its only way out is its eth0.
in_kind() { # ACTION NODE
  case $1 in
    cut) docker exec "$2" sh -c 'ip route show default >/run/cut-route; ip link set eth0 down' ;;
    heal) docker exec "$2" sh -c 'ip link set eth0 up; ip route replace $(cat /run/cut-route)' ;;
    freeze) docker pause "$2" ;;
    thaw) docker unpause "$2" ;;
    ip) docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$2" ;;
  esac
}

[[ $# = 2 && $1 =~ ^(cut|heal|freeze|thaw|ip)$ ]] || die "usage: node.sh cut|heal|freeze|thaw|ip NODE"
case $(engine) in
  embedded) embedded "$1" "$2" ;;
  kind) in_kind "$1" "$2" ;;
  external) die "this cluster is not ours, its nodes are left alone" ;;
esac
