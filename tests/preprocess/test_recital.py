"""The recital: runs that recur, its own token frequencies, and the train split beside it."""

import json

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils

from longmem_fairseq.tokenizers.folder import VOCABULARY_FILES
from preprocess import make_recital
from tests.helpers.benchmark_runs import assert_one_line


@pytest.fixture
def data(tmp_path):
    dictionary = Dictionary()
    for number in range(50):
        dictionary.add_symbol(f"w{number}", n=100 if number < 25 else 0)
    folder = tmp_path / "data"
    folder.mkdir()
    dictionary.save(str(folder / "dict.txt"))
    for name in ("train.bin", "train.idx", "sentencepiece.model"):
        (folder / name).write_bytes(name.encode())
    return folder


def make(monkeypatch, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["make_recital.py", *map(str, arguments)])
    make_recital.main()


def test_every_second_run_is_one_of_the_last_four():
    probabilities = np.full(1000, 1 / 1000)
    tokens = make_recital.recital(np.random.default_rng(1), probabilities, 2000)
    # in random tokens a pair hardly ever recurs by chance: about half of the pairs were there before
    pairs = list(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    seen, recurring = set(), 0
    for pair in pairs:
        recurring += pair in seen
        seen.add(pair)
    assert 0.4 < recurring / len(pairs) < 0.55


def test_tokens_and_frequencies(data, tmp_path, monkeypatch):
    make(monkeypatch, "--data", data, "--dest", tmp_path / "recital", "--tokens", 20000)
    dictionary = Dictionary.load(str(tmp_path / "recital" / "dict.txt"))
    assert dictionary.symbols == Dictionary.load(str(data / "dict.txt")).symbols
    documents = data_utils.load_indexed_dataset(str(tmp_path / "recital" / "train"), dictionary)
    items = [documents[i].numpy() for i in range(len(documents))]
    assert all(item[-1] == dictionary.eos() for item in items)
    tokens = np.concatenate([item[:-1] for item in items])
    assert 20000 <= len(tokens) < 20000 + 128 * len(items)
    frequencies = np.bincount(tokens, minlength=len(dictionary))
    special = dictionary.nspecial  # whose counts fairseq does not save
    assert dictionary.count[special:] == frequencies[special:].tolist()
    assert frequencies[:special].sum() == 0
    assert (tmp_path / "recital" / "sentencepiece.model").read_bytes() == b"sentencepiece.model"


def test_mix_puts_the_train_split_beside_it(data, tmp_path, monkeypatch):
    make(monkeypatch, "--data", data, "--dest", tmp_path / "mixed", "--mix", "--tokens", 1000)
    assert (tmp_path / "mixed" / "train.bin").read_bytes() == b"train.bin"
    assert (tmp_path / "mixed" / "train1.idx").stat().st_size > 0
    assert json.loads((tmp_path / "mixed" / "recital.json").read_text())["mix"] is True


def test_same_options_do_nothing(data, tmp_path, monkeypatch, capsys):
    options = ("--data", data, "--dest", tmp_path / "recital", "--tokens", 1000)
    make(monkeypatch, *options)
    capsys.readouterr()
    make(monkeypatch, *options)
    assert capsys.readouterr().out == f"{tmp_path / 'recital'}: up to date\n"


def test_the_whole_vocabulary_is_copied(data, tmp_path, monkeypatch, root):
    copied = set(VOCABULARY_FILES) - {"dict.txt"}
    for name in copied:
        (data / name).write_text(name)
    options = ("--data", data, "--dest", tmp_path / "recital", "--tokens", 1000)
    make(monkeypatch, *options)
    for name in copied:
        assert (tmp_path / "recital" / name).read_text() == name
    shell = (root / "train_scripts" / "copy_vocabulary.sh").read_text()
    assert all(f" {name}" in shell for name in VOCABULARY_FILES)
    (data / "ids.json").write_text("another beginning of documents")
    with pytest.raises(ValueError, match="made from other input"):
        make(monkeypatch, *options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", "0"], "--tokens (0) must be at least 1"),
        (["--seed", "-1"], "--seed (-1) must be at least 0"),
        (["--data", "nowhere"], "--data (nowhere) holds no dict.txt: run prepare_corpus.py"),
    ],
)
def test_bad_input(data, tmp_path, monkeypatch, capsys, arguments, message):
    arguments = ["--data", data, "--dest", tmp_path / "recital", *arguments]
    main, program = make_recital.main, "make_recital.py"
    assert assert_one_line(monkeypatch, capsys, main, program, *arguments) == message
    assert not (tmp_path / "recital").exists()
