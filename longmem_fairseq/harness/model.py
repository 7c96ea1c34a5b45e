"""The model ``longmem`` of lm-evaluation-harness.

Importing this module registers it; the harness looks for no plugins, so ``longmem-lm-eval`` does.
"""

import logging
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from tqdm import tqdm

from longmem_fairseq.api.decoding import Draw, decode
from longmem_fairseq.api.generation import check_generation
from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.api.remembering import check_excerpts
from longmem_fairseq.api.scoring import Row, batches, score_rows
from longmem_fairseq.api.text_stream import TextStream

logger = logging.getLogger(__name__)

MOST_APART = 64  # tokens between the shortest and the longest prompt of a batch
GENERATION = ("temperature", "top_k", "top_p", "do_sample", "until", "max_gen_toks")


@register_model("longmem")
class LongMemHarness(TemplateLM):
    """Every request starts from the given memory and leaves it as it was.

    Of a request longer than the window, the window holds the last tokens, and the memory those before;
    see :func:`score_rows` and :func:`decode`. Ids are the dictionary's.

    Args:
        pretrained: folder of a model
        memory: memory file (default: an empty memory)
        memory_size, window: in tokens (default: as it was trained)
        dtype: float32, bfloat16 or float16 (default: as it was trained)
        add_bos_token: begin every text with the symbol before a document (default: where the model's
            own tokenizer does, and for models without one)
        excerpts: tokens of the memory that are read again before every context; 0: none
        max_gen_toks: where the task does not say how long an answer may be
        batch_size, max_batch_size, device: the harness's
        options: further ones of the model, such as k or memory_index

    Raises:
        FileNotFoundError, ValueError: see :meth:`LongMem.from_pretrained`
    """

    def __init__(
        self,
        pretrained: str,
        memory: Optional[str] = None,
        memory_size: Optional[int] = None,
        window: Optional[int] = None,
        dtype: Optional[str] = None,
        add_bos_token: Optional[bool] = None,
        excerpts: int = 0,
        max_gen_toks: int = 256,
        batch_size: Union[int, str] = 1,
        max_batch_size: Optional[int] = None,
        device: Optional[str] = None,
        **options,
    ):
        super().__init__()
        self.batch_size = _positive("batch_size", batch_size)
        self.max_gen_toks = _positive("max_gen_toks", max_gen_toks)
        self.excerpts = _positive("excerpts", excerpts) if excerpts else 0
        if self.excerpts:
            check_excerpts(self.excerpts)
        sizes = {"memory_size": memory_size, "tokens_per_sample": window}
        for name, value in sizes.items():
            if value is not None:
                label = "window" if name == "tokens_per_sample" else name
                options[name] = _positive(label, value)
        if device == "cuda:0" and not torch.cuda.is_available():  # the harness's default
            logger.warning("there is no CUDA here: longmem runs on the CPU")
            device = "cpu"
        self.lm = LongMem.from_pretrained(pretrained, device or "cpu", dtype, **options)
        self._device, self.name = self.lm.device, str(pretrained)
        if memory is not None:
            self.lm.load_memory(memory)
        self.special_tokens = bool(self.lm.tokenizer.special_tokens)
        ids = self.lm.tokenizer.ids
        usual = ids is None or ids.start == "bos"  # as the model's own tokenizer does
        self.adds_start = usual if add_bos_token is None else add_bos_token

    @property
    def eot_token_id(self) -> int:
        """The end of a text, for the harness."""
        return self.lm.dictionary.eos()

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text whose context is empty: as for ``hf``, bos where the model has one."""
        ids = self.lm.tokenizer.ids
        has_bos = ids is not None and "bos" in ids.specials
        return self.lm.dictionary.bos() if has_bos else self.lm.tokenizer.document_start

    @property
    def max_length(self) -> int:
        """Tokens of the local window."""
        return self.lm.window

    def tok_encode(
        self, string: str, add_special_tokens: Optional[bool] = None, **unused
    ) -> List[int]:
        """Dictionary indices of a text.

        Args:
            add_special_tokens: begin with the symbol before a document (default: as *add_bos_token*)
        """
        adds = self.adds_start if add_special_tokens is None else add_special_tokens
        if not string:
            return [self.prefix_token_id] if adds else []
        tokenizer = self.lm.tokenizer
        return document_tokens(tokenizer, string, self.special_tokens, bare=not adds)[0].tolist()

    @property
    def tokenizer_name(self) -> str:
        """The model's folder, by which the harness tells chat templates apart."""
        return self.name

    def chat_template(self, chat_template: Union[bool, str] = False) -> Optional[str]:
        """The model's own, the only one there is."""
        if not chat_template:
            return None
        if chat_template is not True:
            raise ValueError(
                f"--apply_chat_template ({chat_template}): a model has one, without a name"
            )
        return self.lm.tokenizer.ids.chat_template if self.lm.tokenizer.ids is not None else None

    def apply_chat_template(
        self, chat_history: List[Dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a chat, with the model's own template.

        Raises:
            ValueError: the model has no template, or the task begins the answer itself
        """
        if not add_generation_prompt:
            raise ValueError("longmem cannot go on with an answer that the task begins")
        self.adds_start = False  # the template writes it
        return self.lm.tokenizer.spelled_chat(chat_history)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> List[float]:
        """The log-probability (nats) of each whole text."""
        rows = [
            (None, [self.prefix_token_id], self.tok_encode(text, add_special_tokens=False))
            for (text,) in (request.args for request in requests)
        ]
        scores = [score for score, _ in self._loglikelihood_tokens(rows, disable_tqdm)]
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Tuple], disable_tqdm: bool = False, **unused
    ) -> List[Tuple[float, bool]]:
        rows = [Row(self._row(*request), len(request[2])) for request in requests]
        results = [(0.0, True)] * len(rows)  # of rows without scored tokens
        scored = [i for i, row in enumerate(rows) if row.scored > 0]
        lengths = [len(rows[i].tokens) for i in scored]
        with tqdm(total=len(scored), disable=disable_tqdm, desc="longmem: loglikelihood") as bar:
            for batch in batches(self.lm, lengths, self.batch_size):
                batch = [scored[i] for i in batch]
                for i, scores in zip(
                    batch, score_rows(self.lm, [rows[i] for i in batch]), strict=True
                ):
                    targets = rows[i].tokens[-rows[i].scored :]
                    greedy = bool((scores.choices[:, 0] == targets).all())
                    results[i] = (float(scores.log_probs.sum()), greedy)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                bar.update(len(batch))
        return results

    def _row(self, texts: Optional[tuple], before: List[int], scored: List[int]) -> torch.Tensor:
        """The tokens of a request; those of a whole text (*texts* None) have no context."""
        context = torch.tensor(before or [self.prefix_token_id])
        if texts is not None:
            context = self.lm.with_excerpts(context, self.excerpts)
        return torch.cat([context, torch.tensor(scored, dtype=torch.long)])

    def generate_until(self, requests, disable_tqdm: bool = False) -> List[str]:
        """The continuation of each context, up to the strings that its task names."""
        groups = Collator(
            [r.args for r in requests], group_by="gen_kwargs", group_fn=lambda x: x[1]
        )
        texts = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="longmem: generate") as bar:
            for group in groups.get_batched(n=0):
                contexts, all_options = zip(*group, strict=True)
                for (context, options), text in zip(
                    group, self._generate(contexts, all_options[0], bar), strict=True
                ):
                    self.cache_hook.add_partial("generate_until", (context, options), text)
                    texts.append(text)
        return groups.get_original(texts)

    def _generate(self, contexts: Sequence[str], options: Dict, bar: tqdm) -> List[str]:
        """The continuation of each of the contexts, all with the same options."""
        options = normalize_gen_kwargs(options, self.max_gen_toks)
        for name in options:
            if name not in GENERATION:
                raise ValueError(
                    f"{name} is no option of a generation: expected {', '.join(GENERATION)}"
                )
        stop = [text for text in options.get("until") or () if text]
        drawing = {name: options.get(name) or 0 for name in ("temperature", "top_k", "top_p")}
        if drawing["temperature"] == 0:
            drawing = {"temperature": 0.0, "top_k": 0, "top_p": 0.0}
        length = options["max_gen_toks"]
        check_generation(length, **drawing, beam=1, seed=None, stop=stop)
        seed = int(torch.randint(2**31, ())) if drawing["temperature"] else None  # of --seed
        draw = Draw(**drawing, seed=seed, device=self.lm.device)
        prompts = [torch.tensor(self.tok_encode(c) or [self.prefix_token_id]) for c in contexts]
        prompts = [self.lm.with_excerpts(prompt, self.excerpts) for prompt in prompts]
        streams = [TextStream(self.lm.tokenizer, stop) for _ in contexts]
        for batch in batches(
            self.lm, [len(prompt) for prompt in prompts], self.batch_size, MOST_APART
        ):
            rows = [streams[i] for i in batch]
            decode(
                self.lm.decoder,
                self.lm.tokenizer,
                [prompts[i] for i in batch],
                length,
                lambda row, token, rows=rows: rows[row].push(token.index),
                draw,
                stop=stop,
            )
            bar.update(len(batch))
        for stream in streams:
            stream.finish()
        return [stream.text for stream in streams]


def _positive(name: str, value) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} ({value}) must be a whole number, at least 1")
    return value
