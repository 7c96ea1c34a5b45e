#!/usr/bin/env bash
# Pre-trains the paper's backbone GPT-2* (407M parameters: 24 layers x 1,024, ALiBi) on 8 GPUs, or more
# machines of 8 (see paper_launch.sh).
#
#   python -m preprocess.prepare_corpus --source pile --dest data/pile --tokenizer gpt2 \
#     --gpt2-bpe-dir gpt2_bpe --workers 32
#   DATA_DIR=data/pile SAVE_DIR=runs/paper/backbone bash train_scripts/paper_pretrain.sh
#
# pile: the parts of the Pile that the paper takes (BookCorpus2, Books3, OpenWebText2, Stack Exchange,
# Wikipedia, Gutenberg, NIH ExPorter, Pile-CC). Hyper-parameters are the paper's as far as it gives them:
# Adam (0.9, 0.98), eps 1e-6, weight decay 0.01, 256 segments of 1,024 tokens; learning rate and number of
# updates are those of its adaptation (26B tokens), which it does not give for this step. bfloat16 stands
# for its fp16. Expect the paper's perplexity of GPT-2* on its validation data: ArXiv 11.05.
# Settings: docs/running.md. Arguments go to fairseq-train.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=train_scripts/paper_launch.sh
source "$here/paper_launch.sh"

export ARCH=longmem_backbone_medium TOKENS_PER_SAMPLE=1024 COMPUTE_DTYPE=${COMPUTE_DTYPE:-bfloat16}
export UPDATES=${UPDATES:-100000} LR=${LR:-2e-4}
exec bash "$here/pretrain_backbone.sh" --update-freq "$UPDATE_FREQ" --warmup-updates 2000 \
  --save-interval-updates 10000 --keep-interval-updates 2 "$@"
