"""Promises of SECURITY.md about files of strangers that no other test covers."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import zstandard
from fairseq import checkpoint_utils

from longmem_fairseq import LongMem
from longmem_fairseq.conversion.files import weight_files
from longmem_fairseq.corpus import files as corpus_files
from longmem_fairseq.corpus import source as corpus_source
from longmem_fairseq.inspector import inspect_text, make_page
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from longmem_fairseq.tasks.resume import names_beside
from longmem_fairseq.tokenizers import CheckpointIds, GPT2Tokenizer, load_dictionary
from preprocess import extract_arxiv, make_chapterbreak
from tests.fuzz import seeds
from tests.fuzz.watch import watched
from tests.helpers.corpora import write_gpt2_files


@pytest.fixture
def model(tmp_path):
    """A small model's folder, and how to change the configuration in its checkpoint."""
    folder = tmp_path / "model"
    folder.mkdir()
    seeds.model(folder)

    def change(**parts):
        state = torch.load(folder / "checkpoint.pt")
        for part, options in parts.items():
            state["cfg"][part].update(options)
        torch.save(state, folder / "checkpoint.pt")

    return folder, change


# --- configurations that execute ---

STOCK = {
    "_name": "transformer_lm",
    "character_embeddings": True,
    "character_filters": "__import__('os').mkdir('{executed}')",
}


def test_architectures_that_evaluate_their_options_are_refused(model, tmp_path):
    """Plain strings pass torch's check, but fairseq's transformer_lm hands this one to eval()."""
    folder, change = model
    executed = tmp_path / "executed"
    change(model={name: str(value).format(executed=executed) for name, value in STOCK.items()})
    options = LongMemLanguageModelingConfig(data=str(folder), tokens_per_sample=8)
    task = LongMemLanguageModelingTask(options)
    path = str(folder / "checkpoint.pt")
    for load in (
        lambda: LongMem.from_pretrained(folder),
        lambda: checkpoint_utils.load_model_ensemble_and_task([path], task=task),  # fairseq-eval-lm
    ):
        with pytest.raises(ValueError) as error:
            load()
        assert str(error.value) == (
            "architecture transformer_lm: this task is for longmem, memtrm and longmem_backbone"
        )
    assert not executed.exists()


def test_tasks_of_others_are_refused(model):
    folder, change = model
    change(task={"_name": "language_modeling"})
    with pytest.raises(ValueError) as error:
        LongMem.from_pretrained(folder)
    assert str(error.value) == (
        f"{folder}/checkpoint.pt was trained with the task language_modeling, expected "
        "longmem_language_modeling"
    )


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra hf")
    from longmem_fairseq.conversion import tokens

    executed = tmp_path / "executed"
    code = f"import os; os.mkdir({str(executed)!r})\nclass T: pass\n"
    (tmp_path / "mine.py").write_text(code)
    settings = {"auto_map": {"AutoTokenizer": ["mine.T", None]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "vocab.json").write_text("{}")
    with watched(tmp_path), pytest.raises(ValueError, match="transformers cannot read its tok"):
        tokens.older_tokenizer(tmp_path)
    assert not executed.exists()


# --- names that leave their folder ---


@pytest.mark.parametrize(
    "name",
    [
        "../memory_1_0123abcd_rank0.safetensors",
        "/tmp/memory_1_0123abcd_rank0.safetensors",
        "memory_1_0123abcd_rank0.safetensors/../../x",
        "checkpoint_last.pt",
        3,
    ],
)
def test_a_checkpoint_names_memory_beside_it_alone(name):
    with pytest.raises(ValueError, match="expected a file beside it"):
        names_beside([name])
    good = ["memory_1_0123abcd_rank0.safetensors", "memory_1_0123abce_rank1.safetensors"]
    assert names_beside(good) == good and names_beside(None) is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b.safetensors", "x" * 300])
def test_an_index_names_weights_beside_it_alone(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError) as error:
        weight_files(tmp_path)
    assert str(error.value) == f"{index} names {name[:200]!r}, expected a file beside it"


def test_items_are_made_of_files_in_the_source_alone(tmp_path):
    source, secret = tmp_path / "source", tmp_path / "secret.txt"
    source.mkdir()
    secret.write_text("secret " * 100)
    (source / "link").symlink_to(tmp_path)
    for name in ("../secret.txt", str(secret), "link/secret.txt"):
        item = {"file": name, "ctx_end": 9, "pos": [9, 12], "negs": [[12, 15]]}
        (tmp_path / "items.jsonl").write_text(json.dumps(item))
        options = ["--source", str(source), "--offsets", str(tmp_path / "items.jsonl")]
        with pytest.raises(ValueError, match="the file inside --source"):
            make_chapterbreak.main([*options, "--dest", str(tmp_path / "dest.json")])
    assert not (tmp_path / "dest.json").exists()


def archive(path: Path, members) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, content, link in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if link:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, link, 0
            packed.addfile(member, io.BytesIO(content))
    return path


def test_archives_are_read_not_unpacked(tmp_path):
    """Neither names that leave the folder nor links nor inclusions are followed."""
    main = rb"\documentclass{a}\input{/etc/passwd}\input{../../etc/passwd}\input{linked}"
    members = [("../../main.tex", main, ""), ("linked.tex", b"", "/etc/passwd")]
    papers = tmp_path / "deep" / "papers"
    papers.mkdir(parents=True)
    archive(papers / "paper.tar.gz", members)
    with watched(papers):
        ((_, text),) = extract_arxiv.latex_papers(papers)
    assert text == main.decode()
    assert [path.name for path in tmp_path.rglob("*.tex")] == []


# --- small files that become large ---


def test_a_compressed_checkpoint_is_refused(model):
    folder, _ = model
    path = folder / "checkpoint.pt"
    with zipfile.ZipFile(path) as good:
        parts = {name: good.read(name) for name in good.namelist()}
    name = next(name for name in parts if "/data/" in name)
    parts[name] += bytes(10_000_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for part, content in parts.items():
            bomb.writestr(part, content)
    assert path.stat().st_size < 500_000
    with pytest.raises(ValueError, match="is not a checkpoint, or a damaged one"):
        LongMem.from_pretrained(folder)


def test_a_compressed_line_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "LONGEST_LINE", 1000)
    path = tmp_path / "train.jsonl.zst"
    line = json.dumps({"text": "a" * 900}).encode() + b"\n"
    path.write_bytes(zstandard.ZstdCompressor().compress(line * 3))
    assert len(list(corpus_source.json_records(path))) == 3
    path.write_bytes(zstandard.ZstdCompressor().compress(line + b"b" * 10_000_000))
    with pytest.raises(ValueError) as error:
        list(corpus_source.json_records(path))
    assert str(error.value).startswith(f"{path}: a line of more than 1,000 bytes")


def test_an_archive_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(extract_arxiv, "LARGEST", 10_000)
    archive(tmp_path / "a.tar.gz", [("a.tex", b"a" * 9000, ""), ("b.tex", b"b" * 9000, "")])
    with pytest.raises(ValueError, match="unpacks to more than 10,000 bytes of LaTeX"):
        list(extract_arxiv.latex_papers(tmp_path))


def test_inclusions_have_a_largest_size():
    """Ten levels that each include the next one a hundred times."""
    files = {f"{i}": f"\\input{{{i + 1}}}" * 100 for i in range(10)}
    with pytest.raises(ValueError, match="0 includes more than 268,435,456 characters"):
        extract_arxiv.assembled({**files, "10": "a"}, "0")


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_memory_that_promises_more_than_there_is(tmp_path, memory_map):
    seeds.memory(tmp_path)
    header = json.loads((tmp_path / "header.json").read_text())
    header.update(num_written=[0, 0], num_pending=[0, 0], memory_size=2**38, sources=[[], []])
    shapes = {"keys": (2, 1, 0, 2, 4), "values": (2, 1, 0, 2, 4), "chunk_keys": (2, 1, 0, 4)}
    seeds.write_memory(
        tmp_path / "memory",
        json.dumps(header).encode(),
        {**{name: torch.zeros(shape) for name, shape in shapes.items()}, "token_ids": _no_ids()},
    )
    with watched(tmp_path), pytest.raises(ValueError, match="cannot be made: choose a smaller"):
        MemoryBank.load(str(tmp_path / "memory"), memory_map=memory_map)


def _no_ids():
    return torch.zeros(2, 0, dtype=torch.int32)


def test_ids_beyond_every_dictionary(tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n")
    dictionary = load_dictionary(tmp_path / "dict.txt")
    (tmp_path / "ids.json").write_text(json.dumps({"num_ids": 10**12}))
    with watched(tmp_path), pytest.raises(ValueError, match="do not belong together"):
        CheckpointIds.load(tmp_path, dictionary)
    folder = write_gpt2_files(tmp_path / "bpe")
    (folder / "encoder.json").write_text(json.dumps({"a": 10**12}))
    with watched(tmp_path), pytest.raises(ValueError, match="encoder.json or vocab.bpe is not GPT"):
        GPT2Tokenizer(folder)


# --- links and the network ---


def test_saving_replaces_a_link_and_not_what_it_points_to(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "memory"
    victim.write_text("mine")
    path.symlink_to(victim)
    MemoryBank(1, 1, 4, memory_size=8, chunk_size=2, k=4).save(str(path))
    assert victim.read_text() == "mine" and not path.is_symlink()


def test_no_network_unless_asked(model):
    """Forbidden is raised where a socket is connected, or a name looked up."""
    folder, _ = model
    with watched(folder):
        lm = LongMem.from_pretrained(folder)
        lm.memorize("The cat sat on the mat.", progress=False)
        lm.save_memory(folder / "memory")
        lm.load_memory(folder / "memory")
        lm.generate("The cat", max_new_tokens=3)
        text = "<script>alert(1)</script>"
        page = make_page(inspect_text(lm, text), text, text)
    assert text not in page and "http" not in page.replace("http-equiv", "")
    assert os.path.isfile(folder / "memory")
