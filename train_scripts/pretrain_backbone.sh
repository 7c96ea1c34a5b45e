#!/usr/bin/env bash
# Pre-trains a backbone on document streams. Defaults: the paper's GPT-2* (24 x 1024) and batch.
#
#   DATA_DIR=data/books SAVE_DIR=runs/backbone bash train_scripts/pretrain_backbone.sh
#
# Small backbones learn to copy first if the first epoch is a recital (preprocess/make_recital.py):
# RECITAL_DIR, together with SMEARED_KEY_LAYERS. Arguments go to fairseq-train, which LAUNCH starts if it is
# set (a torchrun command; see paper_pretrain.sh).
# Leaves checkpoint_last.pt, dictionary and tokenizer in SAVE_DIR. Expect, for the recall corpus of
# quickstart.sh (tiny, 1,000 updates), a training loss of about 1.95 (base 2).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/training.sh
source "$here/training.sh"

RECITAL_DIR=${RECITAL_DIR:-}
model=(--arch "${ARCH:-longmem_backbone_medium}")
if [[ -n "${SMEARED_KEY_LAYERS:-}" ]]; then
  model+=(--smeared-key-layers "$SMEARED_KEY_LAYERS")
fi
fit "${RECITAL_DIR:+$RECITAL_DIR:}$DATA_DIR" "${model[@]}" --warmup-updates 100 "$@"
