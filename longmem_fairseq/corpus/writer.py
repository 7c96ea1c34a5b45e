"""One split of a prepared corpus: fairseq binaries and a line per document and question."""

import json
from pathlib import Path
from typing import Dict, Iterable, Tuple

import numpy as np
import torch
from fairseq.data import indexed_dataset

from longmem_fairseq.corpus.encoding import EncodedDocument


def write_split(
    folder: Path, split: str, encoded: Iterable[EncodedDocument], vocab_size: int
) -> Tuple[Dict[str, int], np.ndarray]:
    """Writes one split's files; returns its manifest entry and how often each token occurs."""
    prefix = str(folder / split)
    builder = indexed_dataset.make_builder(prefix + ".bin", "mmap", vocab_size)
    counts = {"documents": 0, "tokens": 0, "words": 0, "characters": 0}
    frequencies = np.zeros(vocab_size, dtype=np.int64)
    num_questions, has_questions = 0, False
    with (
        open(prefix + ".documents.jsonl", "w", encoding="utf-8") as documents_file,
        open(prefix + ".questions.jsonl", "w", encoding="utf-8") as questions_file,
    ):
        for document in encoded:
            frequencies += np.bincount(document.item, minlength=vocab_size)
            builder.add_item(torch.from_numpy(document.item))
            documents_file.write(json.dumps(document.info) + "\n")
            for question in document.questions or []:
                line = {"document": counts["documents"], **question}
                questions_file.write(json.dumps(line) + "\n")
                num_questions += 1
            has_questions = has_questions or document.questions is not None
            counts["documents"] += 1
            for unit in ("tokens", "words", "characters"):
                counts[unit] += document.info[unit]
    builder.finalize(prefix + ".idx")
    if has_questions:
        counts["questions"] = num_questions
    else:
        Path(prefix + ".questions.jsonl").unlink()
    return counts, frequencies
