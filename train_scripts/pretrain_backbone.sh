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
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"

DATA_DIR=${DATA_DIR:?folder made by preprocess/prepare_corpus.py}
SAVE_DIR=${SAVE_DIR:?folder for the checkpoint}
RECITAL_DIR=${RECITAL_DIR:-}
UPDATES=${UPDATES:-100000}
read -ra launch <<<"${LAUNCH:-}"

model=(--arch "${ARCH:-longmem_backbone_medium}" --compute-dtype "$COMPUTE_DTYPE")
if [[ -n "${SMEARED_KEY_LAYERS:-}" ]]; then
  model+=(--smeared-key-layers "$SMEARED_KEY_LAYERS")
fi
data=(--tokens-per-sample "${TOKENS_PER_SAMPLE:-1024}" --stream-span "${STREAM_SPAN:-64}"
  --batch-size "${BATCH_SIZE:-256}")
optimization=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --weight-decay 0.01
  --clip-norm 1.0 --lr "${LR:-2e-4}" --lr-scheduler polynomial_decay
  --warmup-updates "${WARMUP_UPDATES:-100}" --total-num-update "$UPDATES" --max-update "$UPDATES")
logging=(--log-format simple --log-interval 100 --no-epoch-checkpoints --disable-validation)

"${launch[@]}" fairseq-train "${RECITAL_DIR:+$RECITAL_DIR:}$DATA_DIR" \
  --user-dir "$here/../longmem_fairseq" --task longmem_language_modeling \
  --criterion longmem_cross_entropy --save-dir "$SAVE_DIR" --seed "${SEED:-1}" \
  "${model[@]}" "${data[@]}" "${optimization[@]}" "${logging[@]}" "$@"
bash "$here/copy_vocabulary.sh" "$DATA_DIR" "$SAVE_DIR"
