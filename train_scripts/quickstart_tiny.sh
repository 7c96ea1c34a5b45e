#!/usr/bin/env bash
# The paper's whole recipe on one CPU, from nothing: installs the project, prepares a corpus, pre-trains a
# small backbone, adapts a SideNet with memory and one without, and MemTRM, evaluates them, prints a table
# and saves a plot. quickstart.sh starts it.
#
#   QUICKSTART=tiny bash train_scripts/quickstart.sh
#   QUICKSTART=tiny TEXT_DIR=my_documents RUN_DIR=runs/mine bash train_scripts/quickstart.sh
#
# Without TEXT_DIR the corpus is the recall corpus (preprocess/make_recall_corpus.py). Expect there, on
# 2 cores in under 20 minutes: facts asked for beyond the window of 256 tokens are right in more than
# 95% with memory, and in about 2.5% (chance) without, or with the memory of another document.
# Every step is skipped if its result is there already. Settings: docs/running.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=train_scripts/environment.sh
source "$here/environment.sh" cpu
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"
# shellcheck source=train_scripts/steps.sh
source "$here/steps.sh"

RUN_DIR=${RUN_DIR:-runs/quickstart}
TEXT_DIR=${TEXT_DIR:-}
if [[ -z "$TEXT_DIR" ]]; then
  vocab_size=2000 recital_tokens=700000 mixed_tokens=0 pretrain_updates=1000 pretrain_lr=2e-3
  memory=()
  export STREAM_SPAN=16
else
  vocab_size=8000 recital_tokens=1500000 mixed_tokens=6000000 pretrain_updates=5000 pretrain_lr=1.5e-3
  memory=(--memory-size 16384)
  export STREAM_SPAN=32
fi
unset ARCH
export COMPUTE_DTYPE TOKENS_PER_SAMPLE=256 BATCH_SIZE=8 CHUNK_SIZE=2 RETRIEVAL_LAYER_INDEX=3
MORE_SEEDS=${MORE_SEEDS:-} # SideNets to be trained once more with each of these seeds
# fairseq 0.12 speaks the dialects of hydra and PyTorch of 2020: a page of warnings at every start
export PYTHONWARNINGS=ignore
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # of eval and preprocess

mkdir -p "$RUN_DIR"
log() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }

if [[ -z "$TEXT_DIR" ]]; then
  log "making the recall corpus"
  python -m preprocess.make_recall_corpus --dest "$RUN_DIR/text"
  TEXT_DIR=$RUN_DIR/text
fi
log "preparing $TEXT_DIR"
export DATA_DIR=$RUN_DIR/data
python -m preprocess.prepare_corpus --source "$TEXT_DIR" --dest "$DATA_DIR" \
  --vocab-size "$vocab_size" --workers 2
python -m preprocess.make_recital --data "$DATA_DIR" --dest "$RUN_DIR/recital" \
  --tokens "$recital_tokens"
pretraining_data=$DATA_DIR
if ((mixed_tokens > 0)); then
  pretraining_data=$RUN_DIR/mixed
  python -m preprocess.make_recital --data "$DATA_DIR" --dest "$pretraining_data" --mix \
    --tokens "$mixed_tokens" --seed 2
fi

DATA_DIR=$pretraining_data RECITAL_DIR=$RUN_DIR/recital SMEARED_KEY_LAYERS=$RETRIEVAL_LAYER_INDEX \
  ARCH=longmem_backbone_tiny UPDATES=${PRETRAIN_UPDATES:-$pretrain_updates} LR=$pretrain_lr \
  train backbone pretrain_backbone.sh
export BACKBONE=$RUN_DIR/backbone/checkpoint_last.pt UPDATES=${ADAPT_UPDATES:-500} LR=2e-3
train sidenet train_longmem.sh --no-memory
train longmem train_longmem.sh --no-save-memory
train memtrm train_memtrm.sh --no-save-memory
for seed in $MORE_SEEDS; do
  train "sidenet_seed$seed" train_longmem.sh --no-memory --seed "$seed"
  train "longmem_seed$seed" train_longmem.sh --no-save-memory --seed "$seed"
done

evaluate() { # NAME MODEL [ARGUMENT ...]
  local name=$1 model=$2
  shift 2
  if [[ "$model" == longmem* || "$model" == memtrm ]]; then set -- "${memory[@]}" "$@"; fi
  python -m eval.evaluate "$DATA_DIR" --path "$RUN_DIR/$model/checkpoint_last.pt" \
    --name "$name" --results "$RUN_DIR/results.jsonl" --tokens-per-sample "$TOKENS_PER_SAMPLE" \
    --batch-size 8 --seed 1 "$@" 2>>"$RUN_DIR/evaluation.log" \
    || fail_with_log "evaluating $name" "$RUN_DIR/evaluation.log"
}
log "evaluating"
rm -f "$RUN_DIR/results.jsonl"
for model in backbone sidenet memtrm longmem; do
  evaluate "$model" "$model"
  fairseq-eval-lm "$DATA_DIR" --user-dir "$root/longmem_fairseq" --task longmem_language_modeling \
    --path "$RUN_DIR/$model/checkpoint_last.pt" --batch-size 8 \
    --tokens-per-sample "$TOKENS_PER_SAMPLE" 2>&1 | tee -a "$RUN_DIR/evaluation.log" \
    | sed -n 's/.*\(Loss (base 2).*\)/  fairseq-eval-lm: \1/p' \
    || fail_with_log "fairseq-eval-lm of $model" "$RUN_DIR/evaluation.log"
done
for seed in $MORE_SEEDS; do
  evaluate "sidenet_seed$seed" "sidenet_seed$seed" --seed "$seed"
  evaluate "longmem_seed$seed" "longmem_seed$seed" --seed "$seed"
done
evaluate longmem_empty_memory longmem --memory empty
evaluate longmem_other_memory longmem --memory other

log "results"
python -m eval.report "$RUN_DIR/results.jsonl" --plot "$RUN_DIR/results.png"
