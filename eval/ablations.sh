#!/usr/bin/env bash
# Ablations (section 4.5 and figures 4, 5 of the paper), a part for each name in PARTS:
#
#   grid       chunk size x memory size: perplexity, and accuracy on one task of in-context learning, with 200
#              and 2,000 demonstrations in memory; the lines also have the weight (gate) that every
#              head gives to memory
#   scope      a bank for each stream against one for the batch, as in the released code
#   layer      which backbone layer is cached: trains a SideNet for each of LAYERS
#   staleness  MemTRM reading a memory that older checkpoints of it wrote, against LongMem, whose memory
#              never ages. Trains MemTRM with a checkpoint every STALENESS_INTERVAL updates.
#
#   RUN_DIR=runs/books DATA_DIR=runs/books/data ICL_DATA=data/icl bash eval/ablations.sh
#
# Expect from the paper: in-context learning is best with chunks of 2; a larger memory is not always better
# (16k suited books better than the 65k of its training). Settings: those of eval/benchmark.sh and train_scripts/train_longmem.sh, and below;
# the models that layer and staleness train have the paper's size and window unless settings say another, as
# in docs/reproducing.md. Arguments go to eval/evaluate.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"
# shellcheck source=train_scripts/steps.sh
source "$here/../train_scripts/steps.sh"

DATA_DIR=${DATA_DIR:?folder made by preprocess/prepare_corpus.py}
read -ra parts <<<"${PARTS:-grid scope layer staleness}"
export UPDATES=${UPDATES:-100000} # of every training, which steps.sh tells how far it is

perplexity() { # PART MODEL NAME [ARGUMENT ...]
  local part=$1 model=$2 name=$3
  shift 3
  run_model "ablation_$part" evaluate "$model" "$name" "$DATA_DIR" --benchmark "ablation_$part" \
    --batch-size 8 "$@"
}

log() { echo "$*"; }

grid() {
  local chunk size
  for chunk in 2 4 8; do
    for size in 8192 16384 32768 65536; do
      perplexity grid longmem "chunk $chunk, memory $size" "${memory_options[@]}" \
        --chunk-size "$chunk" --memory-size "$size" "$@"
    done
    if [[ -n "${ICL_DATA:-}" ]]; then
      run_model ablation_icl icl longmem "chunk $chunk" --data "$ICL_DATA" --tasks SST-2 \
        --shots 20 --memory-demonstrations 200,2000 \
        --scoring argmax "${memory_options[@]}" --chunk-size "$chunk" --memory-size 131072
    fi
  done
}

scope() {
  local scope
  for scope in stream batch; do
    perplexity scope longmem "scope $scope" --memory-scope "$scope" "${memory_options[@]}" "$@"
  done
}

layer() {
  local layer
  read -ra layers <<<"${LAYERS:-1 2 3}"
  BACKBONE=$(checkpoint_of backbone)
  export BACKBONE
  for layer in "${layers[@]}"; do
    RETRIEVAL_LAYER_INDEX=$layer train "longmem_layer$layer" train_longmem.sh --no-save-memory
    perplexity layer "longmem_layer$layer" "layer $layer" "${memory_options[@]}" "$@"
  done
}

staleness() {
  local interval=${STALENESS_INTERVAL:-100} model checkpoint age checkpoints
  BACKBONE=$(checkpoint_of backbone)
  export BACKBONE
  for model in memtrm longmem; do
    train "${model}_ages" "train_$model.sh" --no-save-memory --save-interval-updates "$interval"
    perplexity staleness "${model}_ages" "$model without memory" --no-memory "$@"
    perplexity staleness "${model}_ages" "$model, memory of its own" "${memory_options[@]}" "$@"
    mapfile -t checkpoints < <(printf '%s\n' "$RUN_DIR/${model}_ages"/checkpoint_*_*.pt | sort -V)
    for checkpoint in "${checkpoints[@]}"; do
      age=${checkpoint##*_}
      perplexity staleness "${model}_ages" "$model, memory as of update ${age%.pt}" \
        "${memory_options[@]}" --memory-writer "$checkpoint" "$@"
    done
  done
}

for part in "${parts[@]}"; do
  "$part" "$@"
done
for part in grid scope layer staleness icl; do
  if [[ -f "$RESULTS_DIR/ablation_$part.jsonl" ]]; then report "ablation_$part"; fi
done
