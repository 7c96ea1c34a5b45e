"""The ids of a converted checkpoint and the indices of its fairseq dictionary."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from fairseq.data import Dictionary

from longmem_fairseq.utils.refusal import refused
from longmem_fairseq.utils.text_files import parse_json

IDS_FILE = "ids.json"
SPECIALS = ("bos", "pad", "eos", "unk")  # the first four indices of every fairseq dictionary


class CheckpointIds:
    """A table between both, for a model that came with ids of its own.

    fairseq's ``<s> <pad> </s> <unk>`` have the indices 0 to 3 and stand for the model's own special
    tokens, where it has them. Every other id follows in order; its symbol is the id in digits.

    Args:
        num_ids: rows of the model's embedding
        specials: ids of bos, pad, eos, unk, as far as the model has them, each for one of them
        start: the one of them that stands before a document, bos or eos
        ends: ids that end a generated text, besides eos
        chat_template: jinja2's, which writes the messages of a chat as a prompt (default: none)
        named_tokens: special tokens by the names that templates use, as in ``{"eos_token": "</s>"}``

    Raises:
        ValueError: the model does not have *start*, or an end is no id of it
    """

    def __init__(
        self,
        num_ids: int,
        specials: Dict[str, int],
        start: str = "eos",
        ends: Sequence[int] = (),
        chat_template: Optional[str] = None,
        named_tokens: Optional[Dict[str, str]] = None,
    ):
        if start not in specials:
            raise ValueError(
                f"there is no {start} among the special tokens ({', '.join(specials)})"
            )
        if not all(type(id_) is int and 0 <= id_ < num_ids for id_ in ends):
            raise ValueError(f"ends ({ends}) must be ids from 0 to {num_ids - 1}")
        self.num_ids, self.specials, self.start = num_ids, specials, start
        self.ends = list(dict.fromkeys([*ends, *(specials[n] for n in specials if n == "eos")]))
        self.chat_template, self.named_tokens = chat_template, named_tokens or {}
        index_of = {id_: SPECIALS.index(name) for name, id_ in specials.items()}
        others = [id_ for id_ in range(num_ids) if id_ not in index_of]
        self.symbols = [str(id_) for id_ in others]  # of the indices from 4 on
        self.to_dictionary = np.empty(num_ids, dtype=np.int32)  # id -> index
        self.to_dictionary[others] = np.arange(len(SPECIALS), len(SPECIALS) + len(others))
        for id_, index in index_of.items():
            self.to_dictionary[id_] = index
        self.to_checkpoint = np.full(len(SPECIALS) + len(others), -1, dtype=np.int32)
        self.to_checkpoint[self.to_dictionary] = np.arange(num_ids)  # index -> id, -1 for none

    @property
    def absent(self) -> np.ndarray:
        """Indices of the special symbols that the model does not have."""
        return np.flatnonzero(self.to_checkpoint < 0)

    @property
    def end_indices(self) -> List[int]:
        """Indices of the tokens that end a generated text."""
        return sorted(self.to_dictionary[self.ends].tolist())

    def dictionary(self) -> Dictionary:
        """A fairseq dictionary with all symbols."""
        dictionary = Dictionary()
        for symbol in self.symbols:
            dictionary.add_symbol(symbol)
        return dictionary

    def save(self, folder: Path) -> None:
        """Writes the table to a model's folder."""
        table: Dict[str, Any] = {"num_ids": self.num_ids, "start": self.start, **self.specials}
        table.update(ends=self.ends, named_tokens=self.named_tokens)
        if self.chat_template is not None:
            table["chat_template"] = self.chat_template
        (folder / IDS_FILE).write_text(json.dumps(table) + "\n")

    @property
    def document_start(self) -> int:
        """Index of the symbol that stands before a document."""
        return SPECIALS.index(self.start)

    @classmethod
    def load(cls, folder: Union[str, Path], dictionary: Dictionary) -> Optional["CheckpointIds"]:
        """The table of a model's folder, None where the model has no other ids than the dictionary's.

        Raises:
            ValueError: it is damaged, or another dictionary's
        """
        path = Path(folder) / IDS_FILE
        if not path.is_file():
            return None
        with refused(f"{path} is not a table of ids"):
            table = parse_json(path.read_bytes())
            num_ids = table["num_ids"]
            specials = {name: table[name] for name in SPECIALS if name in table}
            num_symbols = num_ids + len(SPECIALS) - len(specials)
            # compared first: the table of a wrong number may be larger than the machine
            ids = cls._of(table, specials) if num_symbols == len(dictionary) else None
        if ids is None or ids.symbols != dictionary.symbols[dictionary.nspecial :]:
            raise ValueError(
                f"{path} ({num_symbols} symbols) and the dictionary ({len(dictionary)} symbols) do not "
                "belong together: convert the checkpoint again"
            )
        return ids

    @classmethod
    def _of(cls, table: Dict[str, Any], specials: Dict[str, int]) -> "CheckpointIds":
        """Those of a table, in which an older version left out all but *start*."""
        template, named = table.get("chat_template"), table.get("named_tokens", {})
        if not isinstance(template, (str, type(None))):
            raise ValueError("chat_template is no text")
        if not all(isinstance(token, str) for token in named.values()):
            raise ValueError("named_tokens are no texts")
        start, ends = table.get("start", "eos"), table.get("ends", [])
        return cls(table["num_ids"], specials, start, ends, template, named)
