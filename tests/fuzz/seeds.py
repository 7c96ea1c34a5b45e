"""The good files of every target, as small as they can be."""

import gzip
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

from longmem_fairseq.conversion.model_folder import save_model
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.memory.memory_file import HEADER_KEY, MAPPED
from longmem_fairseq.models.exported import write_exported
from longmem_fairseq.models.memtrm import MemTRMConfig, MemTRMDecoder
from longmem_fairseq.tokenizers import CheckpointIds, SentencePieceTokenizer
from tests.helpers.corpora import PLAIN, write_gpt2_files

DOCUMENT = "The cat sat on caf\u00e9 \u4e2d\U0001f600,\n\tand so on.  "
SYMBOLS = 16  # of the binaries' dictionary
SIZES = {"embed_dim": 8, "num_layers": 1, "num_attention_heads": 1}


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


def memory_shards(folder: Path) -> None:
    """The same memory as two shards wrote it."""
    memory(folder)
    (folder / "memory").unlink()
    write_shards(folder, (folder / "header.json").read_bytes())


def write_shards(folder: Path, text: bytes) -> None:
    """Both shards' files with this header; each says besides which shard it is."""
    for shard in range(2):
        try:
            header = json.dumps({**json.loads(text), "shard": shard, "num_shards": 2}).encode()
        except (ValueError, TypeError, RecursionError):
            header = text
        with safe_open(folder / "tensors", framework="pt") as file:
            found = set(MAPPED) & set(file.keys())  # noqa: SIM118
            parts = {name: file.get_tensor(name)[:, :, shard::2].contiguous() for name in found}
        write_memory(folder / f"memory.{shard}-of-2", header, parts)


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
    (folder / "checkpoint.pt").write_bytes((folder / "good.pt").read_bytes())
    write_pickle_of(folder)


def write_pickle_of(folder: Path) -> None:
    """Writes the pickle in good.pt as data.pkl."""
    with zipfile.ZipFile(folder / "good.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        (folder / "data.pkl").write_bytes(archive.read(name))


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
    from tests.helpers.hf_tokenizers import make_tokenizer

    tokenizer = make_tokenizer("gpt2")
    ids = CheckpointIds(tokenizer.get_vocab_size(), {"unk": 0, "bos": 1, "eos": 2})
    ids.save(folder)
    ids.dictionary().save(str(folder / "dict.txt"))
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


def gpt2(folder: Path) -> None:
    write_gpt2_files(folder / "bpe")
    for file in (folder / "bpe").iterdir():
        file.replace(folder / file.name)


def corpus(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    question = {"relation": "r", "answer": [4, 5], "mention": [0, 1]}
    records = [{"text": "a b a", "name": "one", "questions": [question]}, {"text": "two"}]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (source / "train.jsonl").write_bytes(lines)
    (source / "valid.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines * 3))
    (source / "test").mkdir()
    (source / "test" / "a.txt").write_text("a text\n", encoding="utf-8")
    (source / "corpus.json").write_text('{"chance": 0.5}')
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "vocab": 1, "chance": 0.5}))


def book(folder: Path) -> None:
    """A book of seven chapters as Project Gutenberg has it, and an item of ChapterBreak in it."""
    (folder / "books").mkdir()
    prose = "It was a dark night, and the rain fell in torrents; nobody went out.\n" * 30
    chapters = "".join(f"\n\nCHAPTER {number}\n\n{prose}" for number in range(1, 8))
    marks = [f"*** {part} OF THE PROJECT GUTENBERG EBOOK A BOOK ***" for part in ("START", "END")]
    text = "\n".join(["A Book", marks[0], "Produced by A", chapters, marks[1], "License"])
    (folder / "books" / "1.txt").write_text(text)
    item = {"file": "1.txt", "ctx_end": 2000, "pos": [2010, 2100], "negs": [[3000, 3100]]}
    (folder / "items.jsonl").write_text(json.dumps(item) + "\n")


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
    """The data of the benchmarks."""
    (folder / "books.csv").write_text("Text#,Title,Authors,Issued\n1,A,B,2020-01-01\n2,C,,\n")
    item = {"ctx": "before", "pos": "right", "negs": ["wrong", "false"]}
    (folder / "items.json").write_text(json.dumps({"ao3": {"work": [item]}}))
    asked = {"id": "q", "question": "what?", "answers": [{"text": "that", "answer_start": 0}]}
    paragraph = {"context": "that", "qas": [asked]}
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    (folder / "task.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    (folder / "task.csv").write_text('1,good\n0,"bad, bad"\n')
