"""What a model remembers: documents go into its memory, out of it, and into files.

T tokens of a prompt.
"""

import logging
import os
from contextlib import contextmanager
from typing import (
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Union,
)

import torch
from torch import Tensor

from longmem_fairseq.api import memorizing
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.api.reading import THIS_TEXT
from longmem_fairseq.memory import ExternalMemory, MemoryFork, find_excerpts
from longmem_fairseq.memory.excerpts import LENGTH, Excerpt
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.replaced_file import Version, file_version
from longmem_fairseq.utils.text_files import Text, named_texts

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """An excerpt of the memory.

    document: its name, None if it has none
    offset: tokens of the document before it
    score: see :func:`~longmem_fairseq.memory.excerpts.excerpt_scores`
    """

    document: Optional[str]
    offset: int
    text: str
    score: float


def check_excerpts(max_tokens: int) -> None:
    """Raises ArgumentError where not even one excerpt has so few tokens."""
    if max_tokens < LENGTH:
        raise ArgumentError(f"{{excerpts}} ({max_tokens}) must be at least {LENGTH}, tokens of one")


class Remembering:
    """The memory of a model with its tokenizer, the base of :class:`LongMem`.

    Args:
        decoder: of the model, in evaluation mode
        tokenizer: of its dictionary
    """

    def __init__(self, decoder: MemoryDecoder, tokenizer: Tokenizer):
        self.decoder, self.tokenizer = decoder, tokenizer
        self._versions: Dict[str, Version] = {}  # of the memory files that were read, by path

    @property
    def device(self) -> torch.device:
        """The device of the model, and of its memory."""
        return next(self.decoder.parameters()).device

    @property
    def memory(self) -> ExternalMemory:
        """The banks of training and evaluation.

        Raises:
            ValueError: the model has none
        """
        if self.decoder.memory is None:
            raise ValueError("this model has no memory: it is a backbone, or was made without one")
        return self.decoder.memory

    def memorize(
        self,
        texts: Union[Text, Iterable[Text]],
        names: Union[str, Sequence[str], None] = None,
        progress: bool = True,
        special_tokens: bool = False,
        words_only: bool = False,
    ) -> int:
        """Reads documents into memory, each from its beginning.

        Args:
            texts: documents: a string is a text, a ``Path`` is a file, or a pattern of files
            names: their names in passages (default: the file's path, or ``document N``)
            progress: show a bar, on a terminal
            special_tokens: read those that the texts spell out; otherwise they are text
            words_only: remember the tokens alone, which takes no pass of the model: what is found by
                its words (excerpts, literal matches) is found, and nothing by its meaning

        Returns:
            how many tokens the documents have

        Raises:
            FileNotFoundError: there is no such file
            ValueError: a text is empty, or not in UTF-8; names are missing; the memory is frozen; or
                there are to be only words where a SideNet reads keys and values
        """
        self._check_not_frozen()
        return memorizing.memorize_documents(
            self.decoder,
            self.tokenizer,
            self.memory.single_bank(self.device),
            named_texts(texts, names),
            progress,
            special_tokens,
            words_only,
        )

    def save_memory(self, path: Text, replaces: Optional[Version] = None) -> None:
        """Writes the memory to a file, at once or not at all.

        A file that was read here, and that another process has saved since, is left as it is (but
        those of a memory that is split over processes).

        Args:
            replaces: ``file_version(path)`` when the work began, for a file that was not read here
                (default: whatever is there)

        Raises:
            OSError: the file cannot be written, is read-only, or was saved by another process
            ValueError: the model has no memory
        """
        bank, file = self.memory.single_bank(self.device), os.path.abspath(path)
        self._versions[file] = bank.save(str(path), self._versions.get(file, replaces))

    def load_memory(self, path: Text, memory_map: bool = False) -> None:
        """Takes the memory of a file instead of the one that is there.

        Args:
            memory_map: leave keys and values in the file; see :meth:`MemoryBank.load`

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is damaged, of another backbone or other sizes, or of several streams; or
                the memory is frozen
        """
        self._check_not_frozen()
        version = file_version(str(path))
        self.memory.load(str(path), training=False, device=self.device, memory_map=memory_map)
        self._versions[os.path.abspath(path)] = version

    def forget(self, name: Optional[str] = None) -> int:
        """Empties the memory, or removes one document from it.

        Args:
            name: of the document; the others stay as they are (default: all go)

        Returns:
            how many tokens were forgotten

        Raises:
            ValueError: there is no such document; or the memory is frozen, or there is none
        """
        self._check_not_frozen()
        if name is None:
            return memorizing.forget_all(self.memory)
        return memorizing.forget_named(self.memory.single_bank(self.device), name)

    @contextmanager
    def frozen_memory(self) -> Iterator[None]:
        """Inside, nothing is memorized: a text sees what was before, and its own segment.

        Raises:
            ValueError: the model has no memory
        """
        with self.memory.frozen():
            yield

    def excerpts(self, query: str, max_tokens: int = 512) -> List[Found]:
        """What the memory holds that shares words with a query, in the order of the memory.

        Args:
            max_tokens: of all excerpts together, at most; an excerpt has 128

        Raises:
            ValueError: the query is empty, *max_tokens* is below 128, or the model has no memory
        """
        tokens = document_tokens(self.tokenizer, query, bare=True)[0]
        log = self.memory.single_bank(self.device).logs[0]
        return [
            Found(
                excerpt.source.name,
                max(0, excerpt.source.offset),
                self.tokenizer.decode(log.read(excerpt.tokens).tolist()),
                excerpt.score,
            )
            for excerpt in self._find(tokens, max_tokens)
        ]

    def with_excerpts(self, prompt: Tensor, max_tokens: int) -> Tensor:
        """The T tokens of a prompt, and before them what :meth:`excerpts` finds for the last 128 of
        them, each on a line of its own; all after the beginning of a document, if the prompt has one.

        Warns where the window does not hold them together.

        Args:
            max_tokens: of all excerpts together, at most; 0: none

        Raises:
            ValueError: see :meth:`excerpts`
        """
        if max_tokens == 0:
            return prompt
        log = self.memory.single_bank(self.device).logs[0]
        newline = torch.from_numpy(self.tokenizer.indices("\n")).long()
        start = int(prompt[0] == self.tokenizer.document_start)
        lines = [
            part.to(prompt)
            for excerpt in self._find(prompt[start:], max_tokens)
            for part in (log.read(excerpt.tokens), newline)
        ]
        together = torch.cat([prompt[:start], *lines, prompt[start:]])
        if lines and len(together) > self.decoder.window:
            logger.warning(
                f"prompt and excerpts have {len(together):,} tokens and the window "
                f"{self.decoder.window:,}: the first are not in it; ask for fewer excerpts, or "
                "widen it (tokens_per_sample)"
            )
        return together

    def _find(self, query: Tensor, max_tokens: int) -> List[Excerpt]:
        check_excerpts(max_tokens)
        words = torch.from_numpy(self.tokenizer.words)
        return find_excerpts(self.memory.single_bank(self.device), 0, query, max_tokens, words)

    def fork(self, rows: int) -> Optional[MemoryFork]:
        """The memory of texts that leave it as it is; None for a model without."""
        if self.decoder.memory is None:
            return None
        return self.memory.fork(rows, self.device, THIS_TEXT)

    def _check_not_frozen(self) -> None:
        if self.memory.read_only:
            raise ValueError("the memory is frozen: leave frozen_memory() first")
