"""fairseq-eval-lm on several ranks, each of which reads its own documents."""

import logging
import math
import time
from typing import Dict, Iterable, List

import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.sequence_scorer import SequenceScorer

from longmem_fairseq.memory import ShardedBank
from longmem_fairseq.utils.cli import as_option

logger = logging.getLogger(__name__)


def eval_lm_of_ranks(
    models: List[BaseFairseqModel],
    source_dictionary: Dictionary,
    batch_iterator: Iterable[Dict],
    target_dictionary: Dictionary,
    softmax_batch: int = 0,
    **options,
) -> Dict[str, float]:
    """``fairseq_cli.eval_lm.eval_lm`` for the documents of all ranks together.

    Losses and tokens are summed in float64 over what this rank reads, and then over the ranks, so that
    a rank counts as much as it has read.

    Returns:
        ``loss`` (base 2) and ``perplexity``, the same on every rank

    Raises:
        ValueError: an option whose output would be that of one rank
    """
    for name in ("post_process", "output_word_probs", "output_word_stats"):
        if options.get(name):
            raise ValueError(f"{as_option(name)} does not go with several processes: use one")
    device, start = next(models[0].parameters()).device, time.perf_counter()
    scorer = SequenceScorer(target_dictionary, softmax_batch)
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # bits, tokens
    for batch in batch_iterator:
        batch = utils.move_to_cuda(batch, device=device)
        for best, *_ in scorer.generate(models, batch):
            sums[0] -= best["positional_scores"].double().sum() / math.log(2)
        sums[1] += batch["ntokens"]
    memory = getattr(models[0].decoder, "memory", None)
    if memory is None or memory.bank_class is not ShardedBank:  # whose ranks all read everything
        torch.distributed.all_reduce(sums)
    loss, tokens = float(sums[0] / sums[1]), int(sums[1])
    seconds = time.perf_counter() - start
    logger.info(
        f"{torch.distributed.get_world_size()} processes evaluated {tokens:,} tokens in {seconds:.1f}s "
        f"({tokens / seconds:.2f} tokens/s): loss (base 2) {loss:.7f}, perplexity {2**loss:.6f}"
    )
    return {"loss": loss, "perplexity": 2**loss}
