#!/usr/bin/env bash
# One machine, $RANKS ranks.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/options.sh"
exec torchrun --standalone --nproc-per-node "${RANKS:-2}" "$(command -v fairseq-train)" "${TRAIN[@]}"
