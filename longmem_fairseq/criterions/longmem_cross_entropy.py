"""Cross-entropy, with what there is to know about the memory beside it."""

import math
from dataclasses import dataclass

from fairseq import metrics, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass

from longmem_fairseq.modules import token_losses


@dataclass
class LongMemCrossEntropyConfig(FairseqDataclass):
    pass


@register_criterion("longmem_cross_entropy", dataclass=LongMemCrossEntropyConfig)
class LongMemCrossEntropyCriterion(FairseqCriterion):
    """Sum of the negative log-likelihoods of all targets that are not padding.

    Logs ``loss`` (base 2), ``ppl``, and for a model with memory ``gate`` (mean over heads),
    ``memory_tokens`` (mean per bank before the segment is written) and ``retrieval_ms`` per batch (on a
    GPU the time to launch it, unless the index is one of faiss).
    """

    def __init__(self, task):
        super().__init__(task)
        self.losses = None  # of the last batch, B x T, to find what is not finite

    def forward(self, model, sample, reduce=True):
        logits, extra = model(**sample["net_input"])
        losses = token_losses(logits, sample["target"], self.padding_idx)
        self.losses = losses.detach()
        loss = losses.sum() if reduce else losses.flatten()
        sample_size = sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if "gate" in extra:
            logging_output.update(
                memory_batches=1,
                gate=extra["gate"],
                memory_tokens=extra["memory_tokens"],
                retrieval_ms=1000 * extra["retrieval_seconds"],
            )
        return loss, sample_size, logging_output

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        def total(name):
            return sum(log.get(name, 0) for log in logging_outputs)

        ntokens = total("ntokens")
        if ntokens > 0:
            loss = total("loss") / ntokens / math.log(2)
            metrics.log_scalar("loss", loss, ntokens, round=3)
            metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["loss"].avg))
        batches = total("memory_batches")
        if batches > 0:
            for name, digits in (("gate", 3), ("memory_tokens", 0), ("retrieval_ms", 1)):
                metrics.log_scalar(name, total(name) / batches, batches, round=digits)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
