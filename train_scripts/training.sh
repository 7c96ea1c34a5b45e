#!/usr/bin/env bash
# Sourced by pretrain_backbone.sh and train_longmem.sh: settings that both have, and fit, which trains with
# them and leaves dictionary and tokenizer beside the checkpoint. See the table in docs/running.md.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"
DATA_DIR=${DATA_DIR:?folder made by preprocess/prepare_corpus.py}
SAVE_DIR=${SAVE_DIR:?folder for the checkpoint}
# threads that wait for each other leave the cores to other work soon: longmem_fairseq/utils/threads.py
if [[ -z "${OMP_WAIT_POLICY:-}" ]]; then export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}; fi

fit() { # DATA [ARGUMENT ...]: fairseq-train; later arguments win
  local data=$1 updates=${UPDATES:-100000} launch segments optimization logging
  shift
  read -ra launch <<<"${LAUNCH:-}"
  segments=(--tokens-per-sample "${TOKENS_PER_SAMPLE:-1024}" --stream-span "${STREAM_SPAN:-64}"
    --batch-size "${BATCH_SIZE:-256}")
  optimization=(--optimizer adam --adam-betas '(0.9, 0.98)' --adam-eps 1e-6 --weight-decay 0.01
    --clip-norm 1.0 --lr "${LR:-2e-4}" --lr-scheduler polynomial_decay --total-num-update "$updates"
    --max-update "$updates")
  logging=(--log-format simple --log-interval 100 --no-epoch-checkpoints --disable-validation)
  "${launch[@]}" fairseq-train "$data" --user-dir "$here/../longmem_fairseq" \
    --task longmem_language_modeling --criterion longmem_cross_entropy --save-dir "$SAVE_DIR" \
    --seed 1 --compute-dtype "$COMPUTE_DTYPE" "${segments[@]}" "${optimization[@]}" "${logging[@]}" "$@"
  bash "$here/copy_vocabulary.sh" "$DATA_DIR" "$SAVE_DIR"
}
