"""In-context learning: files, templates, drawing and scoring, against plain readings of the prompts."""

import random
import re

import pytest
import torch

from eval import icl
from eval.icl_tasks import TASKS, Example, is_right, read_examples
from longmem_fairseq import LongMem
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines, whole_chunks

WINDOW = 160
SHORT = ("--tokens-per-sample", WINDOW, "--memory-size", 4096)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2 and SST-5 in small."""
    folder = tmp_path_factory.mktemp("icl")
    words, rng = "Ann saw a tree. the owl was and Bob river".split(), random.Random(1)

    def text(most):
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    (folder / "SST-2").mkdir()
    for name, count in (("train", 12), ("dev", 7)):
        rows = ["sentence\tlabel", *(f"{text(6)}\t{rng.randrange(2)}" for _ in range(count))]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (folder / "sst-5").mkdir()
    for name in ("train", "dev"):
        rows = [f"{rng.randrange(5)} {text(6)}" for _ in range(6)]
        (folder / "sst-5" / f"stsa.fine.{name}").write_text("\n".join(rows) + "\n")
    return folder


def options(data, model, *more):
    path = model / "checkpoint_last.pt"
    return ("--data", data, "--path", path, "--name", "m", "--batch-size", 3, *more)


def test_files_of_all_forms(tmp_path):
    (tmp_path / "a.tsv").write_text("sentence\tlabel\nso good\t1\n bad \t0\n")
    (tmp_path / "b.csv").write_text('1,"so, ""good"""\n0," bad "\n')
    (tmp_path / "c.train").write_text("1 so , good\n0 bad \n")
    labels = ("negative", "positive")
    found = {name: read_examples(tmp_path / name, labels) for name in ("a.tsv", "b.csv", "c.train")}
    assert found["a.tsv"] == [Example("so good", "positive"), Example("bad", "negative")]
    assert found["b.csv"] == [Example('so, "good"', "positive"), Example("bad", "negative")]
    assert found["c.train"] == [Example("so , good", "positive"), Example("bad", "negative")]
    (tmp_path / "d.csv").write_text("0,\n1,fine\n")
    allowed = read_examples(tmp_path / "d.csv", labels, allow_empty=True)
    assert allowed == [Example("", "negative"), Example("fine", "positive")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tsv", "text\tlabel\n", "the first line is not 'sentence<tab>label'"),
        ("a.tsv", "sentence\tlabel\nno label\n", "line 2: 1 columns instead of a text and a label"),
        ("a.tsv", "sentence\tlabel\na\tb\t1\n", "line 2: 3 columns instead of a text and a label"),
        ("a.csv", "1,fine\n,no gold\n", "line 2: gold label '' instead of 0 to 1"),
        ("a.csv", "2,fine\n", "line 1: gold label '2' instead of 0 to 1"),
        ("a.train", "positive fine\n", "line 1: gold label 'positive' instead of 0 to 1"),
        ("a.csv", "1,\n", "line 1: no text"),
        ("a.csv", "", "holds no examples"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as raised:
        read_examples(tmp_path / name, ("negative", "positive"))
    assert str(tmp_path / name) in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize(
    "said, label, right",
    [
        (" positive", "positive", True),
        (" pos", "positive", True),
        ("g", "great", True),
        ("g", "good", True),  # as in the released script, an ambiguous prefix is right for both
        (" negative", "positive", False),
        ("positives", "positive", False),
        ("", "positive", False),
        ("  ", "positive", False),
    ],
)
def test_a_prefix_of_the_label_word_is_right(said, label, right):
    assert is_right(said, label) is right


def test_the_same_demonstrations_as_the_released_script():
    examples = [Example(str(i), "positive") for i in range(50)]
    for seed in (1, 6):
        random.seed(seed)
        expected = random.sample(examples, 4), random.sample(examples, 20)
        assert icl.draw(examples, 4, 20, seed) == expected


@pytest.mark.parametrize(
    "model, scoring",
    [(model, "argmax") for model in ("longmem", "memtrm", "backbone")] + [("longmem", "rank")],
)
def test_what_is_said_is_that_of_prompts_read_one_by_one(
    data, models, tmp_path, monkeypatch, model, scoring
):
    memory = 0 if model == "backbone" else 5
    overrides = {} if model == "backbone" else {"memory_size": 4096}
    more = ("--tasks", "SST-5", "--shots", 2, "--memory-demonstrations", memory, "--seeds", 3)
    size = SHORT[: 2 + 2 * len(overrides)]
    arguments = options(data, models[model], *more, *size, "--scoring", scoring)
    results = tmp_path / "results.jsonl"
    call(monkeypatch, icl.main, "icl.py", *arguments, "--results", results)
    (line,), task = lines(results), TASKS["SST-5"]
    lm = LongMem.from_pretrained(models[model], tokens_per_sample=WINDOW, **overrides)
    train, test = (
        read_examples(data / task.folder / name, task.labels) for name in (task.train, task.test)
    )
    drawn = icl.draw(train, 2, memory, 3)
    expected = [hand_scored(lm, task, *drawn, example, scoring) for example in test]
    (path,) = (tmp_path / "results.jsonl.items").iterdir()
    said = {}
    for record in lines(path)[1:]:
        said.update(zip(record["examples"], record["words"], strict=True))
    assert [said[i] for i in range(len(test))] == [text.strip() for text in expected]
    right = [is_right(text, e.label) for text, e in zip(expected, test, strict=True)]
    assert line["accuracy"] == sum(right) / len(right)
    assert (line["examples"], line["shots_in_window"]) == (len(test), 2)
    assert (line["memory_options"] is None) == (model == "backbone")
    assert (line["memorized_tokens"] > 50) == (model != "backbone")


@torch.no_grad()
def hand_scored(lm, task, shown, remembered, example, scoring):
    """The answer to one example, by the template as the paper writes it and plain forwards."""
    template = task.prompt.lstrip() + " {label}. "
    start = [lm.dictionary.eos()]

    def ids(text):
        return lm.tokenizer.indices(text).tolist()

    def written(examples):
        # with a space before the first one too
        joined = "".join(template.format(text=e.text, label=e.label) for e in examples)
        return " " + joined.rstrip(" ") if joined else ""

    memorized = whole_chunks(lm, start + ids(written(remembered)))
    prompt = start + ids(written(shown)) + ids(task.prompt.format(text=example.text))

    def logits(tokens):
        if lm.decoder.memory is None:
            return lm.decoder(torch.tensor([tokens]))[0][0]
        lm.decoder.memory.reset()
        fresh = torch.tensor([True])
        if remembered:
            for segment in memorized.split(WINDOW, dim=1):
                lm.decoder(segment, new_document=fresh)
                fresh = torch.tensor([False])
        return lm.decoder(torch.tensor([tokens]), new_document=fresh)[0][0]

    if scoring == "argmax":
        return lm.tokenizer.decode([int(logits(prompt)[-1].argmax())])
    likelihoods = {}
    for label in task.labels:
        word = ids(f" {label}")
        scores = logits(prompt + word[:-1])[len(prompt) - 1 :].log_softmax(-1)
        likelihoods[label] = float(scores.gather(1, torch.tensor(word)[:, None]).sum())
    return max(likelihoods, key=likelihoods.get)


def test_demonstrations_that_do_not_fit_are_remembered(data, models, tmp_path, monkeypatch):
    more = ("--tasks", "SST-2", "--shots", 8, "--memory-demonstrations", 0, "--seeds", 1)
    arguments = options(data, models["longmem"], *more, "--tokens-per-sample", 120)
    results = tmp_path / "results.jsonl"
    call(monkeypatch, icl.main, "icl.py", *arguments, "--memory-size", 4096, "--results", results)
    (line,) = lines(results)
    assert 0 < line["shots_in_window"] < 8 and line["memorized_tokens"] > 0


def test_a_killed_run_goes_on_to_the_same_line(data, models, tmp_path, monkeypatch):
    more = ("--tasks", "SST-2", "--shots", "1,6", "--memory-demonstrations", 4, "--seeds", "1,2")
    arguments = options(data, models["longmem"], *more, *SHORT)
    assert_resumes(monkeypatch, tmp_path, icl.main, "icl.py", *arguments)


BAD = {
    "missing folder": (("--data", "nowhere"), "nowhere/SST-2/train.tsv: no such file; --data is"),
    "unknown task": (
        ("--tasks", "SST-3"),
        "--tasks (SST-3) must be of SST-2, MR, Subj, SST-5",
    ),
    "a task twice": (
        ("--tasks", "SST-2,SST-2"),
        "--tasks (SST-2,SST-2) must name everything once",
    ),
    "shots": (("--shots", "4,x"), "--shots (4,x) must be whole numbers with commas between them"),
    "too many": (("--shots", "13"), "13 demonstrations are more than the 12 training examples"),
    "limit": (("--limit", "0"), "--limit (0) must be at least 1"),
    "too small a memory": (
        ("--memory-size", "160", "--memory-demonstrations", "10"),
        "--memory-size (160) is too small for",
    ),
    "no such model": (("--path", "nowhere"), "nowhere: no such model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, data, models, monkeypatch, capsys):
    more, message = BAD[case]
    one = ("--tasks", "SST-2", "--shots", 1, "--memory-demonstrations", 1, "--seeds", 1, *SHORT)
    arguments = options(data, models["longmem"], *one, *more)
    assert message in assert_one_line(monkeypatch, capsys, icl.main, "icl.py", *arguments)


def test_a_model_without_memory_remembers_no_demonstrations(data, models, monkeypatch, capsys):
    arguments = options(data, models["backbone"], "--tasks", "SST-2")
    message = assert_one_line(monkeypatch, capsys, icl.main, "icl.py", *arguments)
    assert message.startswith("--memory-demonstrations (0,2000) needs a model with a memory bank")
    more = (*arguments, "--memory-demonstrations", 0, "--memory-size", 4096)
    message = assert_one_line(monkeypatch, capsys, icl.main, "icl.py", *more)
    assert (
        message == "--memory-size (4096) does not apply to a longmem_backbone model: leave it out"
    )
    path = models["longmem"] / "checkpoint_last.pt"
    message = assert_one_line(
        monkeypatch, capsys, icl.main, "icl.py", *more, "--path", path, "--no-memory"
    )
    assert message == "--memory-size (4096) needs a model with a memory bank: leave it out"


def test_a_memory_of_no_tokens_is_no_memory_and_the_window_is_the_models(
    data, models, tmp_path, monkeypatch
):
    results = tmp_path / "results.jsonl"
    more = ("--tasks", "SST-2", "--shots", 0, "--memory-demonstrations", 0, "--seeds", 1)
    more += ("--results", results)
    for size in ((), ("--no-memory",), ("--memory-size", 0)):
        call(monkeypatch, icl.main, "icl.py", *options(data, models["longmem"], *more, *size))
    with_memory, without, *repeated = lines(results)
    assert with_memory["memory_options"]["memory_size"] == 128
    assert without["memory_options"] is None
    # the very line of --no-memory, which is not written twice where it took as long
    assert all(line == without for line in repeated)
    assert without["tokens_per_sample"] == with_memory["tokens_per_sample"] == 16


def test_the_memory_has_to_hold_what_does_not_fit_beside_the_longest_example(
    data, models, monkeypatch, capsys
):
    """Said at once, with what is needed in all, and not when it is full."""
    more = ("--tasks", "SST-2", "--shots", 8, "--memory-demonstrations", 0, "--seeds", 1)
    arguments = options(data, models["longmem"], *more, "--tokens-per-sample", 120)
    monkeypatch.setattr(icl.Demonstrations, "before", None)
    message = assert_one_line(
        monkeypatch, capsys, icl.main, "icl.py", *arguments, "--memory-size", 120
    )
    monkeypatch.undo()
    needed = int(re.search(r"\(120\) is too small for the (\d+) tokens", message)[1])
    size = -(-needed // 2) * 2  # chunks of 2
    call(monkeypatch, icl.main, "icl.py", *arguments, "--memory-size", size)
    capsys.readouterr()
    message = assert_one_line(
        monkeypatch, capsys, icl.main, "icl.py", *arguments, "--memory-size", size - 2
    )
    assert f"({size - 2}) is too small for the {needed} tokens" in message
