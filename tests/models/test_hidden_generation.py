"""Generation with ``--memory-search hidden`` and a pointer, token by token and by fairseq."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch.testing import assert_close

from tests.helpers.hidden_models import KINDS
from tests.helpers.small_models import HALF, SEGMENT, document


@pytest.fixture(params=KINDS)
def model(request, make):
    return make(**KINDS[request.param])


@torch.no_grad()
def recomputed(decoder, tokens):
    """Log-probabilities after the last of B x T tokens, reading them anew in halves of a segment."""
    past = decoder.left_behind(tokens.size(1))
    start = torch.ones(tokens.size(0), dtype=torch.bool)
    decoder.memory.reset()
    for segment in tokens[:, :past].split(HALF, dim=1):
        decoder(segment, new_document=start)
        start = torch.zeros_like(start)
    output = decoder(tokens[:, past:], new_document=start)
    decoder.memory.reset()
    return decoder.get_normalized_probs(output, log_probs=True)[:, -1]


@torch.no_grad()
def test_token_by_token_past_the_window_equals_reading_everything_anew(model):
    decoder, tokens, state = model.decoder, document(1, 4 * SEGMENT + 3, rows=2), {}
    for stop in range(1, tokens.size(1) + 1):
        output = decoder(tokens[:, :stop], incremental_state=state)
        found = decoder.get_normalized_probs(output, log_probs=True)[:, -1]
        if stop % 5 == 0 or stop > 4 * SEGMENT:
            assert_close(found, recomputed(decoder, tokens[:, :stop]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kind", ["SideNet and trained pointer", "constant pointer"])
def test_fairseqs_generator_uses_the_mixture(make, task, kind, beam):
    """The probabilities that it reports are those of the mixture, and greedy takes the largest."""
    model = make(**KINDS[kind])
    decoder, dictionary = model.decoder, task.source_dictionary
    prompt, new = document(3, 2 * SEGMENT + 2), 6
    generator = SequenceGenerator(
        [model],
        dictionary,
        beam_size=beam,
        max_len_a=1,
        max_len_b=new,
        min_len=prompt.size(1) + new,
    )
    sample = {"net_input": {"src_tokens": prompt, "src_lengths": torch.tensor([prompt.size(1)])}}
    (found,) = task.inference_step(generator, [model], sample)
    assert len(found) == beam
    start = torch.tensor([task.document_start])
    for hypothesis in found:
        tokens = torch.cat([start, hypothesis["tokens"]]).unsqueeze(0)
        scores = []
        for length in range(prompt.size(1) + 1, tokens.size(1) - 1):
            log_probs = recomputed(decoder, tokens[:, :length])
            scores.append(log_probs[0, tokens[0, length]])
            if beam == 1:
                legal = log_probs[0].clone()
                legal[[dictionary.pad(), dictionary.eos()]] = -torch.inf
                assert legal.argmax() == tokens[0, length]
        at = slice(prompt.size(1), prompt.size(1) + len(scores))
        assert_close(hypothesis["positional_scores"][at], torch.stack(scores), atol=1e-4, rtol=0)
        assert len(scores) >= new - 1


def test_logits_of_other_tokens_than_the_pointers_are_refused(make):
    """As fairseq-eval-lm --softmax-batch would give them."""
    model = make(pointer="trained")
    tokens = document(1, SEGMENT)
    model(document(2, SEGMENT), new_document=torch.tensor([True]))
    logits, extra = model(tokens, new_document=torch.tensor([False]))
    with pytest.raises(ValueError, match="--softmax-batch cannot be used"):
        model.get_normalized_probs((logits[:, :3], extra), log_probs=True)
