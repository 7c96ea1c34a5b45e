#!/usr/bin/env bash
# Trains a SideNet beside a frozen backbone, with memory or (--no-memory) without.
#
#   DATA_DIR=data/books BACKBONE=runs/backbone/checkpoint_last.pt SAVE_DIR=runs/longmem \
#     RETRIEVAL_LAYER_INDEX=17 bash train_scripts/train_longmem.sh
#
# Defaults are the paper's (section 4.1 of arXiv 2306.07174), except that the SideNet starts from the
# backbone's own predictions and has its activation; SIDENET_INIT=released ACTIVATION_FN=released make it
# the paper's. Arguments go to fairseq-train, which LAUNCH starts if it is set (a torchrun command; see
# paper_adapt.sh). Expect, for quickstart.sh, a training loss of about 1.90 (base 2) with memory, 2.00
# without.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"

DATA_DIR=${DATA_DIR:?folder made by preprocess/prepare_corpus.py}
BACKBONE=${BACKBONE:?checkpoint of the backbone}
SAVE_DIR=${SAVE_DIR:?folder for the checkpoint}
UPDATES=${UPDATES:-100000}
read -ra launch <<<"${LAUNCH:-}"

model=(--arch "${ARCH:-longmem}" --pretrained-model-path "$BACKBONE" --compute-dtype "$COMPUTE_DTYPE")
if [[ "${ARCH:-longmem}" == longmem ]]; then
  model+=(--layer-reduction-factor "${LAYER_REDUCTION_FACTOR:-2}"
    --sidenet-init "${SIDENET_INIT:-identity}" --activation-fn "${ACTIVATION_FN:-backbone}")
fi
memory=(--retrieval-layer-index "${RETRIEVAL_LAYER_INDEX:-17}" --memory-size "${MEMORY_SIZE:-65536}"
  --chunk-size "${CHUNK_SIZE:-4}" --k "${K:-64}" --gate-lr-multiplier "${GATE_LR_MULTIPLIER:-20}")
data=(--tokens-per-sample "${TOKENS_PER_SAMPLE:-1024}" --stream-span "${STREAM_SPAN:-64}"
  --batch-size "${BATCH_SIZE:-256}")
optimization=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --weight-decay 0.01
  --clip-norm 1.0 --lr "${LR:-2e-4}" --lr-scheduler polynomial_decay
  --warmup-updates "${WARMUP_UPDATES:-30}" --total-num-update "$UPDATES" --max-update "$UPDATES")
logging=(--log-format simple --log-interval 100 --no-epoch-checkpoints --disable-validation)

"${launch[@]}" fairseq-train "$DATA_DIR" \
  --user-dir "$here/../longmem_fairseq" --task longmem_language_modeling \
  --criterion longmem_cross_entropy --save-dir "$SAVE_DIR" --seed "${SEED:-1}" \
  "${model[@]}" "${memory[@]}" "${data[@]}" "${optimization[@]}" "${logging[@]}" "$@"
bash "$here/copy_vocabulary.sh" "$DATA_DIR" "$SAVE_DIR"
