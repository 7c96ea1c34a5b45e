"""A trained model in three lines: memorize documents, score and continue texts, see what was read.

B texts, T tokens, V vocabulary.
"""

from pathlib import Path
from typing import List, Optional, Sequence, Union

import torch
from torch import Tensor

from longmem_fairseq.api import generation, reading
from longmem_fairseq.api.decoding import Draw
from longmem_fairseq.api.pretrained import load_pretrained, names_of_arguments
from longmem_fairseq.api.prompts import document_tokens, prompt_tokens
from longmem_fairseq.api.reading import THIS_TEXT, TokenReading, TokenScores, progress_bar
from longmem_fairseq.api.remembering import Remembering
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.tokenizers.chat_template import Message
from longmem_fairseq.utils.text_files import Text


class LongMem(Remembering):
    """A language model with its tokenizer and, if it has one, its memory.

    A text is read as in evaluation: from the beginning-of-document token on, in segments of
    ``window`` tokens, each of which begins with the last ``segment_overlap`` tokens of the one before.
    Every segment sees what was memorized and, through memory, the segments before it; afterwards the
    memory is as it was.

    Args:
        model: ``longmem``, ``memtrm`` or ``longmem_backbone``, in evaluation mode
        tokenizer: of its dictionary
    """

    def __init__(self, model, tokenizer: Tokenizer):
        super().__init__(model.decoder, tokenizer)
        self.model, self.dictionary = model, tokenizer.dictionary
        self.window = self.decoder.window

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
        with names_of_arguments():
            return cls(*load_pretrained(Path(path), device, overrides))

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
        fork, tokens = self.fork(1) if memory else None, self._tokens(text, special_tokens)
        return reading.token_scores(
            self.decoder, self.tokenizer, tokens, fork, progress, special_tokens
        )

    def logits(self, token_ids: Union[Tensor, Sequence[Sequence[int]]]) -> Tensor:
        """Predicts the token after each of B x T; B x T x V.

        Ids are the dictionary's, in and out; for a converted model they are its checkpoint's own.
        Every row is a text of its own, to which nothing is added: ``lm.tokenizer.document_start`` is
        the dictionary's index that stands before a document.

        Raises:
            ValueError: they are not B x T ids
        """
        return reading.logits_of_ids(self.decoder, self.tokenizer, token_ids, self.fork)

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
        tokens = self._tokens(text, special_tokens)
        fork = self.memory.fork(1, self.device, THIS_TEXT)
        return reading.token_readings(
            self.decoder, self.tokenizer, tokens, fork, per_head, progress, special_tokens
        )

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
        excerpts: int = 0,
    ) -> str:
        """Continues a text, at most until its document ends.

        Args:
            prompt: the beginning of the document; it may be longer than the window. With *chat* the
                user's message, or all messages, as in ``[{"role": "user", "content": "Hello"}]``
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
            excerpts: read what :meth:`excerpts` finds for the prompt before it, at most so many tokens

        Returns:
            the text after the prompt

        Raises:
            ValueError: the prompt is empty, or an argument does not fit
        """
        stop = [stop] if isinstance(stop, str) else list(stop)
        generation.check_generation(max_new_tokens, temperature, top_k, top_p, beam, seed, stop)
        tokens = prompt_tokens(self.decoder, self.tokenizer, prompt, special_tokens, chat)
        tokens = self.with_excerpts(tokens[0], excerpts).unsqueeze(0)
        draw = Draw(temperature, top_k, top_p, seed, self.device)
        with progress_bar("generating", progress, max_new_tokens) as bar:
            return generation.generate(
                *(self.decoder, self.tokenizer, tokens.to(self.device)),
                *(max_new_tokens, draw, beam, stop, bar.update),
            )

    def _tokens(self, text: str, special_tokens: bool) -> Tensor:
        """1 x (1 + T): the beginning of a document, and its tokens."""
        return document_tokens(self.tokenizer, text, special_tokens).to(self.device)
