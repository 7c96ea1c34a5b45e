#!/usr/bin/env bash
# Builds the wheel, installs it into a clean virtual environment, and uses it from another folder: what
# is packed, the console scripts, --user-dir as the README says.
#
#   bash tests/wheel.sh                     # python3.11
#   PYTHON=python3.12 bash tests/wheel.sh   # several minutes, and gigabytes where torch brings CUDA
#
# Further arguments go to pip install (--find-links DIR). Expect "the wheel works" at the end.
set -euo pipefail
: "${PYTHON:=python3.11}"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH VIRTUAL_ENV

git -C "$root" archive HEAD | (mkdir "$work/source" && tar -x -C "$work/source")
"$PYTHON" -m venv "$work/venv"
# shellcheck disable=SC1091  # made in the line above
source "$work/venv/bin/activate"
export PIP_CONSTRAINT="$root/constraints.txt" PIP_BUILD_CONSTRAINT="$root/constraints.txt"
pip install --quiet setuptools wheel
pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/dist" "$work/source"
wheel=$(echo "$work"/dist/*.whl)
python -m zipfile -l "$wheel" | grep 'longmem_fairseq/inspector/template.html' >/dev/null
pip install --quiet "${wheel}[cpu]" "$@"
rm -r "$work/source"
cd "$work"

export PYTHONWARNINGS=ignore
longmem-memorize --help >/dev/null
longmem-generate --help >/dev/null
longmem-inspect --help >/dev/null
if longmem-generate nowhere --prompt a 2>message; then exit 1; fi
grep -qx 'longmem-generate: error: nowhere: no such model' message
plugin=$(python -c 'from importlib.util import find_spec; print(find_spec("longmem_fairseq").submodule_search_locations[0])')

python - <<'EOF'
from pathlib import Path
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from longmem_fairseq.tokenizers import SentencePieceTokenizer

text = "The cat sat on the mat, and the dog sat on the log. Then they ran home. " * 40
tokenizer = SentencePieceTokenizer.train([text], 360)
data = Path("data")
data.mkdir()
tokenizer.save(data)
tokenizer.dictionary.save("data/dict.txt")
for split in ("train", "valid"):
    builder = MMapIndexedDatasetBuilder(f"data/{split}.bin")
    builder.add_item(torch.tensor([*tokenizer.indices(text).tolist(), tokenizer.dictionary.eos()]))
    builder.finalize(f"data/{split}.idx")
Path("text.txt").write_text(text[:300])
EOF
train=(fairseq-train data --user-dir "$plugin" --cpu --task longmem_language_modeling
  --criterion longmem_cross_entropy --tokens-per-sample 32 --batch-size 2 --optimizer adam --lr 1e-3
  --max-update 2 --log-format none --num-workers 0)
"${train[@]}" --arch longmem_backbone --embed-dim 32 --num-layers 2 --num-attention-heads 2 \
  --save-dir backbone >train.log 2>&1
"${train[@]}" --arch longmem --pretrained-model-path backbone/checkpoint_last.pt --memory-size 64 \
  --chunk-size 2 --k 8 --retrieval-layer-index 1 --save-dir longmem >>train.log 2>&1
fairseq-eval-lm data --user-dir "$plugin" --task longmem_language_modeling --gen-subset valid --cpu \
  --path longmem/checkpoint_last.pt --batch-size 1 --tokens-per-sample 32 >eval.log 2>&1
cp data/dict.txt data/sentencepiece.model longmem
longmem-memorize longmem text.txt --output text.memory
longmem-generate longmem --memory text.memory --prompt "The cat" --max-new-tokens 3 >/dev/null
longmem-inspect longmem text.txt --memory text.memory --output page.html
grep -q '<h1>text.txt' page.html
echo "$("$PYTHON" --version), torch $(python -c 'import torch; print(torch.__version__)'): the wheel works"
