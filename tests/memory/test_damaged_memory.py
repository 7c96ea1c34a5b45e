"""Memory files that are refused, each in one line that names it, and what is there stays."""

import json

import pytest
import torch
from safetensors.torch import save_file

from longmem_fairseq.memory import ExternalMemory, MemoryBank
from longmem_fairseq.memory.memory_file import HEADER_KEY, read_memory_file
from tests.helpers.damaged_files import (
    flip,
    flipped,
    offset_of,
    parts,
    truncated,
    with_header,
    with_tensor,
    with_text,
    without,
)
from tests.helpers.filled_banks import (
    HEAD_DIM,
    HEADS,
    SIZES,
    assert_same,
    filled,
    snapshot,
)


def without_a_checksum(path):
    header, tensors = parts(path)
    del header["checksums"]["keys"]
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})


def with_another_checksum(path):
    header, tensors = parts(path)
    header["num_written"][0] += 1
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a line\nand another\n" * 50),
    "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "torch.save": lambda path: torch.save({"keys": torch.zeros(3)}, path),
    "another safetensors file": lambda path: save_file({"keys": torch.zeros(3)}, path),
    "a safetensors file of others": lambda path: save_file({}, path, metadata={"format": "pt"}),
    **{f"{percent}% of it": truncated(percent / 100) for percent in (1, 10, 50, 90, 99)},
    "all but a byte": truncated(0.99999),
    **{
        f"a flipped byte in {name}": flipped(name)
        for name in ("chunk_keys", "keys", "values", "pending_keys", "pending_values", "token_ids")
    },
    "a header that is not JSON": with_text(lambda text: text[:-1]),
    "a header that is no text": with_text(lambda text: ""),
    "a header that is a list": with_text(lambda text: "[1]"),
    "a header that is a number": with_text(lambda text: "1"),
    "a header of many levels": with_text(lambda text: "[" * 100_000),
    "the next format": with_header(format=4),
    "a format of two lines": with_header(format="1\n2"),
    "no checksums": without("checksums"),
    "checksums of another kind": lambda path: with_text(
        lambda text: json.dumps({**json.loads(text), "checksums": 5})
    )(path),
    "a missing checksum": without_a_checksum,
    "a changed header": with_another_checksum,
    **{
        f"no {name} in the header": without(name)
        for name in (
            *("num_streams", "num_heads", "head_dim", "memory_size", "chunk_size", "k", "scope"),
            *("dtype", "fingerprint", "num_written", "num_pending", "sources", "format"),
        )
    },
    **{
        f"no tensor {name}": without(name)
        for name in ("chunk_keys", "keys", "values", "pending_keys", "token_ids")
    },
    "another tensor": with_tensor("more", lambda none: torch.zeros(2)),
    "an index that is none": with_tensor("index.Flat/0/0", lambda none: torch.zeros(2)),
    "keys of another shape": with_tensor("keys", lambda keys: keys[:, :, 1:].contiguous()),
    "values of other dimensions": with_tensor("values", lambda values: values.flatten()),
    "chunk keys of another shape": with_tensor("chunk_keys", lambda keys: keys[:1].clone()),
    "keys of another type": with_tensor("keys", lambda keys: keys.half()),
    "values of another type": with_tensor("values", lambda values: values.double()),
    "chunk keys of another type": with_tensor("chunk_keys", lambda keys: keys.half()),
    "waiting keys of another type": with_tensor("pending_keys", lambda keys: keys.half()),
    "token ids of another type": with_tensor("token_ids", lambda ids: ids.long()),
    "token ids of another shape": with_tensor("token_ids", lambda ids: ids[:, 1:].contiguous()),
    "token ids in an older format": with_header(format=1),
    "scales that are not needed": with_tensor("scales", lambda none: torch.zeros(2)),
    "negative num_written": with_header(num_written=[27, -4, 0]),
    "too few num_written": with_header(num_written=[27, 4]),
    "num_written of text": with_header(num_written=["27", "4", "0"]),
    "num_written that is a number": with_header(num_written=27),
    "fewer num_written": with_header(num_written=[7, 4, 0]),
    "num_pending of a whole chunk": with_header(num_pending=[2, 1, 0]),
    "too many num_pending": with_header(num_pending=[1, 1, 0, 0]),
    "no streams": with_header(num_streams=0),
    "many streams": with_header(num_streams=10**12),
    "heads of text": with_header(num_heads="2"),
    "chunks of no tokens": with_header(chunk_size=0),
    "a memory_size of parts of chunks": with_header(memory_size=25),
    "a k beyond the memory": with_header(k=26),
    "an unknown scope": with_header(scope="all"),
    "an unknown dtype": with_header(dtype="float64"),
    "a dtype that is none": with_header(dtype=["float32"]),
    "a fingerprint of numbers": with_header(fingerprint=[1, 2]),
    "sources of too few banks": with_header(sources=[[], []]),
    "sources that are none": with_header(sources=[[[1, 2]], [], []]),
    "a whole bank that is called half of one": with_header(shard=0, num_shards=2),
    "a shard beyond the last": with_header(shard=2, num_shards=2),
    "a negative shard": with_header(shard=-1, num_shards=2),
    "shards of text": with_header(shard=0, num_shards="2"),
    "shards that do not divide the slots": with_header(shard=0, num_shards=5),
    "sources without names": with_header(sources=[[[0, 5, 0]], [], []]),
}
UNREAD = [f"a flipped byte in {name}" for name in ("chunk_keys", "keys", "values")]


@pytest.fixture
def saved(tmp_path):
    """A good file."""
    path = tmp_path / "memory.safetensors"
    filled(fingerprint="a" * 64).save(str(path))
    return path


def check_refused(path, load):
    with pytest.raises(ValueError) as error:
        load()
    assert type(error.value) is ValueError
    message = str(error.value)
    assert message.startswith(f"{path} is ") and "\n" not in message
    assert len(message) < 500 + len(str(path))
    return message


def external(path):
    """A model's memory, in the middle of its documents."""
    memory = ExternalMemory(HEADS, HEAD_DIM, **SIZES)
    memory.banks[True] = MemoryBank.load(str(path))
    return memory


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_in_one_line(case, saved):
    memory = external(saved)
    before = memory.banks[True]
    state = snapshot(before)
    DAMAGE[case](saved)
    message = check_refused(saved, lambda: MemoryBank.load(str(saved)))
    assert check_refused(saved, lambda: memory.load(str(saved))) == message
    assert memory.banks[True] is before
    assert_same(snapshot(before), state)
    if case not in UNREAD:
        check_refused(saved, lambda: MemoryBank.load(str(saved), memory_map=True))


def test_messages_say_what_is_wrong(saved):
    whole = saved.read_bytes()
    for case, reason in {
        "another safetensors file": f"a memory file, or a damaged one (no {HEADER_KEY} in it)",
        "the next format": "a memory file of format 4, expected 3",
        "no checksums": "a damaged memory file (its header has other checksums than tensors)",
        "no k in the header": "a damaged memory file (its header lacks k)",
        "a changed header": "a damaged memory file (checksum of header)",
        "a flipped byte in keys": "a damaged memory file (checksum of keys)",
        "negative num_written": "a damaged memory file (num_written [27, -4, 0] for 3 banks)",
        "keys of another type": "a damaged memory file (keys of shape (3, 2, 12, 2, 8) and "
        "torch.float16, expected (3, 2, 12, 2, 8) and torch.float32)",
    }.items():
        DAMAGE[case](saved)
        message = check_refused(saved, lambda: read_memory_file(str(saved)))
        assert message.removeprefix(f"{saved} is ").removeprefix("not ") == reason
        saved.write_bytes(whole)


@pytest.mark.parametrize(("bits", "first"), [(1, 0), (0x20, 1)])
def test_a_flipped_byte_anywhere_in_the_header(saved, bits, first):
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    assert length > 900
    for offset in range(first, 8 + length, 2):
        damaged = bytearray(whole)
        damaged[offset] ^= bits
        saved.write_bytes(damaged)
        check_refused(saved, lambda: read_memory_file(str(saved)))
    saved.write_bytes(whole)
    read_memory_file(str(saved))


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError) as error:
            MemoryBank.load(str(path))
        assert str(error.value) == f"{path}: no such memory file"


INDEX = "index.IVF4,Flat/0/1"
UNUSABLE = ": the index IVF4,Flat/0/1 is missing or damaged"


@pytest.mark.parametrize(
    "damage, message",
    [
        (with_tensor(INDEX, lambda index: index[:-9].clone()), UNUSABLE),
        (with_tensor(INDEX, lambda index: index[:3].clone()), UNUSABLE),
        (with_tensor(INDEX, lambda index: index.flip(0)), UNUSABLE),
        (without(INDEX), UNUSABLE),
        (
            lambda path: flip(path, offset_of(path, INDEX) + 100),
            f" is a damaged memory file (checksum of {INDEX})",
        ),
    ],
)
@pytest.mark.parametrize("memory_map", [False, True])
def test_a_damaged_index(tmp_path, damage, message, memory_map):
    path = tmp_path / "memory.safetensors"
    filled(memory_size=800, index="IVF4,Flat").save(str(path))
    damage(path)
    with pytest.raises(ValueError) as error:
        MemoryBank.load(str(path), memory_map=memory_map, index="IVF4,Flat")
    assert str(error.value) == f"{path}{message}"


def test_an_index_of_other_chunks(tmp_path):
    path = tmp_path / "memory.safetensors"
    bank = filled(memory_size=800, index="Flat")
    bank.save(str(path))
    with_tensor("index.Flat/0/1", lambda index: parts(path)[1]["index.Flat/1/1"])(path)
    with pytest.raises(ValueError) as error:
        MemoryBank.load(str(path), index="Flat")
    assert str(error.value) == f"{path}: the index Flat is not of the stored chunks"


def test_a_mapped_bank_reads_only_what_is_searched(tmp_path):
    """Keys and values stay in the file: damage is noticed nowhere but where it is."""
    path = tmp_path / "memory.safetensors"
    bank = filled()
    bank.save(str(path))
    flip(path, offset_of(path, "values"))
    mapped = MemoryBank.load(str(path), memory_map=True)
    assert (mapped.ring.store.values[:, :, :12] != bank.ring.store.values).sum() == 1
    with pytest.raises(ValueError, match="checksum of values"):
        MemoryBank.load(str(path))
