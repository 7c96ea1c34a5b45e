"""The tokenizer that lies beside a dictionary, in the folder of a corpus or of a model."""

import shutil
from pathlib import Path
from typing import Optional, Union

from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.checkpoint_ids import IDS_FILE, CheckpointIds
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2_FILES, GPT2Tokenizer
from longmem_fairseq.tokenizers.hf_tokenizer import TOKENIZER_FILE, HFTokenizer
from longmem_fairseq.tokenizers.no_tokenizer import NoTokenizer
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import (
    SENTENCEPIECE_FILE,
    SentencePieceTokenizer,
)
from longmem_fairseq.tokenizers.tokenizer import Tokenizer, load_dictionary

# the files that give every index of a model its text
VOCABULARY_FILES = (SENTENCEPIECE_FILE, *GPT2_FILES, TOKENIZER_FILE, IDS_FILE)


def copy_vocabulary(source: Path, dest: Path) -> None:
    """Copies dictionary and tokenizer, as far as folder *source* has them, into folder *dest*."""
    for name in VOCABULARY_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, dest / name)


def load_tokenizer(
    folder: Union[str, Path], dictionary: Optional[Dictionary] = None, ids_suffice: bool = False
) -> Tokenizer:
    """The tokenizer of a folder that ``preprocess/prepare_corpus.py`` made, or of a model's folder.

    Args:
        dictionary: the one in use (default: the folder's dict.txt)
        ids_suffice: take a model that was converted without a tokenizer; see :class:`NoTokenizer`

    Raises:
        FileNotFoundError: the folder has no tokenizer
        ImportError: it has one that needs a package which is not installed
        ValueError: it is damaged, or another dictionary's
    """
    folder = Path(folder)
    dictionary = dictionary or load_dictionary(folder / "dict.txt")
    if (folder / TOKENIZER_FILE).is_file():
        return HFTokenizer(folder, dictionary)
    model = folder / SENTENCEPIECE_FILE
    if model.is_file():
        return SentencePieceTokenizer(model.read_bytes(), str(model), dictionary)
    if (folder / GPT2_FILES[0]).is_file():
        return GPT2Tokenizer(folder, dictionary)
    ids = CheckpointIds.load(folder, dictionary)
    if ids is not None and ids_suffice:
        return NoTokenizer(folder, dictionary, ids)
    raise FileNotFoundError(
        f"{folder} has no tokenizer: expected sentencepiece.model, or encoder.json and vocab.bpe, as "
        "preprocess/prepare_corpus.py writes them, or the tokenizer.json of a converted model"
    )
