# shellcheck shell=bash
# The network: a namespace kcp for the control plane with a bridge br0, one
# namespace per node, joined to the bridge by a pair v<N> (here) and eth0 (in the
# node). Nothing of it is reachable from the host but the API server, see up.sh.
# Every function may be called again at any time. Sourced.

NET=172.30.0
CONTROL=kcp
CONTROL_IP=$NET.1
index_of() { echo "${1#kn}"; }
ip_of() { echo "$NET.1$(index_of "$1")"; }
pods_of() { echo "10.244.$(index_of "$1").0/24"; }
mac_of() { echo "02:00:ac:1e:00:0$(index_of "$1")"; }
CONTROL_MAC=02:00:ac:1e:00:fe

has_link() { ip -n "$1" link show "$2" >/dev/null 2>&1; }
has_netns() { [ -e "/run/netns/$1" ]; }

# reach FROM VIA-DEVICE TO-IP TO-MAC : a fixed neighbour entry. With it, packets
# to a node that is cut off vanish as they do in a data centre; without it, the
# kernel would notice within seconds and answer "no route to host".
reach() { ip -n "$1" neigh replace "$3" lladdr "$4" dev "$2" nud permanent; }

network_up() {
  local n m
  has_netns $CONTROL || ip netns add $CONTROL
  ip -n $CONTROL link set lo up
  has_link $CONTROL br0 || ip -n $CONTROL link add br0 address $CONTROL_MAC type bridge
  ip -n $CONTROL addr replace $CONTROL_IP/24 dev br0
  ip -n $CONTROL link set br0 up
  ip netns exec $CONTROL sysctl -qw net.ipv4.ip_forward=1
  for n in "${NODES[@]}"; do
    has_netns "$n" || ip netns add "$n"
    ip -n "$n" link set lo up
    has_link "$n" eth0 ||
      ip link add "v$(index_of "$n")" netns $CONTROL type veth peer name eth0 address "$(mac_of "$n")" netns "$n"
    ip netns exec "$n" sysctl -qw net.ipv4.ip_forward=1
    connect "$n"
  done
  for n in "${NODES[@]}"; do
    for m in "${NODES[@]}"; do
      [ "$n" != "$m" ] || continue
      reach "$n" eth0 "$(ip_of "$m")" "$(mac_of "$m")"
      ip -n "$n" route replace "$(pods_of "$m")" via "$(ip_of "$m")"
    done
  done
}

# connect NODE : its cable and what the kernel forgets when that is pulled.
connect() {
  local n=$1
  ip -n $CONTROL link set "v$(index_of "$n")" master br0 up
  ip -n "$n" addr replace "$(ip_of "$n")/24" dev eth0
  ip -n "$n" link set eth0 up
  ip -n "$n" route replace default via $CONTROL_IP
  reach "$n" eth0 $CONTROL_IP $CONTROL_MAC
  reach $CONTROL br0 "$(ip_of "$n")" "$(mac_of "$n")"
  ip -n $CONTROL route replace "$(pods_of "$n")" via "$(ip_of "$n")"
}

disconnect() { ip -n $CONTROL link set "v$(index_of "$1")" down; }
