#!/usr/bin/env bash
# Sourced by the scripts at the paper's scale: sets LAUNCH, the command that starts fairseq-train on every
# GPU, and BATCH_SIZE, the streams of each GPU, so that GPUs x BATCH_SIZE x UPDATE_FREQ is GLOBAL_BATCH.
#
# One machine: torchrun with GPUS processes. Several, from the checkout, one task for each machine:
#
#   DATA_DIR=... BACKBONE=... SAVE_DIR=... sbatch --nodes 4 --ntasks-per-node 1 --gpus-per-node 8 \
#     --cpus-per-task 64 --wrap "bash train_scripts/paper_adapt.sh"
#
# and srun starts torchrun on all of them. --wrap, because sbatch runs a copy of a script that it is given,
# which has no train_scripts beside it; --cpus-per-task: the cores of a machine, else a task has one.
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
  hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  LAUNCH="srun"
  if [[ -n "${SLURM_CPUS_PER_TASK:-}" ]]; then # srun does not take it from sbatch, from Slurm 22.05 on
    LAUNCH+=" --cpus-per-task $SLURM_CPUS_PER_TASK"
  fi
  LAUNCH+=" torchrun --nnodes $NODES --nproc-per-node $GPUS --rdzv-id $SLURM_JOB_ID"
  LAUNCH+=" --rdzv-backend c10d --rdzv-endpoint ${hosts%%$'\n'*}:29500 --no-python"
fi
export LAUNCH
