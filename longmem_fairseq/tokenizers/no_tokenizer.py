"""The stand-in for the tokenizer of a model that was converted without one."""

from pathlib import Path

import numpy as np
from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds
from longmem_fairseq.tokenizers.tokenizer import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError


class NoTokenizer(Tokenizer):
    """Dictionary and ids of a model that is given token ids, never a text.

    Args:
        folder: of the model, for the message
        ids: its own
    """

    kind = "none"

    def __init__(self, folder: Path, dictionary: Dictionary, ids: CheckpointIds):
        self.folder, self.dictionary, self.ids = folder, dictionary, ids
        self.to_dictionary, self.token_bytes = ids.to_dictionary, [b""] * ids.num_ids

    def encode(self, text: str) -> np.ndarray:
        """Refuses every text.

        Raises:
            ValueError: always
        """
        raise ArgumentError(
            "{} has no tokenizer ({no_tokenizer} left it out): give token ids to LongMem.logits, or "
            "convert the model with its tokenizer",
            self.folder,
        )
