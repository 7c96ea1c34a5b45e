"""ExternalMemory: which bank a forward reads, and when it is written."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from longmem_fairseq.memory import ExternalMemory, Retrieved
from longmem_fairseq.modules import CausalBias, JointAttention


def external(**options):
    return ExternalMemory(1, 1, **{"memory_size": 8, "chunk_size": 2, "k": 4, **options})


def begin(memory, streams, new_document, training=True, device="cpu"):
    memory.begin(streams, torch.tensor(new_document), training, torch.device(device))


def write(memory, start, stop, streams=1, valid=None):
    """Keys and values B x 1 x T x 1 holding the numbers start to stop, as a forward does."""
    tokens = torch.arange(start, stop, dtype=torch.float).view(1, 1, -1, 1)
    tokens = tokens.repeat(streams, 1, 1, 1).requires_grad_()
    if valid is None:
        valid = torch.ones(streams, stop - start, dtype=torch.bool)
    memory.write(tokens, -tokens, valid)


def stored(memory, row=0, training=True):
    """All chunks of a stream, oldest first."""
    bank = memory.banks[training]
    found = bank.retrieve(-torch.ones(bank.layout.num_streams, 1, 1, 1))
    if found is None:
        return []
    return found.tokens()[0][row, 0, 0][found.valid[row, 0, 0]].flatten().tolist()


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


# --- memory files ---


@pytest.mark.parametrize("scope", ["stream", "batch"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_training_goes_on_with_a_loaded_memory(scope, dtype, tmp_path):
    path = str(tmp_path / "memory.safetensors")
    options = {"scope": scope, "dtype": dtype, "k": 8, "storage": "disk"}
    memory, other = external(**options), external(**options)
    assert not memory.save(path) and list(tmp_path.iterdir()) == []
    begin(memory, 2, [True, True], training=False)
    assert not memory.save(path)
    begin(memory, 2, [True, True])
    write(memory, 0, 3, streams=2)
    assert memory.save(path)  # with the segment that waits to be written
    begin(other, 2, [True, True])
    write(other, 20, 23, streams=2)
    other.load(path)
    for used in (memory, other):
        begin(used, 2, [False, False])
        write(used, 3, 8, streams=2)
        used.flush()
    assert torch.equal(memory.bank.ring.store.keys, other.bank.ring.store.keys)
    assert memory.bank.header() == other.bank.header()
    assert sum(other.bank.num_tokens) == (16 if scope == "stream" else 8)


def saved_and_loaded(folder, tokens, **options):
    """A memory that two streams have written to, and another that has loaded it."""
    path = str(folder / "memory.safetensors")
    memory, other = external(**options), external(**options)
    begin(memory, 2, [True, True])
    write(memory, 0, tokens, streams=2)
    memory.save(path)
    other.load(path)
    return memory, other


def test_a_loaded_memory_keeps_its_streams(tmp_path):
    _, other = saved_and_loaded(tmp_path, tokens=4)
    with pytest.raises(ValueError, match="3 streams cannot continue the documents of 2"):
        begin(other, 3, [False] * 3)
    begin(other, 1, [False])
    assert other.bank.num_tokens == [4, 4]


def test_a_loaded_memory_follows_the_model_to_its_device(tmp_path):
    """It is loaded before the first segment says where that is."""
    memory, other = saved_and_loaded(tmp_path, tokens=5)
    assert other.banks[True].device == torch.device("cpu")
    begin(other, 2, [False, False], device="cpu:0")  # another name, as good as another device
    assert other.bank.device == torch.device("cpu:0")
    assert stored(other) == [0, 1, 2, 3] and other.bank.num_pending == [1, 1]
    assert other.bank.header() == memory.bank.header()


def test_a_mapped_memory_has_room_for_more(tmp_path):
    """Its file is as large as what it holds: the bank that is written to lies in main memory."""
    path = str(tmp_path / "memory.safetensors")
    memory, other = external(k=8), external(k=4)
    begin(memory, 1, [True])
    write(memory, 0, 5)
    memory.save(path)
    other.load(path, training=False, memory_map=True)
    fork = other.fork(1, torch.device("cpu"))
    fork.write(*torch.zeros(2, 1, 1, 4, 1), torch.zeros(1, 4))
    assert fork.bank.num_tokens == [8]
    for reading in (memory, other):
        begin(reading, 1, [False], training=reading is memory)
        with torch.no_grad():
            write(reading, 5, 8)
    assert other.banks[False].num_tokens == memory.banks[True].num_tokens == [8]
    assert stored(memory) == [0, 1, 2, 3, 4, 5, 6, 7] and not other.banks[False].ring.in_place


def test_what_waits_to_be_written_is_in_a_fork_too():
    memory = external()
    begin(memory, 1, [True], training=False)
    write(memory, 0, 4)  # with gradients: the next forward writes it
    assert memory.single_bank(torch.device("cpu")).num_tokens == [4]


def test_a_bank_made_in_inference_mode_is_written_outside_of_it():
    memory = external(k=8)
    with torch.inference_mode():
        begin(memory, 1, [True])
        write(memory, 0, 3)
    begin(memory, 1, [False])
    write(memory, 3, 6)
    memory.flush()
    assert stored(memory) == [0, 1, 2, 3, 4, 5]


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["device", "host"])
def test_a_loaded_memory_follows_the_model_to_a_gpu(storage, tmp_path):
    _, other = saved_and_loaded(tmp_path, tokens=5, storage=storage)
    begin(other, 2, [False, False], device="cuda:0")
    found = other.retrieve(-torch.ones(2, 1, 1, 1, device="cuda:0"))
    assert found.chunks.is_cuda and found.tokens()[0].flatten().tolist() == 2 * [0, 1, 2, 3]


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


@pytest.mark.parametrize("index", ["torch", "Flat"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_bank_of_rows_of_several_files_goes_on_as_they_would(tmp_path, index, dtype):
    """As after a change of ranks; with a chunk that is not full, and what is evicted next."""
    options = {"index": index, "dtype": dtype}
    paths = [str(tmp_path / f"rank{rank}") for rank in range(2)]
    ranks = [external(**options) for _ in range(2)]
    for rank, memory in enumerate(ranks):
        begin(memory, 2, [True, True])
        valid = torch.tensor([[True] * 11, [True] * 5 + [False] * 6])
        write(memory, 100 * rank, 100 * rank + 11, streams=2, valid=valid)
        memory.save(paths[rank])
    memory = external(**options)
    # a stream that a file does not have was never written
    memory.load_rows([(paths[1], 0), None, (paths[0], 1), (paths[1], 1), (paths[0], 7)])
    begin(memory, 5, [False] * 5)
    write(memory, 11, 14, streams=5)
    memory.flush()
    for old in ranks:
        begin(old, 2, [False, False])
        write(old, 11, 14, streams=2)
        old.flush()
    found = [stored(memory, row) for row in range(5)]
    fresh = external(**options)
    begin(fresh, 1, [True])
    write(fresh, 11, 14)
    fresh.flush()
    assert found[0] == stored(ranks[1], 0) and found[2] == stored(ranks[0], 1)
    assert found[3] == stored(ranks[1], 1) and found[1] == found[4] == stored(fresh)
    assert memory.bank.num_written == [7, 1, 4, 4, 1] and memory.bank.num_pending == [0, 1, 0, 0, 1]
    with pytest.raises(FileNotFoundError, match="no such memory file"):
        memory.load_rows([(str(tmp_path / "nothing"), 0)])
