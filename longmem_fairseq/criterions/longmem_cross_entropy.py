"""Cross-entropy, and measurements of the memory beside it."""

import math
from dataclasses import dataclass, field
from typing import Dict

import torch
from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass

from longmem_fairseq.models.memory_decoder import unwrapped


@dataclass
class LongMemCrossEntropyConfig(FairseqDataclass):
    """The options of the criterion."""

    memory_gain_interval: int = field(
        default=10,
        metadata={
            "help": "every so many updates, one stream is also read without memory, for memory_gain, "
            "the worth of memory in nats per token; 0: never"
        },
    )


@register_criterion("longmem_cross_entropy", dataclass=LongMemCrossEntropyConfig)
class LongMemCrossEntropyCriterion(FairseqCriterion):
    """Sum of the negative log-likelihoods of all targets that are not padding.

    Logs ``loss`` (base 2), ``ppl``, and for a model with memory ``gate`` (mean over heads),
    ``memory_tokens`` (mean per bank before the segment is written) and ``retrieval_ms`` per batch (on a
    GPU the time to launch it, unless the index is one of faiss); with a pointer its mean weight as
    ``pointer``. ``memory_gain`` is the loss of the same model without memory less that with it, in nats
    per token: near 0, memory does nothing.
    """

    def __init__(self, task, memory_gain_interval: int = 10):
        super().__init__(task)
        if memory_gain_interval < 0:
            raise ValueError(
                f"--memory-gain-interval ({memory_gain_interval}) must be at least 1, or 0 for never"
            )
        self.memory_gain_interval = memory_gain_interval
        self.num_updates = 0  # so far; the task says so
        self.losses = None  # of the last batch, B x T, to find one that is not finite

    def forward(self, model, sample, reduce=True):
        """The loss of a batch, its number of targets, and the measurements to log."""
        losses, extra = model(**sample["net_input"], target=sample["target"])
        self.losses = losses.detach()
        loss = losses.sum() if reduce else losses.flatten()
        sample_size = sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if "memory_tokens" in extra:
            logging_output.update(
                memory_batches=1,
                memory_tokens=extra["memory_tokens"],
                retrieval_ms=1000 * extra["retrieval_seconds"],
                **self._memory_gain(model, sample),
            )
            if extra["gate"] is not None:
                logging_output.update(gate_batches=1, gate=extra["gate"])
            if extra["pointer"] is not None:
                weight = extra["pointer"].log_weight.detach().exp().mean()
                logging_output.update(pointer_batches=1, pointer=weight)
        return loss, sample_size, logging_output

    @torch.no_grad()
    def _memory_gain(self, model, sample) -> Dict:
        """The worth of memory to one stream of this batch, every so many updates."""
        if not (model.training and self.memory_gain_interval):
            return {}
        turn, rest = divmod(self.num_updates, self.memory_gain_interval)
        if rest != 0:
            return {}
        source, target = sample["net_input"]["src_tokens"], sample["target"]
        row = turn % len(source)
        one = slice(row, row + 1)
        devices = [source.device] if source.is_cuda else []
        with torch.random.fork_rng(devices):  # dropout of what is trained stays as it would be
            without = unwrapped(model).decoder.read(source[one], target=target[one]).losses
        tokens = target[one].ne(self.padding_idx).sum()
        return {"gain": (without - self.losses[one]).sum(), "gain_tokens": tokens}

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Logs the means over all batches of an update."""

        def total(name):
            return sum(log.get(name, 0) for log in logging_outputs)

        ntokens = total("ntokens")
        if ntokens > 0:
            loss = total("loss") / ntokens / math.log(2)
            metrics.log_scalar("loss", loss, ntokens, round=3)
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["loss"].avg))
        for name, batches, digits in (
            ("gate", "gate_batches", 3),
            ("pointer", "pointer_batches", 3),
            ("memory_tokens", "memory_batches", 0),
            ("retrieval_ms", "memory_batches", 1),
        ):
            if (count := total(batches)) > 0:
                metrics.log_scalar(name, total(name) / count, count, round=digits)
        if (tokens := total("gain_tokens")) > 0:
            metrics.log_scalar("memory_gain", total("gain") / tokens, tokens, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all are sums."""
        return True
