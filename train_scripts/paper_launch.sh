#!/usr/bin/env bash
# Sourced by the scripts at the paper's scale: sets LAUNCH, the command that starts fairseq-train on every
# GPU, and BATCH_SIZE, the streams of each GPU, so that GPUs x BATCH_SIZE x UPDATE_FREQ is GLOBAL_BATCH.
#
# One machine: torchrun with GPUS processes. Several: submit the script with sbatch, one task for each
# machine (sbatch --nodes 2 --ntasks-per-node 1 --gpus-per-node 8 train_scripts/paper_adapt.sh); srun then
# starts torchrun on all of them.
GPUS=${GPUS:-8} # of each machine
NODES=${SLURM_NNODES:-1}
UPDATE_FREQ=${UPDATE_FREQ:-4} # segments of each stream for an update
GLOBAL_BATCH=${GLOBAL_BATCH:-256}

if ((GLOBAL_BATCH % (GPUS * NODES * UPDATE_FREQ) != 0)); then
  echo "$(basename "$0"): error: GLOBAL_BATCH ($GLOBAL_BATCH) must be a multiple of GPUS ($GPUS) x machines" \
    "($NODES) x UPDATE_FREQ ($UPDATE_FREQ)" >&2
  exit 2
fi
export BATCH_SIZE=$((GLOBAL_BATCH / (GPUS * NODES * UPDATE_FREQ)))

LAUNCH="torchrun --nproc-per-node $GPUS --no-python"
if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  LAUNCH="srun torchrun --nnodes $NODES --nproc-per-node $GPUS --rdzv-id $SLURM_JOB_ID"
  LAUNCH+=" --rdzv-backend c10d --rdzv-endpoint $head:${MASTER_PORT:-29500} --no-python"
fi
export LAUNCH
