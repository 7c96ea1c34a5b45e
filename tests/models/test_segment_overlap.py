"""Segments that begin with tokens of the one before: every token's context against a plain loop."""

import pytest
import torch
from fairseq.sequence_scorer import SequenceScorer
from torch.testing import assert_close

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.data import DocumentStreamDataset
from longmem_fairseq.models.memtrm import MemTRMConfig
from tests.helpers.overlapping_segments import one_by_one
from tests.helpers.small_models import SEGMENT, document

PAD, BOS = 1, 2
SIZES = (37, 23, 5, 1)
HIDDEN = {"memory_search": "hidden", "search_dim": 16, "chunk_size": 1}
KINDS = {
    "longmem": {},
    "memtrm": {"config": MemTRMConfig},
    "no memory": {"no_memory": True},
    "hidden search": {**HIDDEN, "pointer": "constant"},
    "hidden search, chunks": {**HIDDEN, "pointer": "trained", "chunk_size": 2},
    "pointer alone": {**HIDDEN, "pointer": "constant", "no_sidenet": True},
}


class Documents:
    """A document of each of SIZES."""

    sizes = torch.tensor(SIZES).numpy()
    tokens = [document(seed, size)[0] for seed, size in enumerate(SIZES)]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index]


@pytest.fixture(params=["backbone", *KINDS])
def model(request, build, backbone):
    if request.param == "backbone":
        return backbone
    model = build(perturb=True, **KINDS[request.param])
    if getattr(model.decoder, "search_keys", None) is not None:
        model.decoder.fit_search_keys([document(90 + i, SEGMENT) for i in range(9)])
    return model


def streams(overlap, batch_size=2):
    return DocumentStreamDataset(
        Documents(),
        pad=PAD,
        bos=BOS,
        batch_size=batch_size,
        tokens_per_sample=SEGMENT,
        segment_overlap=overlap,
    )


@pytest.mark.parametrize("overlap", [1, 3, 6])
def test_every_token_sees_what_a_plain_loop_shows_it(model, overlap):
    """More than half a segment, too, of which the second one of a document cannot have all."""
    expected = [one_by_one(model.decoder, tokens, BOS, overlap) for tokens in Documents.tokens]
    if model.decoder.memory is not None:
        model.decoder.memory.reset()
    predicted = [[] for _ in SIZES]
    for batch in streams(overlap):
        with torch.no_grad():
            output = model(**batch["net_input"])
        found = model.get_normalized_probs(output, log_probs=True)
        for row, number in enumerate(batch["id"].tolist()):
            predicted[number].append(found[row][batch["target"][row] != PAD])
    for found, wanted in zip(predicted, expected, strict=True):
        assert_close(torch.cat(found), wanted, atol=2e-4, rtol=1e-4)


def test_fairseq_eval_lm_scores_what_is_predicted(model, task):
    expected = one_by_one(model.decoder, Documents.tokens[0], BOS, 3)
    expected = expected.gather(1, Documents.tokens[0].unsqueeze(1))[:, 0]
    if model.decoder.memory is not None:
        model.decoder.memory.reset()
    scorer, scores = SequenceScorer(task.target_dictionary), []
    for batch in streams(3, batch_size=1):
        if int(batch["id"]) == 0:
            ((best,),) = scorer.generate([model], batch)
            assert len(best["positional_scores"]) == len(best["tokens"]) == batch["ntokens"]
            scores.append(best["positional_scores"])
    assert_close(torch.cat(scores), expected, atol=2e-4, rtol=1e-4)


def test_memory_holds_every_token_once(build):
    model, batches = build(), list(streams(3, batch_size=1))
    first = [batch for batch in batches if int(batch["id"]) == 0]
    for batch in first:
        with torch.no_grad():
            model(**batch["net_input"])
    bank = model.decoder.memory.bank
    source = [BOS, *Documents.tokens[0][:-1].tolist()]
    assert bank.logs[0].read(bank.held(0)).tolist() == source
    again = build()
    for batch in first:
        again.decoder.memorize_streams(**batch["net_input"])
    found, expected = again.decoder.memory.bank.state_dict(), bank.state_dict()
    for name, tensor in expected.items():
        assert_close(found[name], tensor)


def test_only_what_is_predicted_counts_in_the_loss(build, task):
    model, other, criterion = build(), build(), LongMemCrossEntropyCriterion(task)
    model.train()
    criterion.num_updates = 0  # in which memory_gain is measured
    for batch in streams(3):
        wanted = batch["target"] != PAD
        loss, size, log = criterion(model, batch)
        assert size == log["ntokens"] == int(wanted.sum())
        with torch.no_grad():
            log_probs = other(**batch["net_input"])[0].log_softmax(dim=-1)
        own = -log_probs.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1)[wanted].sum()
        assert_close(loss, own, atol=1e-4, rtol=1e-5)
        assert log["gain_tokens"] == wanted[0].sum()
