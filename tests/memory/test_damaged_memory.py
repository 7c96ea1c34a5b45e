"""Memory files that are refused, each in one line that names it, and what is there stays."""

import copy
import json
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longmem_fairseq.memory import ExternalMemory, MemoryBank
from longmem_fairseq.memory.memory_file import HEADER_KEY, read_memory_file

STREAMS, HEADS, HEAD_DIM = 3, 2, 8
SIZES = {"memory_size": 24, "chunk_size": 2, "k": 6}


def filled(**options):
    """Rings of 12 slots: one that has wrapped, one that has not, an empty one; tokens that wait."""
    torch.manual_seed(1)
    bank = MemoryBank(STREAMS, HEADS, HEAD_DIM, **{**SIZES, **options})
    tokens = 2 * bank.layout.memory_size + 7
    valid = torch.zeros(STREAMS, tokens, dtype=torch.bool)
    valid[0], valid[1, :9] = True, True
    bank.begin_document(0, "a \N{EM DASH} document", offset=3)
    bank.write(*torch.randn(2, STREAMS, HEADS, tokens, HEAD_DIM), valid)
    return bank


def parts(path):
    """Header and tensors of a good file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()[HEADER_KEY]), tensors


def rewrite(path, header, tensors):
    """Writes them with checksums that are right, whatever else is wrong."""
    if isinstance(header, dict) and "checksums" in header:
        header = {name: value for name, value in header.items() if name != "checksums"}
        checksums = {
            n: zlib.crc32(t.flatten().view(torch.uint8).numpy()) for n, t in tensors.items()
        }
        checksums["header"] = zlib.crc32(json.dumps(header).encode())
        header["checksums"] = checksums
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={HEADER_KEY: text})


def with_header(**changed):
    def damage(path):
        header, tensors = parts(path)
        rewrite(path, {**header, **changed}, tensors)

    return damage


def without(name):
    def damage(path):
        header, tensors = parts(path)
        for part in (header, tensors):
            part.pop(name, None)
        rewrite(path, header, tensors)

    return damage


def with_tensor(name, change):
    def damage(path):
        header, tensors = parts(path)
        tensors[name] = change(tensors.get(name))
        rewrite(path, header, tensors)

    return damage


def truncated(fraction):
    def damage(path):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * fraction)])

    return damage


def offset_of(path, name):
    """Of the first byte of a tensor."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return 8 + length + json.loads(whole[8 : 8 + length])[name]["data_offsets"][0]


def flip(path, offset, bits=1):
    whole = bytearray(path.read_bytes())
    whole[offset] ^= bits
    path.write_bytes(whole)


def flipped(name):
    return lambda path: flip(path, offset_of(path, name))


def with_text(change):
    def damage(path):
        header, tensors = parts(path)
        rewrite(path, change(json.dumps(header)), tensors)

    return damage


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


def snapshot(bank):
    return copy.deepcopy((bank.header(), bank.state_dict()))


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_refused_in_one_line(case, saved):
    memory = external(saved)
    before = memory.banks[True]
    state = snapshot(before)
    DAMAGE[case](saved)
    message = check_refused(saved, lambda: MemoryBank.load(str(saved)))
    assert check_refused(saved, lambda: memory.load(str(saved))) == message
    assert memory.banks[True] is before
    header, tensors = snapshot(before)
    assert header == state[0]
    assert all(torch.equal(tensors[name], state[1][name]) for name in state[1])
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


@pytest.mark.parametrize("bits", [1, 0x20])
def test_a_flipped_byte_anywhere_in_the_header(saved, bits):
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    assert length > 900
    for offset in range(8 + length):
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


def check_none_loads(memory, path, message, **options):
    """Neither a memory that asks for *options* nor a bank."""
    before = memory.banks[True]
    for load in (
        lambda: memory.load(str(path)),
        lambda: MemoryBank.load(str(path), **options),
        lambda: MemoryBank.load(str(path), memory_map=True, **options),
    ):
        with pytest.raises(ValueError) as error:
            load()
        assert str(error.value) == f"{path} holds {message}"
    assert memory.banks[True] is before


def test_memory_of_another_backbone_is_refused(saved):
    memory = external(saved)
    memory.options["fingerprint"] = "b" * 64
    message = (
        "keys of the backbone aaaaaaaaaaaaaaaa, not of bbbbbbbbbbbbbbbb: encode the documents again "
        "with this backbone"
    )
    check_none_loads(memory, saved, message, fingerprint="b" * 64)
    memory.options["fingerprint"] = "a" * 64
    memory.load(str(saved))
    assert MemoryBank.load(str(saved)).layout.fingerprint == "a" * 64


@pytest.mark.parametrize(
    "name, value, found",
    [
        ("num_heads", 1, 2),
        ("head_dim", 4, 8),
        ("memory_size", 16, 24),
        ("memory_size", 4, 24),  # less than k, too
        ("chunk_size", 1, 2),
        ("scope", "batch", "stream"),
        ("dtype", "int8", "float32"),
    ],
)
def test_memory_of_other_sizes_is_refused_by_name(saved, name, value, found):
    memory = external(saved)
    if name in ("num_heads", "head_dim"):
        setattr(memory, name, value)
    else:
        memory.options[name] = value
    message = (
        f"a memory with {name.replace('_', ' ')} {found}, not {value}: give the options that it was "
        "saved with"
    )
    check_none_loads(memory, saved, message, **{name: value})


def test_another_k_is_none_of_the_files_business(saved):
    assert MemoryBank.load(str(saved)).layout.k == 6
    for memory_map in (False, True):
        bank = MemoryBank.load(str(saved), memory_map=memory_map, k=2)
        assert bank.retrieve(torch.randn(STREAMS, HEADS, 1, HEAD_DIM)).valid.size(-1) == 2


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
