"""The formats that are fuzzed: for each a folder of good files, the one that is replaced, and its
reader.

A reader is a function that users call. Whatever the bytes are, it ends well or with one of DECLARED,
runs nothing, and writes nothing outside of its folder (``watch.py``).
"""

import shutil
from pathlib import Path
from typing import Callable, Dict, NamedTuple

import torch

from eval import chapterbreak, icl_tasks, parity, squad
from eval.common.stream_scoring import load_model
from longmem_fairseq import LongMem
from longmem_fairseq.commands.convert_released import main as convert_longmem
from longmem_fairseq.conversion import files as hf_files
from longmem_fairseq.corpus.source import Source
from longmem_fairseq.data import DocumentStreamDataset, IndexedDocuments
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.memory.shard_files import read_memory
from longmem_fairseq.tokenizers import load_dictionary, load_tokenizer
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2Tokenizer
from longmem_fairseq.utils.text_files import parse_json
from preprocess import extract_gutenberg, make_chapterbreak
from preprocess.extract_arxiv import latex_papers
from tests.fuzz import converted_seeds, seeds
from tests.fuzz.seeds import DOCUMENT, SYMBOLS

DECLARED = (ValueError, FileNotFoundError)  # of the package; from a script one line and exit code 2


class Target(NamedTuple):
    """
    make: writes the good files into a folder
    file: name of the one that is replaced
    read: reads the folder
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]


def use_model(folder: Path) -> None:
    """Loads a model as every command does, and writes and reads a memory."""
    lm = LongMem.from_pretrained(folder)
    lm.memorize("a b c d e f", progress=False)
    lm.score("a b c")


def use_memory(folder: Path, memory_map: bool = False) -> None:
    bank = MemoryBank.load(str(folder / "memory"), memory_map=memory_map)
    layout = bank.layout
    keys = seeds.keys(layout.num_streams, layout.num_heads, layout.head_dim)
    bank.retrieve(keys)
    bank.write(keys, keys)
    bank.locate(0, 0) if bank.num_chunks[0] else None


def use_memory_of_header(folder: Path) -> None:
    seeds.write_memory(folder / "memory", (folder / "header.json").read_bytes())
    use_memory(folder)


def use_shards_of_header(folder: Path) -> None:
    seeds.write_shards(folder, (folder / "header.json").read_bytes())
    use_memory(folder)
    read_memory(str(folder / "memory"), shard=1, num_shards=4)


def use_pickle(folder: Path) -> None:
    seeds.replace_pickle(folder / "good.pt", folder / "checkpoint.pt", folder / "data.pkl")
    use_model(folder)


def use_tokenizer(folder: Path) -> None:
    use_any_tokenizer(load_tokenizer(folder))


def use_any_tokenizer(tokenizer) -> None:
    indices = tokenizer.indices(DOCUMENT)
    tokenizer.decode(indices)
    tokenizer.pieces(indices)
    tokenizer.spelled(DOCUMENT)


def use_binary(folder: Path) -> None:
    documents = IndexedDocuments(str(folder / "train"), SYMBOLS)
    streams = DocumentStreamDataset(documents, 1, 2, batch_size=2, tokens_per_sample=4)
    for step in range(min(len(streams), 100)):
        streams[step]


def convert(folder: Path) -> None:
    from longmem_fairseq.commands import convert  # needs no extra, but takes a second

    shutil.rmtree(folder / "dest", ignore_errors=True)
    for options in (["--dry-run"], ["--dest", str(folder / "dest")]):
        convert.main(["--model", str(folder / "hf"), *options])


def check_sums(folder: Path) -> None:
    paths = list((folder / "hf").glob("*.safetensors"))
    hf_files.check_hashes(folder / "sums.txt", paths)


def convert_pickle(folder: Path) -> None:
    seeds.replace_pickle(
        folder / "good.pt", folder / "hf" / "pytorch_model.bin", folder / "data.pkl"
    )
    convert(folder)


def convert_released(folder: Path) -> None:
    shutil.rmtree(folder / "dest", ignore_errors=True)
    files = {"backbone": "backbone.pt", "longmem": "longmem.pt", "dict": "dict.txt", "dest": "dest"}
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    convert_longmem(options)
    longmem = folder / "dest" / "longmem"
    model, _ = load_model(str(longmem / "checkpoint.pt"), str(longmem))
    for start in (True, False):
        model(torch.full((1, 4), 4), new_document=torch.tensor([start]))


def convert_released_pickle(folder: Path) -> None:
    seeds.replace_pickle(folder / "good.pt", folder / "longmem.pt", folder / "data.pkl")
    convert_released(folder)


def convert_released_options(folder: Path) -> None:
    options = parse_json((folder / "options.json").read_bytes())
    converted_seeds.write_released(folder, options)
    convert_released(folder)


def measure_parity(folder: Path) -> None:
    seeds.replace_pickle(folder / "good.pt", folder / "expected.pt", folder / "data.pkl")
    parity.measure(folder)


def read_books(folder: Path) -> None:
    table = str(folder / "books.csv")
    options = ["--source", str(folder), "--dest", str(folder / "dest"), "--metadata", table]
    extract_gutenberg.read_metadata(extract_gutenberg.get_parser().parse_args(options))


def extract_book(folder: Path) -> None:
    shutil.rmtree(folder / "dest", ignore_errors=True)
    extract_gutenberg.main(["--source", str(folder / "books"), "--dest", str(folder / "dest")])
    make_items(folder, "--least-context", "1")


def make_items(folder: Path, *options: str) -> None:
    common = ["--source", str(folder / "books"), "--dest", str(folder / "items.json"), "--unwrap"]
    make_chapterbreak.main([*common, *options])


def read_tasks(folder: Path, file: str) -> None:
    icl_tasks.read_examples(folder / file, ("negative", "positive"))


def read_corpus(folder: Path) -> None:
    source = Source(folder / "source")
    source.content_hash()
    source.chance()
    list(source.documents())


TARGETS: Dict[str, Target] = {
    "memory": Target(seeds.memory, "memory", use_memory),
    "memory_mapped": Target(seeds.memory, "memory", lambda folder: use_memory(folder, True)),
    "memory_header": Target(seeds.memory, "header.json", use_memory_of_header),
    "memory_shard": Target(seeds.memory_shards, "memory.1-of-2", use_memory),
    "memory_shards_header": Target(seeds.memory_shards, "header.json", use_shards_of_header),
    "checkpoint": Target(seeds.model, "checkpoint.pt", use_model),
    "checkpoint_pickle": Target(seeds.model, "data.pkl", use_pickle),
    "exported_config": Target(seeds.exported, "config.json", use_model),
    "exported_weights": Target(seeds.exported, "model.safetensors", use_model),
    "dictionary": Target(seeds.model, "dict.txt", lambda f: load_dictionary(f / "dict.txt")),
    "binary_index": Target(seeds.binary, "train.idx", use_binary),
    "binary": Target(seeds.binary, "train.bin", use_binary),
    "sentencepiece": Target(seeds.model, "sentencepiece.model", use_tokenizer),
    "tokenizer_json": Target(seeds.hf_tokenizer, "tokenizer.json", use_tokenizer),
    "ids_json": Target(seeds.hf_tokenizer, "ids.json", use_tokenizer),
    "gpt2_encoder": Target(
        seeds.gpt2, "encoder.json", lambda folder: use_any_tokenizer(GPT2Tokenizer(folder))
    ),
    "gpt2_merges": Target(
        seeds.gpt2, "vocab.bpe", lambda folder: use_any_tokenizer(GPT2Tokenizer(folder))
    ),
    "hf_config": Target(converted_seeds.hf, "hf/config.json", convert),
    "hf_index": Target(converted_seeds.hf, "hf/model.safetensors.index.json", convert),
    "hf_weights": Target(converted_seeds.hf, "hf/model-1.safetensors", convert),
    "hf_tokenizer": Target(converted_seeds.hf, "hf/tokenizer.json", convert),
    "gguf": Target(converted_seeds.gguf, "hf/model.gguf", convert),
    "hf_sums": Target(converted_seeds.hf_sums, "sums.txt", check_sums),
    "hf_bin": Target(converted_seeds.hf_bin, "hf/pytorch_model.bin", convert),
    "hf_bin_pickle": Target(converted_seeds.hf_bin, "data.pkl", convert_pickle),
    "released": Target(converted_seeds.released, "longmem.pt", convert_released),
    "released_pickle": Target(converted_seeds.released, "data.pkl", convert_released_pickle),
    "released_options": Target(converted_seeds.released, "options.json", convert_released_options),
    "parity": Target(converted_seeds.parity, "data.pkl", measure_parity),
    "jsonl": Target(seeds.corpus, "source/train.jsonl", read_corpus),
    "jsonl_zst": Target(seeds.corpus, "source/valid.jsonl.zst", read_corpus),
    "text": Target(seeds.corpus, "source/test/a.txt", read_corpus),
    "latex_archive": Target(
        seeds.latex, "papers/paper.tar.gz", lambda f: list(latex_papers(f / "papers"))
    ),
    "latex_gzip": Target(
        seeds.latex, "papers/paper.gz", lambda f: list(latex_papers(f / "papers"))
    ),
    "latex": Target(seeds.latex, "papers/one/main.tex", lambda f: list(latex_papers(f / "papers"))),
    "books_table": Target(seeds.tables, "books.csv", read_books),
    "gutenberg": Target(seeds.book, "books/1.txt", extract_book),
    "chapterbreak_offsets": Target(
        seeds.book, "items.jsonl", lambda f: make_items(f, "--offsets", str(f / "items.jsonl"))
    ),
    "chapterbreak": Target(
        seeds.tables, "items.json", lambda f: chapterbreak.read_items(f / "items.json", "ao3")
    ),
    "squad": Target(
        seeds.tables, "squad.json", lambda f: squad.read_questions("--data", f / "squad.json")
    ),
    "icl_tsv": Target(seeds.tables, "task.tsv", lambda f: read_tasks(f, "task.tsv")),
    "icl_csv": Target(seeds.tables, "task.csv", lambda f: read_tasks(f, "task.csv")),
}
