"""The weights of a checkpoint decide, not its config.json; and what is wrong with them is said."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

pytest.importorskip("tokenizers", reason="needs the extra hf")

from huggingface_hub.utils import filter_repo_objects  # noqa: E402

from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from tests.conversion.test_hf_conversion import convert, random_ids, to_dictionary  # noqa: E402
from tests.helpers.hf_models import make_model, transformers  # noqa: E402

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    make_model("llama", tmp_path / "hf", tie_word_embeddings=True)
    return tmp_path / "hf"


def change(folder, **tensors):
    """Replaces tensors, or removes those that are None."""
    path = folder / "model.safetensors"
    state = {**load_file(path), **{name.replace("__", "."): t for name, t in tensors.items()}}
    save_file({name: t for name, t in state.items() if t is not None}, path, {"format": "pt"})
    return state


@torch.no_grad()
def logits(folder, dest):
    ours, ids = convert(folder, dest)
    return ours(to_dictionary(ids, random_ids(2, 9)))[0][..., ids.to_dictionary]


@torch.no_grad()
def test_a_head_that_differs_is_used_though_the_config_ties_it(folder, tmp_path, caplog):
    tied = logits(folder, tmp_path / "tied")
    head = torch.randn(64, 32, generator=torch.Generator().manual_seed(3))
    change(folder, lm_head__weight=head)
    own = logits(folder, tmp_path / "own")
    message = f"the head is the embedding, but {HEAD} differs from {EMBEDDING}: it is used"
    assert message in caplog.text
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    assert torch.equal(theirs.lm_head.weight, head)
    assert_close(own, theirs(random_ids(2, 9)).logits, atol=1e-4, rtol=0)
    assert (own - tied).abs().amax() > 0.1


def test_the_same_head_twice_stays_tied(folder, tmp_path, caplog):
    tied = logits(folder, tmp_path / "tied")
    embedding = load_file(folder / "model.safetensors")[EMBEDDING]
    change(folder, lm_head__weight=embedding.clone())
    assert torch.equal(logits(folder, tmp_path / "twice"), tied)
    change(folder, model__embed_tokens__weight=None)  # and the head alone is both
    assert torch.equal(logits(folder, tmp_path / "alone"), tied)
    assert caplog.text == ""


@torch.no_grad()
def test_one_file_comes_before_the_index_of_an_earlier_save(tmp_path):
    folder = tmp_path / "hf"
    make_model("llama", folder, saving={"max_shard_size": "40KB"})
    shards = {path.name: path.read_bytes() for path in folder.glob("model-*")}
    index = (folder / "model.safetensors.index.json").read_text()
    second = make_model(
        "llama", folder, rope_parameters={"rope_type": "default", "rope_theta": 7.0}
    )
    with torch.no_grad():
        second.lm_head.weight.neg_()
    second.save_pretrained(folder)
    for name, content in shards.items():  # which save_pretrained removes, a download does not
        (folder / name).write_bytes(content)
    (folder / "model.safetensors.index.json").write_text(index)
    assert_close(
        logits(folder, tmp_path / "ours"), second(random_ids(2, 9)).logits, atol=1e-4, rtol=0
    )


def refused(folder, tmp_path, *options):
    arguments = ["--model", str(folder), "--dest", str(tmp_path / "dest"), "--no-tokenizer"]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        convert_checkpoint([*arguments, *options])
    assert not (tmp_path / "dest").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_numbers_that_float16_does_not_have(folder, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(folder / "model.safetensors")[name]
    weight[3, :2] = 1e5
    change(folder, **{name: weight})
    path = folder / "model.safetensors"
    assert refused(folder, tmp_path, "--dtype", "float16") == (
        f"{path}: {name} has 2 numbers that are infinite or NaN: torch.float16 has no larger ones, "
        "bfloat16 and float32 have"
    )
    logits(folder, tmp_path / "ours")
    weight[0, 0] = torch.nan
    change(folder, **{name: weight})
    assert refused(folder, tmp_path) == (
        f"{path}: {name} has 1 numbers that are infinite or NaN: the file is damaged"
    )


@pytest.mark.parametrize(
    "tensors, message",
    [
        (
            {"model__layers__3__mlp__up_proj__weight": None},
            "model.layers.3.mlp.up_proj.weight is no such tensor, expected (48, 32)",
        ),
        ({"model__norm__weight": None}, "norm.weight is no such tensor, expected (32,)"),
        (
            {"model__layers__2__mlp__up_proj__weight": torch.ones(47, 32)},
            "model.layers.2.mlp.up_proj.weight is (47, 32), expected (48, 32)",
        ),
        (
            {"model__embed_tokens__weight": torch.ones(60, 32)},
            f"{EMBEDDING} of shape (60, 32) does not fit config.json (it has 60 rows, and config.json "
            "a vocab_size of 64)",
        ),
    ],
)
def test_messages_have_the_names_of_the_checkpoint(folder, tmp_path, tensors, message):
    change(folder, **tensors)
    assert message in refused(folder, tmp_path)


def test_what_is_at_the_path_is_said_first(folder, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a text")
    assert refused(path, tmp_path) == (
        f"{path} is no GGUF file: it begins with b'a te', expected b'GGUF'; model is a folder, "
        "a GGUF file, or a hub id"
    )
    missing = folder.parent / "hff"
    message = f"model ({missing}): no such file or folder, and no id of the hub"
    assert refused(missing, tmp_path) == message
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty, tmp_path) == f"{empty}/config.json: no such file"


def test_a_download_takes_the_weights_once(monkeypatch, folder, tmp_path):
    import huggingface_hub

    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer.model"]
    others = ["consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin"]
    others += ["onnx/config.json", "flax_model.msgpack", "model.gguf", "README.md"]
    asked = []

    def download(name, allow_patterns, ignore_patterns):
        found = filter_repo_objects(
            files + others, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked.append(list(found))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    arguments = ["--model", "someone/llama", "--dest", str(tmp_path / "dest"), "--no-tokenizer"]
    convert_checkpoint(arguments)
    assert asked == [files]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
