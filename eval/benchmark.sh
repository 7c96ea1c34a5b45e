#!/usr/bin/env bash
# Sourced by the benchmarks. RUN_DIR holds a folder for each model (checkpoint, dictionary, tokenizer), as
# train_scripts/quickstart.sh leaves them. PLAIN_MODELS and MEMORY_MODELS name them: those without and
# those with a memory, which alone get the options in MEMORY_OPTIONS. Result lines go to RESULTS_DIR, and
# with them what a killed run had finished: started again it goes on there.
# shellcheck disable=SC2034  # used by the scripts that source this one
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
RUN_DIR=${RUN_DIR:?folder with a folder for each model}
RESULTS_DIR=${RESULTS_DIR:-$RUN_DIR/results}
TOKENS_PER_SAMPLE=${TOKENS_PER_SAMPLE:-1024}
read -ra plain_models <<<"${PLAIN_MODELS-backbone sidenet}"
read -ra memory_models <<<"${MEMORY_MODELS-memtrm longmem}"
read -ra memory_options <<<"${MEMORY_OPTIONS-}"
plain_options=() # of the models without a memory
export PYTHONWARNINGS=${PYTHONWARNINGS-ignore} # fairseq 0.12 and hydra: a page of them at every start

run_model() { # RESULTS PROGRAM MODEL NAME [ARGUMENT ...]: one benchmark of one model
  local results=$1 program=$2 model=$3 name=$4
  shift 4
  python "$here/$program" --path "$RUN_DIR/$model/checkpoint_last.pt" --name "$name" \
    --results "$RESULTS_DIR/$results.jsonl" --tokens-per-sample "$TOKENS_PER_SAMPLE" "$@"
}

run_models() { # RESULTS PROGRAM [ARGUMENT ...]: one benchmark of all models, the plain ones first
  local results=$1 program=$2 model
  shift 2
  for model in "${plain_models[@]}"; do
    run_model "$results" "$program" "$model" "$model" "${plain_options[@]}" "$@"
  done
  for model in "${memory_models[@]}"; do
    run_model "$results" "$program" "$model" "$model" "${memory_options[@]}" "$@"
  done
}

report() { # RESULTS: table and plot
  python "$here/report.py" "$RESULTS_DIR/$1.jsonl" --plot "$RESULTS_DIR/$1.png"
}
