# The training command's options: the same on a laptop and on a cluster. Sourced by the launchers.
# Needs $DATA (binarised data; a path on each machine) and $SAVE (one folder that all machines see,
# since every rank saves and loads a file of its own there). Options given to a launcher come last.
: "${DATA:?name the binarised data}" "${SAVE:?name the checkpoint folder}"
TRAIN=(
  "$DATA" --save-dir "$SAVE"
  --user-dir "$(python -c 'import zcode_plugin; print(*zcode_plugin.__path__)')"
  --task multitask_multilingual --multitask "mt:1,dae:0.3" --encoder-langtok tgt
  --sampling-method temperature --sampling-temperature 2
  --arch moe_transformer_base --moe-expert-count 32 --expert-parallel-size "${EXPERT_RANKS:-2}"
  --criterion multitask_summed_loss --label-smoothing 0.1
  --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0
  --lr 0.0005 --lr-scheduler inverse_sqrt --warmup-updates 4000
  --max-tokens 4096 --max-update 50000 --ddp-backend legacy_ddp
  --save-interval-updates 1000 --keep-interval-updates 3 --no-epoch-checkpoints
  --distributed-timeout 900
  "$@"
)
