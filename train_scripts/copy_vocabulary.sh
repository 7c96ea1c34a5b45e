#!/usr/bin/env bash
# Copies dictionary and tokenizer of a prepared corpus to a model's folder, which is then complete:
#   bash train_scripts/copy_vocabulary.sh DATA_DIR SAVE_DIR
set -euo pipefail
for name in dict.txt sentencepiece.model encoder.json vocab.bpe tokenizer.json ids.json; do
  if [[ -f "$1/$name" ]]; then cp "$1/$name" "$2/"; fi
done
