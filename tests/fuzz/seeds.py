"""The good files of every target, as small as they can be."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Dict, Optional

import torch
import zstandard
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import save_file

from item_log import ItemLog
from longmem_fairseq.exported import write_exported
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.memory.memory_file import HEADER_KEY
from longmem_fairseq.models.memtrm import MemTRMConfig, MemTRMDecoder
from longmem_fairseq.tokenizers import CheckpointIds, SentencePieceTokenizer
from model_folder import save_model
from tests.corpora import PLAIN, write_gpt2_files

DOCUMENT = "The cat sat on caf\u00e9 \u4e2d\U0001f600,\n\tand so on.  "
SYMBOLS = 16  # of the binaries' dictionary
SIZES = {"embed_dim": 8, "num_layers": 1, "num_attention_heads": 1}
SETTINGS = {"benchmark": "squad", "options": {"k": 2}}  # of the item log


def keys(streams: int, heads: int, head_dim: int) -> torch.Tensor:
    return torch.linspace(-1, 1, streams * heads * 3 * head_dim).view(streams, heads, 3, head_dim)


def memory(folder: Path) -> None:
    bank = MemoryBank(2, 1, 4, memory_size=8, chunk_size=2, k=4, fingerprint="ab" * 32)
    bank.begin_document(0, "one", offset=3)
    for _ in range(4):
        bank.write(keys(2, 1, 4), keys(2, 1, 4))
    bank.save(str(folder / "memory"))
    with safe_open(folder / "memory", framework="pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        save_file({n: file.get_tensor(n) for n in file.keys()}, folder / "tensors")  # noqa: SIM118
    (folder / "header.json").write_text(json.dumps(header))


def write_memory(path: Path, text: bytes, others: Optional[Dict[str, torch.Tensor]] = None) -> None:
    """A memory file with this header and checksums that are right, so that the header is believed.

    Args:
        others: tensors to have instead
    """
    with safe_open(path.with_name("tensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors.update(others or {})
    try:
        header = json.loads(text)
        if isinstance(header["checksums"], dict):
            del header["checksums"]
            checksum = zlib.crc32(json.dumps(header).encode())
            sums = {
                n: zlib.crc32(t.flatten().view(torch.uint8).numpy()) for n, t in tensors.items()
            }
            text = json.dumps({**header, "checksums": {**sums, "header": checksum}}).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # then as it is
    save_file(tensors, path, metadata={HEADER_KEY: text.decode("utf-8", "replace")})


def model(folder: Path) -> None:
    """A MemTRM with random weights, checkpoint.pt, and what is in its pickle, data.pkl."""
    tokenizer = SentencePieceTokenizer.train([PLAIN, DOCUMENT], 400)
    tokenizer.save(folder)
    tokenizer.dictionary.save(str(folder / "dict.txt"))
    torch.manual_seed(1)
    sizes = {"memory_size": 16, "chunk_size": 2, "k": 4, "retrieval_layer_index": 0}
    cfg = MemTRMConfig(_name="memtrm", **SIZES, **sizes)
    decoder = MemTRMDecoder(OmegaConf.structured(cfg), tokenizer.dictionary, 8)
    text = (folder / "dict.txt").read_text(encoding="utf-8")
    save_model(folder, cfg, decoder.state_dict(), 8, text)
    (folder / "checkpoint.pt").replace(folder / "good.pt")
    with zipfile.ZipFile(folder / "good.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        (folder / "data.pkl").write_bytes(archive.read(name))
    (folder / "checkpoint.pt").write_bytes((folder / "good.pt").read_bytes())


def replace_pickle(good: Path, path: Path, pickle: Path) -> None:
    """The checkpoint *good* with another pickle, as *path*."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            changed = name.endswith("/data.pkl")
            new.writestr(name, pickle.read_bytes() if changed else old.read(name))


def exported(folder: Path) -> None:
    model(folder)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["model"]["decoder.backbone_fingerprint"] = torch.zeros(32, dtype=torch.uint8)
    state["cfg"] = OmegaConf.create(state["cfg"])
    write_exported(folder, state)
    tensors = {n: t for n, t in state["model"].items() if not n.endswith("fingerprint")}
    save_file(tensors, folder / "model.safetensors")
    for name in ("checkpoint.pt", "good.pt"):
        (folder / name).unlink()


def binary(folder: Path) -> None:
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"))
    for document in ([4, 5, 6, 7, 8, 9, 10, 2], [9, 8, 7, 2], [2]):
        builder.add_item(torch.tensor(document))
    builder.finalize(str(folder / "train.idx"))


def hf_tokenizer(folder: Path) -> None:
    from tests.hf_tokenizers import make_tokenizer

    tokenizer = make_tokenizer("gpt2")
    ids = CheckpointIds(tokenizer.get_vocab_size(), {"unk": 0, "bos": 1, "eos": 2})
    ids.save(folder)
    ids.dictionary().save(str(folder / "dict.txt"))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def gpt2(folder: Path) -> None:
    write_gpt2_files(folder / "bpe")
    for file in (folder / "bpe").iterdir():
        file.replace(folder / file.name)


def hf(folder: Path) -> None:
    """A LLaMA of two layers in two shards, with a tokenizer."""
    folder = folder / "hf"
    folder.mkdir()
    hf_tokenizer(folder)
    for name in ("dict.txt", "ids.json"):
        (folder / name).unlink()
    vocab = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = {
        **{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "eos_token_id": 2},
        **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"vocab_size": vocab, "tie_word_embeddings": True, "rope_theta": 1e4, "head_dim": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.embed_tokens.weight": torch.zeros(vocab, 8),
        "model.norm.weight": torch.ones(8),
    }
    first = set(tensors)
    for layer in ("model.layers.0.", "model.layers.1."):
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}{name}.weight"] = torch.ones(8)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"):
            tensors[f"{layer}{name}.weight"] = torch.zeros(8, 8)
        for name in ("self_attn.k_proj", "self_attn.v_proj"):
            tensors[f"{layer}{name}.weight"] = torch.zeros(4, 8)
        tensors[f"{layer}mlp.down_proj.weight"] = torch.zeros(8, 8)
    for number, chosen in ((0, first), (1, tensors.keys() - first)):
        save_file({n: tensors[n] for n in chosen}, folder / f"model-{number}.safetensors")
    table = {name: f"model-{int(name not in first)}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def corpus(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    question = {"relation": "r", "answer": [4, 5], "mention": [0, 1]}
    records = [{"text": "a b a", "name": "one", "questions": [question]}, {"text": "two"}]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (source / "train.jsonl").write_bytes(lines)
    (source / "valid.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines * 3))
    (source / "corpus.json").write_text('{"chance": 0.5}')
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "vocab": 1, "chance": 0.5}))


def latex(folder: Path) -> None:
    papers = folder / "papers"
    (papers / "one").mkdir(parents=True)
    main = "\\documentclass{a} % comment\n\\input{part}\\include{ ../x }\n$a$ \\% b\n"
    (papers / "one" / "main.tex").write_text(main)
    (papers / "one" / "part.tex").write_text("part \\input{main}\n")
    (papers / "paper.gz").write_bytes(gzip.compress(main.encode(), mtime=0))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (("main.tex", main), ("../../part.tex", "part")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (papers / "paper.tar.gz").write_bytes(packed.getvalue())


def tables(folder: Path) -> None:
    """What the benchmarks read and write."""
    (folder / "books.csv").write_text("Text#,Title,Authors,Issued\n1,A,B,2020-01-01\n2,C,,\n")
    item = {"ctx": "before", "pos": "right", "negs": ["wrong", "false"]}
    (folder / "items.json").write_text(json.dumps({"ao3": {"work": [item]}}))
    asked = {"id": "q", "question": "what?", "answers": [{"text": "that", "answer_start": 0}]}
    paragraph = {"context": "that", "qas": [asked]}
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (folder / "task.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "task.csv").write_text('1,good\n0,"bad, bad"\n')
    needle = {"needle": " n", "question": " q", "answer": " a"}
    haystack = {"format": "recall", "chance": 0.5, "haystack": "h. h.", "needles": [needle]}
    (folder / "haystack.json").write_text(json.dumps(haystack))
    bucket = {"from": 0, "to": 1024, "documents": 1, "tokens": 9, "ppl": 2.0, "word_ppl": 3.0}
    common = {"seed": None, "accuracy": 0.5, "chance": 0.1, "name": "m"}
    squad = {"shots": 3, "memory_demonstrations": 2}
    places = {"format": "recall", "lengths": [8, 16], "depths": [0.5], "trials": 2}
    chapter = {"split": "ao3", "context": 4096, "suffix": 128}
    results = [
        {**bucket, **common, "benchmark": "books", "by_length": [bucket], "by_position": [bucket]},
        {
            **common,
            "benchmark": "squad",
            "setting": squad,
            "exact_match": 1.0,
            "f1": 2.0,
            "questions": 1,
        },
        {**common, "benchmark": "needle", "setting": places, "grid": [[0.5, 1.0]]},
        {**common, "benchmark": "chapterbreak", "setting": chapter, "items": 3},
        {
            **common,
            "benchmark": "efficiency",
            "setting": {"context": 4096, "preset": "small"},
            "hardware": "a CPU",
            "compute_dtype": "float32",
            "tokens_per_second": 9.5,
            "peak_bytes": 9,
        },
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))


def item_log_name() -> str:
    digest = hashlib.sha256(json.dumps(SETTINGS, sort_keys=True).encode()).hexdigest()[:16]
    return f"results.jsonl.items/squad-{digest}.jsonl"


def item_log(folder: Path) -> None:
    log = ItemLog(folder / "results.jsonl", SETTINGS)
    log.add("1", {"em": 1.0})
    log.add("2", {"em": 0.0})
