#!/usr/bin/env bash
# Everything on one CPU: installs the project, prepares a corpus, pre-trains a small backbone, adapts a
# SideNet with memory and one without, and MemTRM, evaluates them, prints a table and saves a plot.
#
#   bash train_scripts/quickstart.sh
#   TEXT_DIR=my_documents RUN_DIR=runs/mine bash train_scripts/quickstart.sh
#
# Without TEXT_DIR the corpus is the recall corpus (preprocess/make_recall_corpus.py). Expect there, on
# 2 cores in under 20 minutes: facts asked for beyond the window of 256 tokens are right in more than
# 95% with memory, and in about 2.5% (chance) without, or with the memory of another document.
# Every step is skipped if its result is there already. Settings are the variables below.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=train_scripts/environment.sh
source "$here/environment.sh" cpu
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"
# shellcheck source=train_scripts/fail_with_log.sh
source "$here/fail_with_log.sh"

RUN_DIR=${RUN_DIR:-runs/quickstart}
TEXT_DIR=${TEXT_DIR:-}
if [[ -z "$TEXT_DIR" ]]; then
  VOCAB_SIZE=${VOCAB_SIZE:-2000} RECITAL_TOKENS=${RECITAL_TOKENS:-700000}
  PRETRAIN_UPDATES=${PRETRAIN_UPDATES:-1000} ADAPT_UPDATES=${ADAPT_UPDATES:-500}
  STREAM_SPAN=${STREAM_SPAN:-16} CHUNK_SIZE=${CHUNK_SIZE:-2} MIXED_TOKENS=${MIXED_TOKENS:-0}
else
  VOCAB_SIZE=${VOCAB_SIZE:-8000} RECITAL_TOKENS=${RECITAL_TOKENS:-1500000}
  PRETRAIN_UPDATES=${PRETRAIN_UPDATES:-5000} ADAPT_UPDATES=${ADAPT_UPDATES:-500}
  STREAM_SPAN=${STREAM_SPAN:-32} CHUNK_SIZE=${CHUNK_SIZE:-2} MIXED_TOKENS=${MIXED_TOKENS:-6000000}
  PRETRAIN_LR=${PRETRAIN_LR:-1.5e-3} EVAL_MEMORY_SIZE=${EVAL_MEMORY_SIZE:-16384}
fi
export STREAM_SPAN CHUNK_SIZE COMPUTE_DTYPE
export ARCH=${ARCH:-longmem_backbone_tiny} TOKENS_PER_SAMPLE=${TOKENS_PER_SAMPLE:-256}
export BATCH_SIZE=${BATCH_SIZE:-8} LR=${LR:-2e-3} MEMORY_SIZE=${MEMORY_SIZE:-65536} K=${K:-64}
export RETRIEVAL_LAYER_INDEX=${RETRIEVAL_LAYER_INDEX:-3} SEED=${SEED:-1}
MORE_SEEDS=${MORE_SEEDS:-} # SideNets to be trained once more with each of these seeds
# fairseq 0.12 speaks the dialects of hydra and PyTorch of 2020: a page of warnings at every start
export PYTHONWARNINGS=ignore
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # of eval and preprocess

mkdir -p "$RUN_DIR"
log() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
train() { # NAME SCRIPT [ARGUMENT ...]: trains RUN_DIR/NAME, with its log beside the checkpoint
  local name=$1 script=$2
  shift 2
  if [[ -f "$RUN_DIR/$name/dict.txt" ]]; then return; fi
  log "training $name (log: $RUN_DIR/$name.log)"
  SAVE_DIR="$RUN_DIR/$name" bash "$here/$script" "$@" >"$RUN_DIR/$name.log" 2>&1 \
    || fail_with_log "training $name" "$RUN_DIR/$name.log"
}

if [[ -z "$TEXT_DIR" ]]; then
  log "making the recall corpus"
  python -m preprocess.make_recall_corpus --dest "$RUN_DIR/text"
  TEXT_DIR=$RUN_DIR/text
fi
log "preparing $TEXT_DIR"
export DATA_DIR=$RUN_DIR/data
python -m preprocess.prepare_corpus --source "$TEXT_DIR" --dest "$DATA_DIR" \
  --vocab-size "$VOCAB_SIZE" --workers 2
python -m preprocess.make_recital --data "$DATA_DIR" --dest "$RUN_DIR/recital" \
  --tokens "$RECITAL_TOKENS"
pretraining_data=$DATA_DIR
if ((MIXED_TOKENS > 0)); then
  pretraining_data=$RUN_DIR/mixed
  python -m preprocess.make_recital --data "$DATA_DIR" --dest "$pretraining_data" --mix \
    --tokens "$MIXED_TOKENS" --seed 2
fi

DATA_DIR=$pretraining_data RECITAL_DIR=$RUN_DIR/recital SMEARED_KEY_LAYERS=$RETRIEVAL_LAYER_INDEX UPDATES=$PRETRAIN_UPDATES \
  LR=${PRETRAIN_LR:-$LR} train backbone pretrain_backbone.sh
export BACKBONE=$RUN_DIR/backbone/checkpoint_last.pt UPDATES=$ADAPT_UPDATES
unset ARCH
train sidenet train_longmem.sh --no-memory
train longmem train_longmem.sh --no-save-memory
train memtrm train_memtrm.sh --no-save-memory
for seed in $MORE_SEEDS; do
  SEED=$seed train "sidenet_seed$seed" train_longmem.sh --no-memory
  SEED=$seed train "longmem_seed$seed" train_longmem.sh --no-save-memory
done

evaluate() { # NAME MODEL [ARGUMENT ...]
  local name=$1 model=$2
  shift 2
  if [[ "$model" == longmem* || "$model" == memtrm ]]; then set -- "${memory[@]}" "$@"; fi
  python -m eval.evaluate "$DATA_DIR" --path "$RUN_DIR/$model/checkpoint_last.pt" \
    --name "$name" --results "$RUN_DIR/results.jsonl" --tokens-per-sample "$TOKENS_PER_SAMPLE" \
    --batch-size 8 --seed "$SEED" "$@" 2>>"$RUN_DIR/evaluation.log" \
    || fail_with_log "evaluating $name" "$RUN_DIR/evaluation.log"
}
log "evaluating"
rm -f "$RUN_DIR/results.jsonl"
memory=(${EVAL_MEMORY_SIZE:+--memory-size "$EVAL_MEMORY_SIZE"})
for model in backbone sidenet memtrm longmem; do
  evaluate "$model" "$model"
  fairseq-eval-lm "$DATA_DIR" --user-dir "$root/longmem_fairseq" --task longmem_language_modeling \
    --path "$RUN_DIR/$model/checkpoint_last.pt" --batch-size 8 \
    --tokens-per-sample "$TOKENS_PER_SAMPLE" 2>&1 | tee -a "$RUN_DIR/evaluation.log" \
    | sed -n 's/.*\(Loss (base 2).*\)/  fairseq-eval-lm: \1/p' \
    || fail_with_log "fairseq-eval-lm of $model" "$RUN_DIR/evaluation.log"
done
for seed in $MORE_SEEDS; do
  SEED=$seed evaluate "sidenet_seed$seed" "sidenet_seed$seed"
  SEED=$seed evaluate "longmem_seed$seed" "longmem_seed$seed"
done
evaluate longmem_empty_memory longmem --memory empty
evaluate longmem_other_memory longmem --memory other

log "results"
python -m eval.report "$RUN_DIR/results.jsonl" --plot "$RUN_DIR/results.png"
