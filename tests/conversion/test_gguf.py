"""GGUF files: what is made of them computes what transformers computes with the model in them."""

import hashlib
import random
import sys

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")
gguf = pytest.importorskip("gguf", reason="needs the extra hf")

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.utils.cli import run  # noqa: E402
from tests.conversion.test_hf_conversion import convert, random_ids, to_dictionary  # noqa: E402
from tests.helpers.gguf_models import ARCHITECTURES, write_gguf  # noqa: E402
from tests.helpers.hf_models import MODELS, make_model  # noqa: E402

# llama.cpp has no such architecture, no key for it, or another fixed number
WITHOUT = {"opt", "gptj", "gpt-neo", "falcon-rw", "llama-dynamic", "qwen3-yarn", "smollm3-windows"}
CHANGES = {
    "qwen2": {"use_sliding_window": False, "sliding_window": None},
    "neox-sequential": {"hidden_act": "gelu"},
    "smollm3": {"no_rope_layer_interval": 4},
    "cohere2": {"sliding_window_pattern": 4},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16},
}


@pytest.fixture(scope="module", params=[name for name in MODELS if name not in WITHOUT])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = make_model(request.param, folder / "hf", **CHANGES.get(request.param, {}))
    write_gguf(theirs, folder / "model.gguf")
    return theirs, *convert(folder / "model.gguf", folder / "ours")


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 23])
def test_logits_are_equal(pair, length):
    theirs, ours, ids = pair
    tokens = random_ids(2, length)
    logits = ours(to_dictionary(ids, tokens))[0][..., ids.to_dictionary]
    assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


def small_llama(tmp_path, **changes):
    return make_model("llama", tmp_path / "hf", **changes)


def same_weights(one, other):
    return all(torch.equal(other[name], tensor) for name, tensor in one.items())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantized_matrices(kind, tmp_path):
    theirs = small_llama(tmp_path)
    type_ = gguf.GGMLQuantizationType[kind]
    write_gguf(theirs, tmp_path / "model.gguf", quantization=type_)
    for parameter in theirs.parameters():
        if parameter.dim() == 2 and parameter.size(1) % 32 == 0:
            blocks = gguf.quants.quantize(parameter.numpy(), type_)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, type_)))
    ours, ids = convert(tmp_path / "model.gguf", tmp_path / "ours")
    tokens = random_ids(2, 9)
    logits = ours(to_dictionary(ids, tokens))[0][..., ids.to_dictionary]
    assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


def test_a_split_file_is_read_as_one(tmp_path):
    theirs = small_llama(tmp_path)
    write_gguf(theirs, tmp_path / "one.gguf")
    (tmp_path / "split").mkdir()
    write_gguf(theirs, tmp_path / "split" / "model.gguf", split_max_tensors=15)
    parts = sorted((tmp_path / "split").iterdir())
    assert [path.name for path in parts] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    one = convert(tmp_path / "one.gguf", tmp_path / "from-one")[0].state_dict()
    for number, model in enumerate([*parts, tmp_path / "split"]):
        ours = convert(model, tmp_path / f"from-{number}")[0].state_dict()
        assert same_weights(one, ours)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    def call(model, *options):
        arguments = ["longmem-convert", "--model", str(model), *options]
        monkeypatch.setattr(sys, "argv", [*arguments, "--dest", str(tmp_path / "dest")])
        capsys.readouterr()  # the progress of transformers and gguf
        with pytest.raises(SystemExit) as exited:
            run(convert_checkpoint)
        assert exited.value.code == 2 and not (tmp_path / "dest").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("longmem-convert: error: ")

    return call


def test_damaged_files(tmp_path, refused):
    path = tmp_path / "model.gguf"
    write_gguf(small_llama(tmp_path), path)
    whole = path.read_bytes()
    for size in (8, 30, 500, 1500, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:size])
        assert refused(path).startswith(f"{path} is damaged or truncated (")
    path.write_bytes(b"GGML" + whole[4:])
    assert refused(path).startswith(f"{path} is no GGUF file: it begins with b'GGML', expected")
    path.write_bytes(b"")
    assert refused(path).startswith(f"{path} is no GGUF file: it begins with b'', expected")


def test_bytes_that_were_changed(tmp_path):
    """Converted or refused: never another error, and never without end."""
    path = tmp_path / "model.gguf"
    write_gguf(small_llama(tmp_path), path)
    whole = path.read_bytes()
    chance = random.Random(5)
    refusals = 0
    for number in range(60):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(4, 3500)] = chance.choice([0, 1, 127, 255])
        path.write_bytes(changed)
        try:
            convert(path, tmp_path / f"ours-{number}")
        except (ValueError, FileNotFoundError):
            refusals += 1
    assert refusals > 40


def test_an_array_of_false_length(tmp_path, refused):
    path = tmp_path / "model.gguf"
    write_gguf(small_llama(tmp_path), path, [("ggml.scores", [1.0, 2.0])])
    whole = path.read_bytes()
    place = whole.index(b"tokenizer.ggml.scores") + len("tokenizer.ggml.scores") + 8
    path.write_bytes(whole[:place] + (2**60).to_bytes(8, "little") + whole[place + 8 :])
    assert refused(path).startswith(f"{path} is damaged or truncated (")


def test_a_part_that_is_missing(tmp_path, refused):
    (tmp_path / "split").mkdir()
    write_gguf(small_llama(tmp_path), tmp_path / "split" / "model.gguf", split_max_tensors=15)
    parts = sorted((tmp_path / "split").iterdir())
    parts[1].unlink()
    expected = f"{parts[1]}: no such file, though {parts[0].name} is one of 3 parts"
    assert refused(parts[0]) == refused(tmp_path / "split") == expected


def test_hashes(tmp_path, refused):
    path, sums = tmp_path / "model.gguf", tmp_path / "SHA256SUMS"
    write_gguf(small_llama(tmp_path), path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text(f"{found}  model.gguf\n")
    convert(path, tmp_path / "ours", "--sha256", str(sums))
    sums.write_text(f"{'0' * 64}  model.gguf\n")
    assert refused(path, "--no-tokenizer", "--sha256", str(sums)) == (
        f"{path} has the SHA-256 {found}, expected {'0' * 64} of --sha256"
    )


def test_architectures_and_tokenizers_that_are_not_supported(tmp_path, refused):
    path, theirs = tmp_path / "model.gguf", small_llama(tmp_path)
    writer = gguf.GGUFWriter(path, "mamba")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()
    error = refused(path)
    assert error.startswith(f"{path}: general.architecture (mamba) is not supported, only llama, ")
    assert all(name in error for name in set(ARCHITECTURES.values()))
    write_gguf(theirs, path, changes=[("expert_count", 8)])
    assert refused(path) == f"{path}: llama.expert_count: mixtures of experts are not supported"
    write_gguf(theirs, path)
    assert refused(path).startswith(
        f"{path}: tokenizer.ggml.model (None) is not supported, only gpt2, "
    )
    kind = [("ggml.model", "gpt2"), ("ggml.tokens", ["a", "b"]), ("ggml.merges", ["a b"])]
    write_gguf(theirs, path, [*kind, ("ggml.pre", "klingon")])
    assert refused(path).startswith(
        f"{path}: tokenizer.ggml.pre (klingon) is unknown, expected one of"
    )
    (tmp_path / "other.gguf").write_bytes(path.read_bytes())
    assert refused(tmp_path) == (
        f"{tmp_path} holds 2 GGUF files (model.gguf, other.gguf): give one of them"
    )
