#!/usr/bin/env bash
# $NODES machines with $RANKS ranks each: run this on every one of them. $HEAD is the first one.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/options.sh"
: "${NODES:?how many machines}" "${HEAD:?host name of the first machine}"
# shellcheck disable=SC2086 # several options
exec torchrun --nnodes "$NODES" --nproc-per-node "${RANKS:-1}" --rdzv-id "${JOB:-zcode}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29400}" ${TORCHRUN_OPTIONS:-} \
  "$(command -v fairseq-train)" "${TRAIN[@]}"
