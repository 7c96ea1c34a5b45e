#!/usr/bin/env bash
# Trains a SideNet beside a frozen backbone, with memory or (--no-memory) without.
#
#   DATA_DIR=data/books BACKBONE=runs/backbone/checkpoint_last.pt SAVE_DIR=runs/longmem \
#     RETRIEVAL_LAYER_INDEX=17 bash train_scripts/train_longmem.sh
#
# Defaults are the paper's (section 4.1 of arXiv 2306.07174), except that the SideNet starts from the
# backbone's own predictions and has its activation; --sidenet-init released --activation-fn released make it
# the paper's. Arguments go to fairseq-train, which LAUNCH starts if it is set (a torchrun command; see
# paper_adapt.sh). Expect, for quickstart.sh, a training loss of about 1.90 (base 2) with memory, 2.00
# without.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/training.sh
source "$here/training.sh"

BACKBONE=${BACKBONE:?checkpoint of the backbone}
ARCH=${ARCH:-longmem}
model=(--arch "$ARCH" --pretrained-model-path "$BACKBONE")
if [[ "$ARCH" == longmem ]]; then
  model+=(--layer-reduction-factor 2 --sidenet-init identity --activation-fn backbone)
fi
memory=(--retrieval-layer-index "${RETRIEVAL_LAYER_INDEX:-17}" --memory-size 65536
  --chunk-size "${CHUNK_SIZE:-4}" --k 64 --gate-lr-multiplier 20)
fit "$DATA_DIR" "${model[@]}" "${memory[@]}" --warmup-updates 30 "$@"
