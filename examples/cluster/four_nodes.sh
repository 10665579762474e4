#!/usr/bin/env bash
# Four machines on one: torchrun.sh in four network namespaces, each with its own address, working
# directory, TMPDIR, /dev/shm and copy of the data. Only $SAVE is shared. Needs root and iproute2.
set -euo pipefail
CLUSTER=$(dirname "$(readlink -f "$0")")
: "${DATA:?name the binarised data}" "${SAVE:?name the checkpoint folder}"
BRIDGE=zc$$
ROOM=$(mktemp -d)
export CLUSTER SAVE NODES=4 HEAD=10.77.0.1 GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

close() {
  for node in 1 2 3 4; do ip netns del "$BRIDGE-$node" 2>/dev/null || true; done
  ip link del "$BRIDGE" 2>/dev/null || true
  rm -rf "$ROOM"
}
trap close EXIT

ip link add "$BRIDGE" type bridge
ip link set "$BRIDGE" up
clients=()
for node in 1 2 3 4; do
  name="$BRIDGE-$node"
  ip netns add "$name"
  ip link add "v$name" type veth peer name eth0 netns "$name"
  ip link set "v$name" master "$BRIDGE" up
  ip -n "$name" addr add "10.77.0.$node/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  mkdir -p "$ROOM/$node/tmp"
  cp -r "$DATA" "$ROOM/$node/data"
  # Host names mean nothing between these: each client is told its address, the first that it leads.
  DATA="$ROOM/$node/data" TMPDIR="$ROOM/$node/tmp" \
  TORCHRUN_OPTIONS="--local-addr 10.77.0.$node --rdzv-conf is_host=$((node == 1))" \
    ip netns exec "$name" unshare --mount bash -euc \
    'mount -t tmpfs none /dev/shm; cd "$TMPDIR"; exec bash "$CLUSTER/torchrun.sh" "$@"' - "$@" &
  clients+=($!)
done
for client in "${clients[@]}"; do wait "$client"; done
