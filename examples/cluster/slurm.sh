#!/usr/bin/env bash
#SBATCH --job-name zcode
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 8
#SBATCH --requeue
# Two tasks or more on each machine, one for each GPU: DATA=... SAVE=... sbatch slurm.sh
# fairseq finds rank, world and first machine in what SLURM sets; a requeued job goes on from the
# last checkpoint. sbatch runs a copy of this file: $CLUSTER is the folder that it came from.
set -euo pipefail
source "${CLUSTER:-${SLURM_SUBMIT_DIR:-.}}/options.sh"
exec srun --kill-on-bad-exit=1 fairseq-train "${TRAIN[@]}" \
  --distributed-port "${PORT:-29500}" --distributed-world-size "$SLURM_NTASKS"
