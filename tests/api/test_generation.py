"""Token by token: the same as segment by segment, with memory, past the window, and for hypotheses."""

import pytest
import torch
from torch.testing import assert_close

from longmem_fairseq.memory import MemoryBank, MemoryFork, Source, select_banks
from longmem_fairseq.models import memory_decoder
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRMConfig
from tests.helpers.small_models import HALF, SEGMENT, document, recomputed

KINDS = ["longmem_backbone", "longmem", "longmem without memory", "memtrm"]


@pytest.fixture(params=KINDS)
def decoder(request, build, backbone):
    name, _, without = request.param.partition(" ")
    if name == "longmem_backbone":
        return backbone.eval().decoder
    config = MemTRMConfig if name == "memtrm" else LongMemConfig
    return build(config, perturb=True, no_memory=bool(without)).decoder


@torch.no_grad()
def test_token_by_token_past_the_window_equals_reading_everything_anew(decoder):
    tokens, state = document(1, 5 * SEGMENT + 3, rows=2), {}
    for stop in range(1, tokens.size(1) + 1):
        logits = decoder(tokens[:, :stop], incremental_state=state)[0][:, -1]
        assert_close(logits, recomputed(decoder, tokens[:, :stop]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_no_tokens_change_nothing(decoder):
    tokens, state = document(1, 5), {}
    expected = recomputed(decoder, tokens)
    for stop in (3, 3, 5):
        read = decoder(tokens[:, :stop], incremental_state=state)[0]
    assert_close(read[:, -1], expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, HALF, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 37])
def test_a_prompt_may_be_read_at_once(decoder, length):
    tokens, state = document(1, length + 2, rows=2), {}
    decoder(tokens[:, :length], incremental_state=state)
    for stop in (length + 1, length + 2):
        logits = decoder(tokens[:, :stop], incremental_state=state)[0][:, -1]
        assert_close(logits, recomputed(decoder, tokens[:, :stop]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_follows_the_last_token_is_all_that_is_predicted_unless_asked(decoder):
    tokens, last, every = document(1, HALF + 3, rows=2), {}, {}
    expected = decoder(tokens, incremental_state={}, last_only=False)[0]
    for stop in (HALF, HALF + 3):
        alone = decoder(tokens[:, :stop], incremental_state=last)[0]
        logits = decoder(tokens[:, :stop], incremental_state=every, last_only=False)[0]
        assert alone.size(1) == 1 and logits.size(1) == (HALF if stop == HALF else 3)
        assert_close(alone, logits[:, -1:], atol=1e-5, rtol=0)
        assert_close(logits, expected[:, stop - logits.size(1) : stop], atol=1e-4, rtol=0)


@torch.no_grad()
def test_hypotheses_go_on_as_others(decoder):
    """A beam search may repeat, drop and swap rows at any step, also before the window is full."""
    generator, state = torch.Generator().manual_seed(3), {}
    tokens = document(1, 1, rows=3)
    for step in range(4 * SEGMENT):
        rows = 3 if step < 20 else 2  # a sentence is finished
        order = torch.randint(0, tokens.size(0), (rows,), generator=generator)
        decoder(tokens, incremental_state=state)
        decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], document(step, 1, rows)], dim=1)
    logits = decoder(tokens, incremental_state=state)[0][:, -1]
    assert_close(logits, recomputed(decoder, tokens), atol=1e-4, rtol=0)
    assert not torch.equal(tokens[0], tokens[1])


@torch.no_grad()
def test_every_generation_gives_back_what_the_one_before_freed(decoder, monkeypatch):
    """Once: longer and longer prompts leave holes that nothing fits in, and a step frees little."""
    given_back = []
    monkeypatch.setattr(memory_decoder, "give_back_freed_memory", lambda: given_back.append(length))
    for length in (3, 5, 9):
        tokens, state = document(1, length + 4), {}
        for stop in range(length, length + 4):
            decoder(tokens[:, :stop], incremental_state=state)
    assert given_back == [3, 5, 9]


@torch.no_grad()
@pytest.mark.parametrize("frozen", [False, True])
def test_generation_reads_what_evaluation_memorized_and_leaves_it(build, frozen):
    decoder = build(perturb=True).decoder
    memorized, tokens = document(5, 40), document(1, 3 * SEGMENT, rows=3)
    for segment in memorized.split(SEGMENT, dim=1):
        decoder(segment)
    bank = decoder.memory.banks[False]
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    state, logits = {}, None
    with decoder.memory.frozen() if frozen else torch.no_grad():
        for stop in range(1, tokens.size(1) + 1):
            logits = decoder(tokens[:, :stop], incremental_state=state)[0][:, -1]
    assert decoder.memory.banks[False] is bank and bank.num_written == [20]
    for name, tensor in bank.state_dict().items():
        assert torch.equal(tensor, before[name])
    for row in range(3):  # alone, each after what was memorized
        decoder.memory.reset()
        for segment in memorized.split(SEGMENT, dim=1):
            decoder(segment)
        with decoder.memory.frozen() if frozen else torch.no_grad():
            for segment in tokens[row : row + 1, : 2 * SEGMENT].split(HALF, dim=1):
                decoder(segment)
            expected = decoder(tokens[row : row + 1, 2 * SEGMENT :])[0][:, -1]
        assert_close(logits[row : row + 1], expected, atol=1e-4, rtol=0)


def test_a_memory_of_several_streams_is_no_start(build):
    decoder = build(perturb=True).decoder
    with torch.no_grad():
        decoder(document(1, SEGMENT, rows=2))
    with pytest.raises(ValueError, match="the memory holds 2 streams"):
        decoder(document(1, 1), incremental_state={})


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"dtype": "int8"}, {"storage": "disk"}])
@pytest.mark.parametrize("index", ["torch", "flat", "IVF4,Flat"])
def test_selected_banks_are_copies(options, index):
    generator = torch.Generator().manual_seed(1)
    parameters = "nprobe=4" if index.startswith("IVF") else ""
    bank = MemoryBank(3, 2, 8, 1280, 2, 4, index=index, index_parameters=parameters, **options)
    for row in range(3):
        bank.begin_document(row, f"document {row}")
    for tokens in (400, 31):  # enough chunks to train on, and a part of one
        ids = torch.randint(0, 99, (3, tokens), generator=generator)
        bank.write(*torch.randn(2, 3, 2, tokens, 8, generator=generator), token_ids=ids)
    selected, queries = (
        select_banks(bank, [2, 0, 2, 1]),
        torch.randn(3, 2, 5, 8, generator=generator),
    )
    assert selected.num_written == [215] * 4 and selected.num_pending == [1] * 4
    found, expected = selected.retrieve(queries[[2, 0, 2, 1]]), bank.retrieve(queries)
    assert torch.equal(found.chunks, expected.chunks[[2, 0, 2, 1]])
    for own, its in zip(found.tokens(), expected.tokens(), strict=True):
        assert torch.equal(own, its[[2, 0, 2, 1]])
    assert selected.locate(1, 3).name == "document 0"
    assert selected.logs[2].read(range(431)).tolist() == bank.logs[2].read(range(431)).tolist()
    selected.write(*torch.randn(2, 4, 2, 9, 8, generator=generator))
    assert bank.num_written == [215] * 3
    assert torch.equal(bank.retrieve(queries).chunks, expected.chunks)


@torch.no_grad()
@pytest.mark.parametrize("document", [None, "what was read last"])
def test_a_fork_knows_what_it_added(document):
    bank = MemoryBank(1, 1, 2, 64, 2, 4)
    bank.begin_document(0, "memorized", offset=-1)
    bank.write(*torch.randn(2, 1, 1, 7, 2), token_ids=torch.arange(7).view(1, 7))
    fork = MemoryFork(bank, 2, document=document)
    fork.write(*torch.randn(2, 2, 1, 3, 2), torch.tensor([[20, 21, 22], [30, 31, 32]]))
    fork.reorder(torch.tensor([1, 0]))
    fork.write(*torch.randn(2, 2, 1, 2, 2), torch.tensor([[33, 34], [23, 24]]))
    assert fork.bank.logs[0].read(range(12)).tolist() == [*range(7), 30, 31, 32, 33, 34]
    assert fork.bank.logs[1].read(range(12)).tolist() == [*range(7), 20, 21, 22, 23, 24]
    assert fork.bank.locate(0, 3) == Source(6, "memorized", 5)  # its second half is not
    expected = None if document is None else Source(8, document, 0)
    assert fork.bank.locate(1, 4) == expected
    assert bank.sources == [[Source(0, "memorized", -1)]] and bank.held(0) == range(7)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_rows_may_ask_the_same_bank(scope):
    bank = MemoryBank(2, 2, 8, 64, 2, 4, scope=scope)
    bank.write(*torch.randn(2, 2, 2, 20, 8))
    queries = torch.randn(5, 2, 3, 8)
    banks = [1, 0, 1, 1, 0] if scope == "stream" else [0] * 5
    found = bank.retrieve(queries, banks)
    for row, asked in enumerate(banks):
        alone = bank.retrieve(queries[row : row + 1], [asked])
        assert torch.equal(found.chunks[row], alone.chunks[0])
        assert torch.equal(found.rows[row], alone.rows[0])
