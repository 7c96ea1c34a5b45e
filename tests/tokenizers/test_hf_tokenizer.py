"""The tokenizers of converted models: as the original, and every token with its bytes."""

import json
import pickle

import pytest

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.tokenizers import HFTokenizer, load_tokenizer  # noqa: E402
from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds  # noqa: E402
from tests.helpers.hf_tokenizers import KINDS, PAGE, make_tokenizer  # noqa: E402

PREFIX = {"llama2": " ", "mistral": " "}


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request, tmp_path_factory):
    """Its kind, the original, and ours from a converted model's folder."""
    folder, original = tmp_path_factory.mktemp(request.param), make_tokenizer(request.param)
    (folder / "tokenizer.json").write_text(original.to_str(), encoding="utf-8")
    ids = CheckpointIds(original.get_vocab_size() + 5, {"unk": 0, "bos": 1, "eos": 2})
    ids.save(folder)
    ids.dictionary().save(str(folder / "dict.txt"))
    return request.param, original, load_tokenizer(folder)


def test_tokens_are_those_of_the_original(tokenizers):
    transformers_tokenizers = pytest.importorskip("tests.helpers.hf_models").transformers
    kind, original, ours = tokenizers
    fast = transformers_tokenizers.PreTrainedTokenizerFast(tokenizer_object=original)
    for text in (PAGE.replace("</s>", ""), "a", " a", "\n", "", "naïve 🙂"):
        expected = fast(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == expected, repr(text)


def test_tokens_join_to_the_text(tokenizers):
    kind, _, ours = tokenizers
    for text in (PAGE, "a", " a", "\na", "  ", "", "é" * 3):
        ids = ours.encode(text)
        joined = ours.joined_bytes(ids.tolist()).decode()
        assert joined == ours.spelled(text)
        indices = ours.to_dictionary[ids]
        assert (indices >= ours.dictionary.nspecial).all() and ours.decode(indices) == joined
    if kind == "neox":
        assert ours.spelled("e\u0301") == "é"
    else:
        assert ours.spelled(PAGE) == PREFIX.get(kind, "") + PAGE


def test_special_tokens_in_a_text_are_text(tokenizers):
    """Also in the processes of prepare_corpus.py."""
    ours = tokenizers[2]
    for tokenizer in (ours, pickle.loads(pickle.dumps(ours))):
        ids = tokenizer.encode("a</s>b")
        assert 2 not in ids and tokenizer.joined_bytes(ids.tolist()).strip() == b"a</s>b"


def test_symbols_are_ids_and_special_symbols_those_of_the_model(tokenizers):
    ours = tokenizers[2]
    assert ours.to_dictionary[[0, 1, 2]].tolist() == [3, 0, 2]
    for id_ in (3, 77, len(ours.to_dictionary) - 1):
        assert ours.dictionary[ours.to_dictionary[id_]] == str(id_)
    assert ours.ids.absent.tolist() == [1]
    assert (ours.ids.to_checkpoint[ours.to_dictionary] == range(len(ours.to_dictionary))).all()


def test_the_folder_of_a_corpus_has_the_same_tokenizer(tokenizers, tmp_path):
    ours = tokenizers[2]
    ours.save(tmp_path)
    ours.dictionary.save(str(tmp_path / "dict.txt"))
    again = load_tokenizer(tmp_path)
    assert isinstance(again, HFTokenizer)
    assert again.encode(PAGE).tolist() == ours.encode(PAGE).tolist()


def test_what_does_not_belong_together_is_refused(tokenizers, tmp_path):
    ours = tokenizers[2]
    ours.save(tmp_path)
    CheckpointIds(20, {"eos": 2}).dictionary().save(str(tmp_path / "dict.txt"))
    with pytest.raises(ValueError, match="do not belong together: convert the checkpoint again"):
        load_tokenizer(tmp_path)
    ours.dictionary.save(str(tmp_path / "dict.txt"))
    panics = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    panics["continuing_subword_prefix"] = "longer than b"  # Rust cuts that off without looking
    for content in ({}, {"version": "1.0", "model": panics, "added_tokens": []}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="tokenizer.json is not a tokenizer"):
            load_tokenizer(tmp_path)
    ours.save(tmp_path)
    (tmp_path / "ids.json").unlink()
    with pytest.raises(FileNotFoundError, match="no ids.json"):
        load_tokenizer(tmp_path)
