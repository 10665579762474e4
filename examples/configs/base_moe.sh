#!/usr/bin/env bash
# The run of base_moe.yaml, as flags; see README.md beside this file. Options given come last.
set -euo pipefail
exec torchrun --nproc-per-node="${RANKS:-2}" "$(command -v fairseq-train)" data \
  --user-dir zcode_plugin --log-format simple --log-interval 100 \
  --task multitask_multilingual --multitask "mt:1,dae:0.3" --encoder-langtok tgt \
  --sampling-method temperature --sampling-temperature 2 \
  --arch moe_transformer_base --dropout 0.1 \
  --moe-expert-count 8 --moe-token-priority rts --expert-parallel-size 2 \
  --criterion multitask_summed_loss --label-smoothing 0.1 --moe-gate-loss-wt 0.01 \
  --optimizer adam --adam-betas "(0.9, 0.98)" \
  --lr-scheduler inverse_sqrt --warmup-updates 4000 \
  --lr 0.0005 --clip-norm 1.0 --max-update 50000 \
  --max-tokens 4096 --ddp-backend legacy_ddp \
  --save-dir checkpoints --save-interval-updates 1000 --keep-interval-updates 3 \
  --no-epoch-checkpoints "$@"
