"""ExternalMemory in files: training and evaluation go on with a loaded memory."""

import pytest
import torch

from tests.helpers.external_memories import begin, external, stored, write


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
