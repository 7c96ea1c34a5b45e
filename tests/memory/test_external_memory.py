"""ExternalMemory: which bank a forward reads, and when it is written."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from longmem_fairseq.memory import ExternalMemory, Retrieved
from longmem_fairseq.modules import CausalBias, JointAttention
from tests.helpers.external_memories import begin, external, stored, write


@pytest.mark.parametrize("tokens", [1, 4])  # one that still waits for its chunk is memory as well
def test_streams_do_not_become_more_in_the_middle_of_documents(tokens):
    memory = external()
    begin(memory, 2, [True, True])
    write(memory, 0, tokens, streams=2)
    with pytest.raises(ValueError) as error:
        begin(memory, 3, [True, True, False])
    assert str(error.value) == (
        "3 streams cannot continue the documents of 2: keep num_streams constant until every "
        "stream starts a new document"
    )
    begin(memory, 3, [True, True, True])
    assert memory.bank.layout.num_streams == 3 and memory.bank.num_tokens == [0, 0, 0]


def test_streams_that_have_run_out_are_the_last_ones():
    memory = external(k=8)
    begin(memory, 3, [True] * 3)
    write(memory, 0, 2, streams=3)
    begin(memory, 2, [False, False])
    bank = memory.bank
    assert (
        bank.layout.num_streams == 3 and memory.retrieve(torch.ones(2, 1, 1, 1)).chunks.size(0) == 2
    )
    write(memory, 2, 4, streams=2)
    begin(memory, 1, [True])
    write(memory, 4, 6)
    memory.flush()
    assert [stored(memory, row) for row in range(3)] == [[4, 5], [0, 1, 2, 3], [0, 1]]
    begin(memory, 3, [True] * 3)
    assert memory.bank is bank and bank.num_tokens == [0, 0, 0]


def test_training_and_evaluation_have_their_own_banks():
    memory = external()
    begin(memory, 1, [True])
    write(memory, 0, 4)
    begin(memory, 1, [True], training=False)
    assert memory.retrieve(torch.ones(1, 1, 1, 1)) is None
    assert stored(memory) == [0, 1, 2, 3]  # written by the beginning of the evaluation
    with torch.no_grad():
        write(memory, 10, 14)
    assert stored(memory, training=False) == [10, 11, 12, 13]
    begin(memory, 1, [False])
    assert memory.bank is memory.banks[True] and stored(memory) == [0, 1, 2, 3]
    memory.reset()
    begin(memory, 1, [False])
    assert memory.bank.num_tokens == [0]


def test_what_needs_a_gradient_is_written_by_the_next_forward():
    memory = external()
    begin(memory, 1, [True])
    write(memory, 0, 4)
    assert stored(memory) == []
    bank, keys, values, *_ = memory.unwritten
    assert bank is memory.bank and not keys.requires_grad and not values.requires_grad
    begin(memory, 1, [False])
    assert stored(memory) == [0, 1, 2, 3] and memory.unwritten is None
    write(memory, 4, 6)
    for _ in range(2):
        memory.flush()
        assert stored(memory) == [0, 1, 2, 3] or memory.bank.num_tokens == [6]
    assert memory.bank.num_tokens == [6]
    write(memory, 6, 8)
    write(memory, 8, 9)  # without a beginning: the first one is not lost
    memory.flush()
    assert memory.bank.num_tokens == [8] and memory.bank.num_pending == [1]


def test_what_needs_no_gradient_is_written_at_once():
    memory = external()
    with torch.no_grad():
        begin(memory, 1, [True])
        write(memory, 0, 4)
        assert stored(memory) == [0, 1, 2, 3] and memory.unwritten is None


def test_a_new_document_forgets_what_waited_to_be_written():
    memory = external()
    begin(memory, 2, [True, True])
    write(memory, 0, 4, streams=2)
    begin(memory, 2, [True, False])
    assert [stored(memory, row) for row in range(2)] == [[], [0, 1, 2, 3]]
    write(memory, 4, 8, streams=2)
    memory.reset()
    begin(memory, 2, [False, False])
    assert memory.bank.num_tokens == [0, 0]


def test_frozen_memory_is_neither_written_nor_reset():
    memory = external()
    begin(memory, 1, [True])
    write(memory, 0, 4)
    with memory.frozen():
        begin(memory, 1, [True])
        write(memory, 10, 14)
        assert stored(memory) == [0, 1, 2, 3]  # the segment before is
    assert not memory.read_only
    write(memory, 4, 6)
    memory.flush()
    assert memory.bank.num_tokens == [6]


def test_a_full_index_is_reported_once():
    memory = external(index="HNSW8")
    begin(memory, 1, [True])
    write(memory, 0, 10)
    with pytest.raises(ValueError, match="cannot forget chunks"):
        begin(memory, 1, [False])
    begin(memory, 1, [False])
    assert memory.bank.num_tokens == [0]


def test_statistics_of_a_forward():
    memory = external()
    begin(memory, 2, [True, True])
    write(memory, 0, 4, streams=2, valid=torch.tensor([[True] * 4, [True, True, False, False]]))
    begin(memory, 2, [False, False])
    assert memory.statistics(torch.zeros(1))["retrieved_chunks"] is None
    found = memory.retrieve(torch.ones(2, 1, 1, 1))
    statistics = memory.statistics(torch.tensor([0.2, 0.4]))
    assert_close(statistics["gate"], torch.tensor(0.3))
    assert statistics["memory_tokens"] == 3.0  # 4 and 2
    assert statistics["retrieval_seconds"] > 0
    assert torch.equal(statistics["retrieved_chunks"], found.chunks)


# --- training ---


class Layer(nn.Module):
    """A layer with memory; its keys and values are cached, as a MemTRM's are."""

    def __init__(self, memory, gather_first):
        super().__init__()
        torch.manual_seed(1)
        self.attention = JointAttention(8, 2, has_memory=True)
        self.memory, self.gather_first = memory, gather_first
        self.bias = CausalBias(2)

    def retrieve(self, queries):
        found = self.memory.retrieve(queries)
        if found is None or not self.gather_first:
            return found
        return Retrieved(found.chunks, found.rows, copy.deepcopy(found.store))

    def forward(self, x, new_document):
        self.memory.begin(x.size(0), new_document, self.training, x.device)
        bias = self.bias(x.size(1), x.dtype, x.device)
        output, keys, values = self.attention(x, bias, self.retrieve)
        with torch.set_grad_enabled(not self.gather_first):
            self.memory.write(keys, values, torch.ones(x.shape[:2], dtype=torch.bool))
        return output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("storage", ["device", "disk"])
def test_training_steps_are_those_of_tensors_gathered_before(dtype, storage):
    """Every step writes the bank, from the third on over what the step before has retrieved."""
    options = {"memory_size": 8, "chunk_size": 2, "k": 6, "dtype": dtype, "storage": storage}
    layers = [Layer(ExternalMemory(2, 4, **options), gathered) for gathered in (False, True)]
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in layers]
    torch.manual_seed(2)
    for step in range(6):
        x, weights = torch.randn(2, 3, 5, 8)
        new_document = torch.tensor([step == 0, False, step == 4])
        gradients = []
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            (layer(x, new_document) * weights).sum().backward()
            gradients.append({name: p.grad for name, p in layer.named_parameters()})
            gate = gradients[-1]["attention.memory_bias"]
            assert gate.ne(0).all() == (step > 0)
            optimizer.step()
        for name, gradient in gradients[0].items():
            assert torch.equal(gradient, gradients[1][name]), name
    for parameter, expected in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(parameter, expected)


def test_a_bank_written_before_the_backward_pass_is_noticed():
    layer = Layer(ExternalMemory(2, 4, memory_size=8, chunk_size=2, k=6), False)
    x = torch.randn(2, 5, 8)
    layer(x, torch.tensor([True, True]))
    loss = layer(x, torch.tensor([False, False])).sum()
    layer(x, torch.tensor([False, False]))  # another forward before the backward of the first
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
