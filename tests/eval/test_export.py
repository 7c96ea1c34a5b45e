"""An exported SideNet is the trained one, in files that execute nothing."""

import json

import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf

from eval import export_longmem
from eval.common.stream_scoring import load_model
from longmem_fairseq.models.checkpoints import dictionary_hash
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from tests.helpers.benchmark_runs import assert_one_line
from tests.helpers.small_models import MEMORY, SAVED, SEGMENT, document, read


@pytest.fixture
def trained(build, task, backbone_path, tmp_path):
    """A longmem, and its checkpoint as fairseq-train writes it."""
    model = build(perturb=True)
    options = LongMemConfig(_name="longmem", pretrained_model_path=backbone_path, **MEMORY)
    cfg = LongMemLanguageModelingConfig(_name="longmem_language_modeling", data="elsewhere")
    cfg.tokens_per_sample = SEGMENT
    parts = {"model": options, "task": cfg}
    state = {
        "cfg": {
            name: OmegaConf.to_container(OmegaConf.structured(part), enum_to_str=True)
            for name, part in parts.items()
        },
        "args": None,
        "model": model.state_dict(),
        "optimizer_history": [
            {"optimizer_name": "", "criterion_name": "", "lr_scheduler_state": {}, "num_updates": 7}
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "task_state": {"dictionary_hash": dictionary_hash(task.source_dictionary)},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(state, folder / "checkpoint_last.pt")
    task.source_dictionary.save(str(folder / "dict.txt"))
    return model, folder / "checkpoint_last.pt"


def export(checkpoint, dest, *options):
    export_longmem.main([str(checkpoint), "--dest", str(dest), *options])
    return dest / "model.safetensors"


def test_an_exported_model_is_the_trained_one(trained, backbone_path, tmp_path):
    model, checkpoint = trained
    path = export(checkpoint, tmp_path / "exported")
    names = {path.name for path in path.parent.iterdir()}
    assert names == {"model.safetensors", "config.json", "dict.txt", "README.md"}
    loaded, _ = load_model(
        str(path), str(path.parent), SEGMENT, pretrained_model_path=backbone_path
    )
    assert sorted(loaded.state_dict()) == sorted(SAVED)
    tokens = document(1, 4 * SEGMENT, rows=2)
    assert torch.equal(read(loaded, tokens), read(model, tokens))
    with pytest.raises(ValueError, match="--pretrained-model-path is missing"):
        load_model(str(path), str(path.parent), SEGMENT)


def test_the_card_has_the_runs_own_numbers(trained, tmp_path):
    model, checkpoint = trained
    line = {"name": "longmem", "tokens": 12345, "ppl": 7.5, "word_ppl": 9.25}
    base = {**line, "name": "backbone", "ppl": 10.0, "word_ppl": None}  # a corpus without words
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(line) + "\n" + json.dumps(base) + "\n")
    options = ["--results", str(results), "--backbone", "small-lm"]
    path = export(checkpoint, tmp_path / "exported", *options)
    card = (path.parent / "README.md").read_text()
    fingerprint = bytes(model.decoder.backbone_fingerprint.tolist()).hex()
    assert f"| `{fingerprint}` |" in card or f"`{fingerprint}`" in card
    assert "7 updates" in card and "small-lm" in card and "| memory_size | 64 |" in card
    assert "| longmem | 12,345 | 7.500 | 9.250 |\n| backbone | 12,345 | 10.000 | - |" in card


def test_another_dictionary_is_refused(trained, backbone_path, tmp_path):
    path = export(trained[1], tmp_path / "exported")
    other = Dictionary()
    for i in range(60):
        other.add_symbol(f"other{i}")
    other.save(str(path.parent / "dict.txt"))
    with pytest.raises(ValueError, match="another dictionary"):
        load_model(str(path), str(path.parent), SEGMENT, pretrained_model_path=backbone_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"no tensors"),
        ("config.json", b"no json"),
        ("config.json", b'{"format": 2}'),
        ("config.json", b"[]"),
        ("config.json", None),
    ],
)
def test_damaged_exports(trained, tmp_path, name, content):
    path = export(trained[1], tmp_path / "exported")
    file = path.with_name(name)
    if content is None:
        file.unlink()
        with pytest.raises(FileNotFoundError, match="no such file"):
            load_model(str(path), str(path.parent), SEGMENT)
        return
    file.write_bytes(content)
    with pytest.raises(ValueError, match="holds no exported model"):
        load_model(str(path), str(path.parent), SEGMENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.jsonl"),
        (
            '{"name": "needle", "grid": []}\n',
            r"result 1 is not one of eval/evaluate.py, which have",
        ),
        ("no json\n", "line 1: not JSON"),
    ],
)
def test_bad_results_leave_nothing(trained, tmp_path, content, message):
    results = tmp_path / "results.jsonl"
    if content is not None:
        results.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export(trained[1], tmp_path / "exported", "--results", str(results))
    assert not (tmp_path / "exported").exists()


def test_only_a_longmem_is_exported(trained, backbone_path, tmp_path, monkeypatch, capsys):
    arguments = ["export_longmem.py", backbone_path, "--dest", tmp_path / "exported"]
    message = assert_one_line(monkeypatch, capsys, export_longmem.main, *arguments)
    assert "of architecture longmem_backbone, expected longmem" in message
    assert not (tmp_path / "exported").exists()
