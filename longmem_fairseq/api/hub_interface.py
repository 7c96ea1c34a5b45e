"""A trained model in three lines: memorise documents, score and continue texts, see what was read.

B texts, T tokens, V vocabulary.
"""

import logging
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from longmem_fairseq.api.generation import Continuation, check_generation, drawn
from longmem_fairseq.api.passages import Passage, read_passages
from longmem_fairseq.api.pretrained import load_pretrained
from longmem_fairseq.api.prompts import document_tokens, prompt_tokens
from longmem_fairseq.api.reading import progress_bar, read_segments
from longmem_fairseq.memory import ExternalMemory, MemoryFork, forget_document
from longmem_fairseq.modules import token_losses
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.tokenizers.chat_template import Message
from longmem_fairseq.utils.replaced_file import Version, file_version
from longmem_fairseq.utils.text_files import Text, named_texts, read_text

logger = logging.getLogger(__name__)

THIS_TEXT = "this text"  # what passages of the text that is being read are cited as


class TokenScores(NamedTuple):
    """The tokens of a text, which joined are the text, and the log-probability (nats) of each."""

    tokens: List[str]
    log_probs: Tensor


class TokenReading(NamedTuple):
    """A token, and the passages that were read to predict it: by head, the weightiest first."""

    token: str
    passages: List[Passage]


class LongMem:
    """A language model with its tokenizer and, if it has one, its memory.

    A text is read as in evaluation: from the beginning-of-document token on, in segments of
    ``window`` tokens, each of which begins with the last ``segment_overlap`` tokens of the one before.
    Every segment sees what was memorised and, through memory, the segments before it; afterwards the
    memory is as it was.

    Args:
        model: ``longmem``, ``memtrm`` or ``longmem_backbone``, in evaluation mode
        tokenizer: of its dictionary
    """

    def __init__(self, model, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.decoder, self.dictionary = model.decoder, tokenizer.dictionary
        self.window = self.decoder.window
        self._versions: Dict[str, Version] = {}  # of the memory files that were read, by path

    @classmethod
    def from_pretrained(
        cls,
        path: Text,
        device: Union[str, torch.device] = "cpu",
        dtype: Union[str, torch.dtype, None] = None,
        **overrides,
    ) -> "LongMem":
        """The model of a folder, which also holds dict.txt and the tokenizer.

        Args:
            path: the folder, or a checkpoint in it; one that was converted with --no-tokenizer
                takes token ids, in :meth:`logits`, and no texts
            dtype: of the matrix products: float32, bfloat16 or float16 (default: as it was trained)
            overrides: ``tokens_per_sample`` (the window), ``segment_overlap`` (tokens of it that are
                context from before), ``pretrained_model_path`` (the backbone's checkpoint), or options
                of the memory (``memory_size``, ``k``, ``memory_index``, ...)

        Raises:
            FileNotFoundError: there is no checkpoint, dictionary, tokenizer or backbone
            ValueError: one of them is damaged, or an option does not fit
        """
        if dtype is not None:
            overrides["compute_dtype"] = str(dtype).removeprefix("torch.")
        return cls(*load_pretrained(Path(path), device, overrides))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def memory(self) -> ExternalMemory:
        """
        Raises:
            ValueError: the model has none
        """
        if self.decoder.memory is None:
            raise ValueError("this model has no memory: it is a backbone, or was made without one")
        return self.decoder.memory

    @torch.no_grad()
    def memorize(
        self,
        texts: Union[Text, Iterable[Text]],
        names: Union[str, Sequence[str], None] = None,
        progress: bool = True,
        special_tokens: bool = False,
    ) -> int:
        """Reads documents into memory, each from its beginning.

        Args:
            texts: documents: a string is a text, a ``Path`` is a file, or a pattern of files
            names: what to cite them as (default: the file's path, or ``document N``)
            progress: show a bar, on a terminal
            special_tokens: read those that the texts spell out; otherwise they are text

        Returns:
            how many tokens the documents have

        Raises:
            FileNotFoundError: there is no such file
            ValueError: a text is empty, or not in UTF-8; names are missing; the memory is frozen
        """
        self._check_not_frozen()
        documents, count = named_texts(texts, names), 0
        bank = self.memory.single_bank(self.device)
        oldest = bank.held(0).start
        with progress_bar("memorising", progress) as bar:
            for name, text in documents:
                bank.begin_document(0, name or f"document {len(bank.sources[0]) + 1}", offset=-1)
                text = read_text(text) if isinstance(text, Path) else text
                tokens = self._tokens(text, special_tokens)
                for segment, overlap in self.decoder.segments(tokens):
                    new = slice(overlap, None)
                    entries = self.decoder.entries(segment).of_tokens(new)
                    bank.write(**entries._asdict(), token_ids=segment[:, new])
                    bar.update(segment.size(1) - overlap)
                count += tokens.size(1) - 1
        if (forgotten := bank.held(0).start - oldest) > 0:
            logger.warning(
                f"the memory holds {bank.layout.memory_size:,} tokens: {forgotten:,} that were read "
                "before are forgotten; raise memory_size"
            )
        return count

    def save_memory(self, path: Text, replaces: Optional[Version] = None) -> None:
        """Writes what was memorised to a file, at once or not at all.

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
        """Takes what was memorised from a file, instead of what is there.

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

    @torch.no_grad()
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
            bank = self.memory.banks.get(False)
            forgotten = (
                0 if bank is None else sum(len(bank.held(i)) for i in range(bank.layout.num_banks))
            )
            self.memory.reset()
            return forgotten
        bank = self.memory.single_bank(self.device)
        names = bank.documents(0)
        if name not in names:
            there = ", ".join(map(repr, names)) or "none"
            raise ValueError(f"no document {name!r} is in memory, which holds: {there}")
        return forget_document(bank, name)

    @contextmanager
    def frozen_memory(self):
        """Inside, nothing is memorised: a text sees what was before, and its own segment.

        Raises:
            ValueError: the model has no memory
        """
        with self.memory.frozen():
            yield

    @torch.no_grad()
    def score(
        self, text: str, memory: bool = True, progress: bool = False, special_tokens: bool = False
    ) -> TokenScores:
        """The log-probability of every token of a text, also of the first.

        Args:
            memory: read it; otherwise a segment is all that is seen
            progress: show a bar
            special_tokens: read those that the text spells out; otherwise they are text

        Raises:
            ValueError: the text is empty
        """
        source, target = self._source_and_target(text, special_tokens)
        fork = self.fork(1) if memory else None
        segments = read_segments(self.decoder, source, fork, progress=progress)
        targets = target.split(self.window - self.decoder.overlap, dim=1)
        losses = [
            token_losses(logits, expected, self.dictionary.pad())
            for logits, expected in zip(segments, targets, strict=True)
        ]
        pieces = self.tokenizer.pieces(target[0].tolist(), special_tokens)
        return TokenScores(pieces, -torch.cat(losses, dim=1)[0].cpu())

    @torch.no_grad()
    def logits(self, token_ids: Union[Tensor, Sequence[Sequence[int]]]) -> Tensor:
        """Predicts the token after each of B x T; B x T x V.

        Ids are the dictionary's, in and out; for a converted model they are its checkpoint's own.
        Every row is a text of its own, to which nothing is added: what stands before a document is
        ``lm.tokenizer.document_start`` of the dictionary.

        Raises:
            ValueError: they are not B x T ids
        """
        tokens, ids = torch.as_tensor(token_ids, device=self.device), self.tokenizer.ids
        size = len(self.dictionary) if ids is None else ids.num_ids
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(f"token_ids of shape {tuple(tokens.shape)}, expected B x T")
        if tokens.is_floating_point() or tokens.min() < 0 or tokens.max() >= size:
            raise ValueError(f"token_ids must be whole numbers from 0 to {size - 1}")
        tokens, fork = tokens.long(), self.fork(tokens.size(0))
        if ids is None:
            return torch.cat(list(read_segments(self.decoder, tokens, fork)), dim=1)
        index = torch.from_numpy(ids.to_dictionary).long().to(self.device)
        return torch.cat(list(read_segments(self.decoder, index[tokens], fork)), dim=1)[..., index]

    @torch.no_grad()
    def retrieved(
        self,
        text: str,
        per_head: Optional[int] = None,
        progress: bool = False,
        special_tokens: bool = False,
    ) -> List[TokenReading]:
        """The passages that were read to predict every token of a text.

        Args:
            per_head: at most so many of each head (default: all that were read)
            progress: show a bar
            special_tokens: read those that the text spells out; otherwise they are text

        Raises:
            ValueError: the text is empty, *per_head* is not positive, or the model has no memory
        """
        if per_head is not None and per_head < 1:
            raise ValueError(f"per_head ({per_head}) must be at least 1")
        source, target = self._source_and_target(text, special_tokens)
        fork, passages, of_segment = self.memory.fork(1, self.device, THIS_TEXT), [], []

        def look(*found):
            of_segment[:] = read_passages(*found, self.decoder.gate, self.tokenizer, per_head)

        for scores in read_segments(self.decoder, source, fork, look, progress):
            passages += of_segment[-scores.size(1) :]
        pieces = self.tokenizer.pieces(target[0].tolist(), special_tokens)
        return [TokenReading(*token) for token in zip(pieces, passages, strict=True)]

    @torch.no_grad()
    def generate(
        self,
        prompt: Union[str, Sequence[Message]],
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        beam: int = 1,
        seed: Optional[int] = None,
        stop: Union[str, Sequence[str]] = (),
        progress: bool = False,
        special_tokens: bool = False,
        chat: bool = False,
    ) -> str:
        """Continues a text, at most until its document ends.

        Args:
            prompt: how the document begins; it may be longer than the window. With *chat* what the user
                says, or all messages, as in ``[{"role": "user", "content": "Hello"}]``
            max_new_tokens: at most so many
            temperature: 0 for the most likely continuation; otherwise tokens are drawn, at 1 from the
                model's own distribution, below 1 (down to 0.001) from a sharper one
            top_k, top_p: draw from the *top_k* most likely tokens, and of these from as few as have
                the probability *top_p* together (default: from all)
            beam: hypotheses of the search for the most likely continuation (1: greedy)
            seed: of the draws (default: PyTorch's generator goes on)
            stop: strings before the first of which the text ends; one that is a special token of the
                model ends it at that token too
            progress: show a bar
            special_tokens: read those that the prompt spells out; otherwise they are text
            chat: make the prompt with the model's own chat template, and answer it

        Returns:
            what follows the prompt

        Raises:
            ValueError: the prompt is empty, or an argument does not fit
        """
        stop = [stop] if isinstance(stop, str) else list(stop)
        check_generation(max_new_tokens, temperature, top_k, top_p, beam, seed, stop)
        tokens = prompt_tokens(self.decoder, self.tokenizer, prompt, special_tokens, chat)
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices, enabled=seed is not None),
            progress_bar("generating", progress, max_new_tokens) as bar,
        ):
            if seed is not None:
                torch.manual_seed(seed)
            following = Continuation(
                self.decoder,
                self.tokenizer,
                tokens.to(self.device),
                max_new_tokens,
                stop,
                bar.update,
            )
            if beam > 1:
                return following.text(following.beam_search(beam))
            if temperature == 0:
                return following.text(following.one_by_one(lambda scores: scores.argmax(dim=-1)))
            draw = partial(drawn, top_k=top_k, top_p=top_p, temperature=temperature)
            return following.text(following.one_by_one(draw))

    def fork(self, rows: int) -> Optional[MemoryFork]:
        """The memory of texts that leave it as it is; None for a model without."""
        if self.decoder.memory is None:
            return None
        return self.memory.fork(rows, self.device, THIS_TEXT)

    def _tokens(self, text: str, special_tokens: bool) -> Tensor:
        """1 x (1 + T): the beginning of a document, and its tokens."""
        return document_tokens(self.tokenizer, text, special_tokens).to(self.device)

    def _source_and_target(self, text: str, special_tokens: bool) -> Tuple[Tensor, Tensor]:
        tokens = self._tokens(text, special_tokens)
        if tokens.size(1) < 2:
            raise ValueError("the text is nothing but the beginning of a document")
        return tokens[:, :-1], tokens[:, 1:]

    def _check_not_frozen(self) -> None:
        if self.memory.read_only:
            raise ValueError("the memory is frozen: leave frozen_memory() first")
