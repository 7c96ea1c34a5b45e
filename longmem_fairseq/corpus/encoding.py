"""Documents to items: dictionary indices and eos, with the questions at their token positions."""

import multiprocessing
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np

from longmem_fairseq.corpus.source import Document
from longmem_fairseq.tokenizers.tokenizer import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError


class EncodedDocument(NamedTuple):
    """A document of a corpus.

    item: dictionary indices, eos included
    info, questions: lines of the .jsonl files
    """

    item: np.ndarray
    info: Dict[str, Any]
    questions: Optional[List[Dict[str, Any]]]


def encode_document(tokenizer: Tokenizer, document: Document) -> EncodedDocument:
    """Tokenizes one document.

    Raises:
        ValueError: the tokens do not give back its text
    """
    ids = tokenizer.encode(document.text)
    indices = tokenizer.to_dictionary[ids]
    spelled = tokenizer.spelled(document.text)
    if document.questions is not None and not spelled.endswith(document.text):
        raise ValueError(f"{document.where}: the tokenizer changes this text, and it has questions")
    lossless = tokenizer.joined_bytes(ids.tolist()) == spelled.encode()
    if not lossless or (indices < tokenizer.dictionary.nspecial).any():
        raise ArgumentError(
            "{}: the tokenizer loses characters of this text; it needs byte fallback, no "
            "normalization, no dummy prefix, and all its tokens in the dictionary "
            "({sentencepiece_model}, {gpt2_bpe_dir}, {vocabulary}, {dict})",
            document.where,
        )
    item = np.append(indices, tokenizer.dictionary.eos())
    info = {
        "name": document.name,
        "tokens": len(item),
        "words": len(document.text.split()),
        "characters": len(document.text),
    }
    questions = document.questions
    if questions is not None:
        # from the text's own beginning: some tokenizers put a space before it
        ends = tokenizer.token_ends(ids) - (len(spelled) - len(document.text))
        questions = [locate_question(question, document.text, ends) for question in questions]
    return EncodedDocument(item, info, questions)


def locate_question(question: Dict[str, Any], text: str, ends: np.ndarray) -> Dict[str, Any]:
    """Character spans of a question as token positions; *ends* are the tokens' ends in bytes."""

    def token_at(offset: int) -> int:
        num_bytes = offset if text.isascii() else len(text[:offset].encode())
        return int(np.searchsorted(ends, num_bytes, side="right"))

    start, end = question["answer"]
    position, mention = token_at(start), token_at(question["mention"][0])
    return {
        "position": position,
        "tokens": token_at(end - 1) + 1 - position,
        "mention": mention,
        "distance": position - mention,
        "relation": question["relation"],
    }


def encode_documents(
    tokenizer: Tokenizer, documents: Iterator[Document], workers: int
) -> Iterator[EncodedDocument]:
    """Encodes in order with *workers* processes, holding only a few documents for each of them."""
    if workers == 1:
        yield from (encode_document(tokenizer, document) for document in documents)
        return
    with multiprocessing.Pool(workers, _start_worker, (tokenizer,)) as pool:
        pending = []  # Pool.imap would read the whole corpus ahead
        for document in documents:
            pending.append(pool.apply_async(_encode_in_worker, (document,)))
            if len(pending) > 4 * workers:
                yield pending.pop(0).get()
        for result in pending:
            yield result.get()


_worker_tokenizer: Optional[Tokenizer] = None


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode_in_worker(document: Document) -> EncodedDocument:
    return encode_document(_worker_tokenizer, document)
