"""What people met in comparable projects: docs/results/2026-11-27-reports.md says where."""

import io
import stat
import sys
import threading

import pytest
import torch

from eval import export_longmem
from longmem_fairseq import LongMem
from longmem_fairseq.memory import MemoryBank, extend_bank
from longmem_fairseq.utils.cli import run
from tests.helpers.model_folders import DOCUMENTS, TEXT

SIZES = {"memory_size": 512, "chunk_size": 2, "k": 8}


def bank_of(tokens, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    bank = MemoryBank(1, 2, 8, **SIZES, **options)
    bank.write(*torch.randn(2, 1, 2, tokens, 8, generator=generator))
    return bank


def assert_same_search(bank, other):
    queries = torch.randn(1, 2, 9, 8)
    assert torch.equal(bank.retrieve(queries).chunks, other.retrieve(queries).chunks)


def test_a_mapped_memory_is_saved_over_its_own_file(tmp_path):
    path, bank = str(tmp_path / "memory"), bank_of(100)
    bank.save(path)
    mapped = MemoryBank.load(path, memory_map=True)
    mapped.save(path)
    assert_same_search(MemoryBank.load(path), bank)
    extend_bank(mapped, bank_of(20, seed=1))
    extend_bank(bank, bank_of(20, seed=1))
    mapped.save(path)
    assert_same_search(MemoryBank.load(path), bank)


@pytest.mark.parametrize("index", ["torch", "IVF4,Flat", "HNSW8"])
def test_what_is_added_to_a_mapped_memory_is_found_and_the_other_one_stays(tmp_path, index):
    path, bank, other = str(tmp_path / "memory"), bank_of(350, index=index), bank_of(60, 5)
    bank.save(path)
    mapped = MemoryBank.load(path, memory_map=True, index=index)
    for memory in (mapped, bank):
        extend_bank(memory, other)
    assert_same_search(mapped, bank)
    assert other.num_tokens == [60]
    assert_same_search(other, bank_of(60, 5))


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, errors, done = str(tmp_path / "memory"), [], threading.Event()
    banks = [bank_of(80, seed) for seed in range(2)]
    banks[0].save(path)

    def read():
        while not done.is_set():
            try:
                errors.extend([] if MemoryBank.load(path).num_tokens == [80] else ["other"])
            except ValueError as error:
                errors.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        banks[number % 2].save(path)
    done.set()
    reader.join()
    assert not errors


def test_a_document_that_is_memorized_twice_is_there_twice(models):
    lm = LongMem.from_pretrained(models["longmem"])
    for name in ("once", "twice"):
        lm.memorize(DOCUMENTS["a"], name)
    bank = lm.memory.single_bank(lm.device)
    first, second = (source.first for source in bank.sources[0])
    ids = bank.logs[0].read(bank.held(0))
    assert [source.name for source in bank.sources[0]] == ["once", "twice"]
    assert ids[first:second].tolist() == ids[second:].tolist()


def test_a_text_has_the_same_score_every_time(models):
    lm = LongMem.from_pretrained(models["longmem"])
    first, second = lm.score(TEXT), lm.score(TEXT)
    assert torch.equal(first.log_probs, second.log_probs)
    assert "".join(first.tokens) == TEXT and len(first.tokens) == len(first.log_probs)


def test_an_exported_model_can_be_read_by_others(models, tmp_path):
    checkpoint = models["longmem"] / "checkpoint_last.pt"
    export_longmem.main([str(checkpoint), "--dest", str(tmp_path / "out")])
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_what_a_command_prints_is_utf_8_in_any_locale(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    run(lambda: print("\u4e2d\u6587 \u2014"))
    sys.stdout.flush()
    assert raw.getvalue() == "\u4e2d\u6587 \u2014\n".encode()
