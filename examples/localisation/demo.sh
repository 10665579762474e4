#!/usr/bin/env bash
# The whole road in one script: corpus, data, expert-parallel training, one checkpoint, BLEU, report.
# Each step is skipped when its product is there; an interrupted training goes on where it was.
# Everything lands in runs/demo (or the folder that $RUN names); $EXTRA holds further training flags.
set -euo pipefail
cd "$(dirname "$0")/../.."

RUN=${RUN:-runs/demo}
LANGUAGES=ca,es,fr,gl,it,nl,pt,sv
UPDATES=${UPDATES:-800}
WARMUP=${WARMUP:-150}
export OMP_NUM_THREADS=1  # one thread for each of the two ranks
mkdir -p "$RUN"

step() { printf '\n== %s\n' "$*"; }

step "1/7 corpus: $RUN/corpus"
python examples/localisation/build_corpus.py --out "$RUN/corpus" --languages "$LANGUAGES"

step "2/7 subwords, dictionary, binarised data: $RUN/data"
zcode prepare --raw "$RUN/corpus/raw" --out "$RUN/data" --vocab-size 8000 \
  --character-coverage 1

step "3/7 training on 2 ranks with 4 experts each: $RUN/checkpoints"
if [ -e "$RUN/trained" ]; then
  echo "finished already"
else
  torchrun --standalone --nproc-per-node=2 "$(command -v fairseq-train)" "$RUN/data" \
    --user-dir zcode_plugin --task multitask_multilingual \
    --multitask "mt:1,dae:0.3" --multitask-max-tokens "dae:128" \
    --encoder-langtok tgt --decoder-langtok \
    --sampling-method temperature --sampling-temperature 5 \
    --arch moe_transformer_tiny --dropout 0 --moe-expert-count 8 --expert-parallel-size 2 \
    --moe-token-priority rts --moe-capacity-factor 1.25 \
    --criterion multitask_summed_loss --label-smoothing 0.1 --moe-gate-loss-wt 0.05 \
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 \
    --lr 0.004 --lr-scheduler polynomial_decay --warmup-updates "$WARMUP" \
    --total-num-update "$UPDATES" --max-update "$UPDATES" --max-tokens 1024 \
    --cpu --distributed-backend gloo --ddp-backend legacy_ddp --num-workers 0 --data-buffer-size 0 \
    --no-epoch-checkpoints --validate-interval 1000 --validate-interval-updates 200 \
    --log-format json --log-file "$RUN/train.log" --log-interval 20 \
    --save-dir "$RUN/checkpoints" ${EXTRA:-} \
    2>"$RUN/train.err" |
    sed -u -nE '/ \| (train_inner|valid) \| /{
      s/[{}"]//g; s/, (valid_)?(mt_nll_loss_|moe_gate_loss).*(num_updates: [0-9]+).*/, \3/; p; }' || {
      tail -n 30 "$RUN/train.err" >&2
      exit 1
    }
  touch "$RUN/trained"
fi

step "4/7 one checkpoint for one process: $RUN/model.pt"
if [ -e "$RUN/model.pt" ] && [ "$RUN/model.pt" -nt "$RUN/trained" ]; then
  echo "finished already"
else
  zcode merge "$RUN/checkpoints/checkpoint_last-rank-0.pt" --out "$RUN/model.pt" --force
fi

step "5/7 translation with fairseq-generate and scores: $RUN/results.json"
if [ -e "$RUN/results.txt" ] && [ "$RUN/results.txt" -nt "$RUN/model.pt" ]; then
  echo "finished already"
else
  zcode evaluate "$RUN/data" --path "$RUN/model.pt" --copy-baseline --out "$RUN/results.json" \
    -- --cpu | tee "$RUN/results.partial"
  mv "$RUN/results.partial" "$RUN/results.txt"
fi
cat "$RUN/results.txt"

step "6/7 what each expert does, with the capacity of training: $RUN/stats.json"
if [ -e "$RUN/stats.json" ] && [ "$RUN/stats.json" -nt "$RUN/model.pt" ]; then
  echo "finished already"
else
  zcode stats "$RUN/model.pt" "$RUN/data" --capacity-factor 1.25 --cpu --out "$RUN/stats.json" --force
fi

step "7/7 all of it on one page: $RUN/report.html"
if python -c "import matplotlib" 2>/dev/null; then
  zcode report "$RUN" --model-card "$RUN/model_card.md"
else
  echo "skipped: pip install matplotlib, then: zcode report $RUN"
fi
