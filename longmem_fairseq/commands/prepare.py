"""Turn documents into fairseq binaries with one item per document: its tokens and eos.

Example:
    python preprocess/prepare_corpus.py --source books --dest data/books --vocab-size 8000

--source is a folder of .txt or .jsonl files, also compressed (.gz, .zst), or one such file. Its
train/, valid/ and test/ folders, or train.jsonl and so on, are the splits; without them it is split
by document.
Writes
    dict.txt, {train,valid,test}.{bin,idx}, {split}.documents.jsonl, {split}.questions.jsonl,
    sentencepiece.model (or encoder.json, vocab.bpe; or tokenizer.json, ids.json) and manifest.json
into --dest, all or nothing. Run again with the same input and options, it does nothing.

To evaluate a model on other documents, --vocabulary is its folder, which holds its tokenizer and
dictionary; the source may then have a test split alone.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from tqdm import tqdm

from longmem_fairseq.corpus.encoding import encode_documents
from longmem_fairseq.corpus.files import counted_kinds
from longmem_fairseq.corpus.source import SPLITS, Source
from longmem_fairseq.corpus.split import SplitCorpus
from longmem_fairseq.corpus.writer import write_split
from longmem_fairseq.tokenizers.folder import VOCABULARY_FILES, load_tokenizer
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2_FILES, GPT2Tokenizer
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from longmem_fairseq.tokenizers.tokenizer import Tokenizer, load_dictionary
from longmem_fairseq.utils.cli import as_option, check_positive, counted, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.output_folder import is_up_to_date, replaced_folder

FORMAT = 2


def get_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    share = "share of documents, where the source has no splits"
    add("--source", type=Path, required=True, help="file or folder of documents")
    add("--dest", type=Path, required=True, help="folder to write, new or empty")
    add(
        "--also-train",
        type=Path,
        help="another source, whose train split (or all of it, if it has none) is trained on besides",
    )
    add(
        "--vocabulary",
        type=Path,
        help="folder of a model or corpus: use its tokenizer and dict.txt",
    )
    add("--tokenizer", choices=("sentencepiece", "gpt2"), default="sentencepiece", help="tokenizer")
    add("--vocab-size", type=int, default=8000, help="pieces of the SentencePiece model to train")
    add("--sentencepiece-model", type=Path, help="use this model instead of training one")
    add("--dict", type=Path, help="use this fairseq dictionary instead of making one")
    add("--gpt2-bpe-dir", type=Path, help="folder with GPT-2's encoder.json, vocab.bpe, dict.txt")
    add("--text-field", default="text", help="field of a .jsonl record that holds the text")
    add("--valid-share", type=float, default=0.05, help=share)
    add("--test-share", type=float, default=0.05, help=share)
    add("--workers", type=int, default=1, help="processes that tokenize")
    add("--seed", type=int, default=1, help="of the split by document")
    add("--overwrite", action="store_true", help="replace an earlier, different result in --dest")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Checks options that are out of range or at odds, and files that are missing.

    Raises:
        FileNotFoundError, ValueError: naming the option
    """
    check_positive(args, "workers", "vocab_size")
    for option in ("valid_share", "test_share"):
        if not 0 <= getattr(args, option) < 1:
            raise ValueError(
                f"{as_option(option)} ({getattr(args, option)}) must be from 0 to below 1"
            )
    if args.valid_share + args.test_share >= 1:
        raise ValueError(
            f"--valid-share ({args.valid_share}) and --test-share ({args.test_share}) "
            "leave no train split: their sum must be below 1"
        )
    given = [args.sentencepiece_model, args.dict, args.gpt2_bpe_dir]
    if args.vocabulary is not None and any(option is not None for option in given):
        raise ValueError(
            f"--vocabulary ({args.vocabulary}) is tokenizer and dictionary: leave out "
            "--sentencepiece-model, --dict and --gpt2-bpe-dir"
        )
    if args.vocabulary is not None and not (args.vocabulary / "dict.txt").is_file():
        raise FileNotFoundError(
            f"--vocabulary ({args.vocabulary}) has no dict.txt: give the folder of a model or corpus"
        )
    if args.tokenizer == "gpt2" and args.gpt2_bpe_dir is None:
        raise ValueError("--tokenizer gpt2 needs --gpt2-bpe-dir")
    if args.tokenizer == "gpt2" and args.sentencepiece_model is not None:
        raise ValueError(
            f"--sentencepiece-model ({args.sentencepiece_model}) does not go with --tokenizer gpt2"
        )
    if args.tokenizer != "gpt2" and args.gpt2_bpe_dir is not None:
        raise ValueError(f"--gpt2-bpe-dir ({args.gpt2_bpe_dir}) needs --tokenizer gpt2")
    if args.tokenizer == "sentencepiece" and args.dict and not args.sentencepiece_model:
        raise ValueError(f"--dict ({args.dict}) needs the --sentencepiece-model it belongs to")
    for option in ("sentencepiece_model", "dict"):
        path = getattr(args, option)
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{as_option(option)} ({path}) does not exist")


def corpus_hash(args: argparse.Namespace, source: Source, also: Optional[Source]) -> str:
    """sha256 over everything that the result depends on: options, sources, reused files."""
    parts: Dict[str, Any] = {"format": FORMAT, "source": source.content_hash()}
    if also is not None:
        parts["also_train"] = also.content_hash()
    for option in ("tokenizer", "vocab_size", "text_field", "valid_share", "test_share", "seed"):
        parts[option] = getattr(args, option)
    files = {"sentencepiece_model": args.sentencepiece_model, "dict": args.dict}
    if args.tokenizer == "gpt2":
        files.update({name: args.gpt2_bpe_dir / name for name in GPT2_FILES})
    if args.vocabulary is not None:
        files.update({f"vocabulary {name}": args.vocabulary / name for name in VOCABULARY_FILES})
    for name, path in files.items():
        if path is not None and path.is_file():
            parts[name] = file_hash(path)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def make_tokenizer(args: argparse.Namespace, corpus: SplitCorpus) -> Tokenizer:
    """The tokenizer that the options name, or one that is trained on the corpus.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the corpus too small
    """
    if args.vocabulary is not None:
        return load_tokenizer(args.vocabulary)
    dictionary = load_dictionary(args.dict) if args.dict else None
    if args.tokenizer == "gpt2":
        return GPT2Tokenizer(args.gpt2_bpe_dir, dictionary)
    if args.sentencepiece_model:
        model = args.sentencepiece_model.read_bytes()
        return SentencePieceTokenizer(model, str(args.sentencepiece_model), dictionary)
    return SentencePieceTokenizer.train(corpus.training_texts(), args.vocab_size)


def write_corpus(folder: Path, corpus: SplitCorpus, args: argparse.Namespace) -> Dict[str, Any]:
    """Writes all but the manifest into *folder*; returns the manifest without its hash."""
    chance = corpus.source.chance()
    tokenizer = make_tokenizer(args, corpus)
    tokenizer.save(folder)
    splits = {}
    # An empty split has no files: fairseq cannot map an empty one.
    for split in [split for split in SPLITS if corpus.num_documents[split]]:
        encoded = encode_documents(tokenizer, corpus.documents(split), args.workers)
        bar = tqdm(  # on stderr, and only on a terminal
            encoded, split, corpus.num_documents[split], unit=" documents", disable=None
        )
        splits[split], frequencies = write_split(folder, split, bar, len(tokenizer.dictionary))
        trained_here = not (args.dict or args.vocabulary)
        if split == "train" and tokenizer.kind == "sentencepiece" and trained_here:
            # the predictions of a new backbone, before it has learned anything
            tokenizer.dictionary.count = frequencies.tolist()
    tokenizer.dictionary.save(str(folder / "dict.txt"))
    manifest = {
        "format": FORMAT,
        "tokenizer": {"kind": tokenizer.kind, "pieces": len(tokenizer.token_bytes)},
        "vocab_size": len(tokenizer.dictionary),
        "splits": splits,
    }
    if chance is not None:
        manifest["chance"] = chance
    return manifest


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the command line *argv* (default: that of the process)."""
    args = get_parser().parse_args(argv)
    check_options(args)
    for option in ("source", "also_train"):
        path = getattr(args, option)
        if path is not None and args.dest.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(
                f"{as_option(option)} ({path}) is in --dest ({args.dest}), which is replaced as a "
                "whole: give another folder as --dest"
            )
    source = Source(args.source, args.text_field, exclude=args.dest)
    also = None
    if args.also_train is not None:
        also = Source(args.also_train, args.text_field, args.dest, "also_train")
    digest = corpus_hash(args, source, also)
    if is_up_to_date(args.dest, "manifest.json", {"hash": digest}, args.overwrite):
        print(f"{args.dest}: up to date")
        return
    must_train = not (args.vocabulary or args.sentencepiece_model or args.gpt2_bpe_dir)
    for given in (source, also):
        if given is not None and given.left_out:
            print(f"left out of {given.path}: {counted_kinds(given.left_out)}")
    shares = args.valid_share, args.test_share
    corpus = SplitCorpus(source, *shares, args.seed, must_train, also)
    with replaced_folder(args.dest) as folder:
        manifest = {**write_corpus(folder, corpus, args), "hash": digest}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for split, counts in manifest["splits"].items():
        print(f"{split}: " + ", ".join(f"{number} {unit}" for unit, number in counts.items()))
    for split, share in (("valid", args.valid_share), ("test", args.test_share)):
        if not source.has_splits and share > 0 and split not in manifest["splits"]:
            documents = counted(len(corpus.split_of), "document")
            print(
                f"no {split} split: the source has {documents}, and train keeps one; folders train, "
                "valid and test in it would be taken as they are"
            )


def cli() -> None:
    """The console script longmem-prepare."""
    run(main)
