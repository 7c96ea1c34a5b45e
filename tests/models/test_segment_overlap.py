"""Segments that begin with tokens of the one before: every token's context against a plain loop."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.data import DocumentStreamDataset
from longmem_fairseq.models.memtrm import MemTRMConfig
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


@torch.no_grad()
def one_by_one(model, tokens, overlap):
    """Log-probabilities after every token of a document, T x V, each from its own slice of it."""
    decoder, log_probs = model.decoder, []
    source = torch.cat([torch.tensor([BOS]), tokens[:-1]]).unsqueeze(0)
    memory, stride, retrieve = decoder.memory, SEGMENT - overlap, None
    if memory is not None:
        memory.reset()
        memory.begin(1, torch.tensor([True]), False, source.device)
        retrieve = memory.retrieve
    for start in range(0, len(tokens), stride):
        stop, begin = min(start + stride, len(tokens)), max(0, start - overlap)
        for place in range(start, stop):
            reading = decoder.read(source[:, begin : place + 1], retrieve)
            log_probs.append(reading.scores[0, -1].log_softmax(dim=-1))
        if memory is not None:
            entries = decoder.entries(source[:, begin:stop])
            search = entries.search_keys
            memory.write(
                entries.keys[:, :, start - begin :],
                entries.values[:, :, start - begin :],
                torch.ones(1, stop - start, dtype=torch.bool),
                source[:, start:stop],
                None if search is None else search[:, start - begin :],
            )
    return torch.stack(log_probs)


@pytest.mark.parametrize("overlap", [1, 3, 6])
def test_every_token_sees_what_a_plain_loop_shows_it(model, overlap):
    """More than half a segment, too, of which the second one of a document cannot have all."""
    expected = [one_by_one(model, tokens, overlap) for tokens in Documents.tokens]
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
        again.decoder.memorise(**batch["net_input"])
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
