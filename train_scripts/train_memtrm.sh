#!/usr/bin/env bash
# Trains the MemTRM baseline: the same backbone with memory in its own layer, all of it trained.
#
#   DATA_DIR=data/books BACKBONE=runs/backbone/checkpoint_last.pt SAVE_DIR=runs/memtrm \
#     RETRIEVAL_LAYER_INDEX=17 bash train_scripts/train_memtrm.sh
#
# Same data, settings and defaults as train_longmem.sh, which it calls. Arguments go to fairseq-train.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ARCH=memtrm exec bash "$here/train_longmem.sh" "$@"
