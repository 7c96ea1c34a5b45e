#!/usr/bin/env bash
# The paper's memory-augmented adaptation (section 4.1) on 8 GPUs, or more machines of 8 (see
# paper_launch.sh): the SideNet (151M parameters) beside the frozen GPT-2*, or a baseline.
#
#   DATA_DIR=data/pile BACKBONE=runs/paper/backbone/checkpoint_last.pt SAVE_DIR=runs/paper/longmem \
#     bash train_scripts/paper_adapt.sh
#   ARCH=memtrm ... bash train_scripts/paper_adapt.sh                     # MemTRM, the same way
#   ... bash train_scripts/paper_adapt.sh --no-memory                     # SideNet without memory
#
# Hyper-parameters are the paper's: Adam (0.9, 0.98), eps 1e-6, lr 2e-4, polynomial decay, weight decay
# 0.01, 256 segments of 1,024 tokens, 100,000 updates (26B tokens); memory of 65,536 tokens, chunks of 4,
# 64 tokens retrieved, layer 17 (of 0 to 23) cached, SideNet of 12 layers initialized from the backbone.
# Ours, not the paper's: --clip-norm 1.0, 2,000 warm-up updates, --stream-span 64.
# bfloat16 stands for its fp16, and every stream has a memory of its own (--memory-scope batch: one for
# all, as in the released code). A stream's memory takes 335 MB: 2.7 GB for each GPU with the defaults.
# Beside each of up to three checkpoints lies that of all streams: 64 x 335 MB = 21 GB with the defaults, 86
# GB with UPDATE_FREQ=1 (256 streams). --no-save-memory leaves it out; a resumed run then has an empty one.
# Expect the paper's ratio: ArXiv 10.05 against the backbone's 11.05. Arguments go to fairseq-train.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/paper_launch.sh
source "$here/paper_launch.sh"

export ARCH=${ARCH:-longmem} TOKENS_PER_SAMPLE=1024 COMPUTE_DTYPE=${COMPUTE_DTYPE:-bfloat16}
export UPDATES=${UPDATES:-100000} LR=${LR:-2e-4} RETRIEVAL_LAYER_INDEX=17 CHUNK_SIZE=4
sidenet=()
if [[ "$ARCH" == longmem ]]; then sidenet=(--sidenet-init released --activation-fn released); fi
exec bash "$here/train_longmem.sh" --update-freq "$UPDATE_FREQ" --warmup-updates 2000 \
  --gate-lr-multiplier 1 "${sidenet[@]}" \
  --save-interval-updates 10000 --keep-interval-updates 2 "$@"
