"""RULER and BABILong: official files, and answers of tiny models by plain reading."""

import json

import pytest
import torch

from eval import babilong, report, ruler
from eval.ruler_tasks import TASKS, score
from longmem_fairseq import LongMem
from tests.helpers.benchmark_runs import assert_one_line, assert_resumes, call, lines, whole_chunks
from tests.helpers.model_folders import story

WINDOW = 96
MEMORY = ("--memory-size", 2048)


def write(path, records, form="lines"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(record) for record in records]
    path.write_text("[" + ",".join(rows) + "]" if form == "list" else "\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """RULER in the form of its newer scripts (vt) and of its older ones, with the answer's beginning in
    the prompt (fwe); BABILong as a list and as lines."""
    folder = tmp_path_factory.mktemp("data")
    newer, older = [], []
    for i in range(3):
        asked, begun = f"{story(40 + i, i)}\nWhat is the owl?", " The owl is"
        newer.append(
            {
                "index": i,
                "input": asked,
                "outputs": ["owl", "Ann"],
                "length": 200,
                "answer_prefix": begun,
            }
        )
        older.append({"index": i, "input": asked + begun, "outputs": ["tree"], "length": 200})
    write(folder / "4096" / "data" / "vt" / "validation.jsonl", newer)
    write(folder / "4096" / "data" / "fwe" / "validation.jsonl", older)
    samples = [
        {"input": story(40, i), "question": "Where is Ann?", "target": "garden"} for i in range(3)
    ]
    write(folder / "data" / "qa1" / "4k.json", samples, "list")
    write(folder / "data" / "qa2" / "4k.json", samples)
    return folder


def arguments(data, model, *more):
    return ("--data", data, "--path", model, "--name", "m", "--tokens-per-sample", WINDOW, *more)


def answers_in(results):
    """The answers that a run logged, by task, length and number."""
    (path,) = (results.parent / f"{results.name}.items").iterdir()
    return {
        record["item"]: {memory: text for memory, (text, _) in record["answers"].items()}
        for record in lines(path)[1:]
    }


@torch.no_grad()
def hand_generated(lm, context, prompt, count):
    """The text of so many tokens by plain forwards, after a context in memory or before the prompt."""
    start, written = lm.tokenizer.document_start, []
    if lm.decoder.memory is None:
        room = WINDOW - 1 - len(lm.tokenizer.indices(prompt)) - count
        shown = lm.tokenizer.indices(context).tolist()
        text = [start, *shown[max(0, len(shown) - room) :], *lm.tokenizer.indices(prompt).tolist()]
    else:
        text = [start, *lm.tokenizer.indices(prompt).tolist()]
    for _ in range(count):
        fresh = torch.tensor([True])
        if lm.decoder.memory is not None:
            lm.decoder.memory.reset()
            remembered = [] if context is None else [start, *lm.tokenizer.indices(context).tolist()]
            for segment in whole_chunks(lm, remembered).split(WINDOW, dim=1) if remembered else []:
                lm.decoder(segment, new_document=fresh)
                fresh = torch.tensor([False])
        logits = lm.decoder(torch.tensor([text]), new_document=fresh)[0][0, -1].clone()
        logits[lm.tokenizer.impossible] = -torch.inf
        following = int(logits.argmax())
        if following in lm.tokenizer.ends:
            break
        text.append(following)
        written.append(following)
    return lm.tokenizer.decode(written)


@pytest.mark.parametrize("model", ["longmem", "backbone"])
def test_answers_are_greedy_continuations(data, models, tmp_path, monkeypatch, model):
    results, has_memory = tmp_path / "results.jsonl", model == "longmem"
    more = (*MEMORY, "--memory", "own,empty,other") if has_memory else ()
    given = arguments(data, models[model], "--tasks", "vt", "--results", results, *more)
    call(monkeypatch, ruler.main, "ruler.py", *given)
    overrides = {"memory_size": 2048} if has_memory else {}
    lm = LongMem.from_pretrained(models[model], tokens_per_sample=WINDOW, **overrides)
    path = ruler.path_of(data, 4096, "vt")
    (questions, _), found = ruler.read_questions(path), answers_in(results)
    assert questions[0].context == story(40, 0) and len(questions) == 3
    for i, question in enumerate(questions):
        following = questions[(i + 1) % 3]
        expected = {"own": (question.context, question)}
        if has_memory:
            expected |= {"empty": (None, question), "other": (question.context, following)}
        for memory, (context, asked) in expected.items():
            text = hand_generated(lm, context, asked.question, 30)
            answer = found[f"vt 4096 {i}"][memory]
            assert text.startswith(answer)
            # it ends early where nothing can change
            assert answer == text or score("vt", answer, asked.references) == 1
    by_memory = {line["memory"]: line for line in lines(results)}
    assert set(by_memory) == ({"own", "empty", "other"} if has_memory else {"own"})
    scores = [100 * score("vt", found[f"vt 4096 {i}"]["own"], ["owl", "Ann"]) for i in range(3)]
    assert by_memory["own"]["score"] == pytest.approx(sum(scores) / 3)
    assert by_memory["own"]["setting"] == {"task": "vt", "length": 4096}
    assert by_memory["own"]["haystack"] == "RULER's"


def test_a_model_without_memory_says_what_it_was_not_given(
    data, models, monkeypatch, capsys, tmp_path
):
    results = tmp_path / "results.jsonl"
    call(
        monkeypatch,
        babilong.main,
        "babilong.py",
        *arguments(data, models["backbone"], "--tasks", "qa1", "--results", results),
        *("--tokens-per-sample", 1500),
    )
    whole = capsys.readouterr().out
    assert "no memory" in whole and "of which" not in whole
    (line,) = lines(results)
    assert line["window_tokens"] == line["tokens"] and line["memorized_tokens"] == 0
    call(monkeypatch, ruler.main, "ruler.py", *arguments(data, models["backbone"]))
    printed = capsys.readouterr().out.splitlines()
    assert [text.split(",")[0] for text in printed] == ["m: vt", "m: fwe"]
    assert all(", of which the window holds " in text for text in printed)


@pytest.mark.parametrize("program", [ruler, babilong])
def test_a_killed_run_goes_on_to_the_same_lines(data, models, tmp_path, monkeypatch, program):
    window = ("--tokens-per-sample", 1500) if program is babilong else ()
    more = ("--tasks", "qa1,qa2") if program is babilong else ()
    given = arguments(data, models["longmem"], *MEMORY, "--memory", "own,other", *more, *window)
    assert_resumes(monkeypatch, tmp_path, program.main, f"{program.__name__}.py", *given)


def test_tables(tmp_path, monkeypatch, capsys):
    def line(task, length, value, name="m", **more):
        setting = {"task": task, "length": length}
        return {"name": name, "setting": setting, "score": value, "memory": "own", **more}

    found = [line(task, 8192, 50 + i, benchmark="ruler") for i, task in enumerate(TASKS)]
    found.append(line("vt", 4096, 25.0, benchmark="ruler"))
    for given in found:
        given["haystack"] = "books" if given["setting"]["task"] == "niah_single_2" else ""
    results = tmp_path / "ruler.jsonl"
    write(results, found)
    call(monkeypatch, report.main, "report.py", results, "--plot", tmp_path / "ruler.png")
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| model | length | " + " | ".join(TASKS) + " | mean |"
    assert (
        table[2].startswith("| m | 4,096 |")
        and "| 25.0 |" in table[2]
        and table[2].endswith(" |  |")
    )
    assert table[3].endswith("| 62.0 | 56.0 |")
    assert table[-1] == "In place of Paul Graham's essays: books."
    assert (tmp_path / "ruler.png").stat().st_size > 1000
    found = [
        line(f"qa{i}", length, 10.0 * i, benchmark="babilong")
        for i in range(1, 6)
        for length in ("1M", "4k")
    ]
    results = tmp_path / "babilong.jsonl"
    write(results, found)
    call(monkeypatch, report.main, "report.py", results, "--plot", tmp_path / "babilong.png")
    table = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in table[2:]] == ["4k", "1M"]
    assert table[0].endswith("| mean of qa1-qa5 |") and table[2].endswith("| 50.0 | 30.0 |")


BAD = {
    "no folder": (
        ruler,
        {"--data": "nowhere"},
        "nowhere/4096/data/niah_single_1/validation.jsonl: no such",
    ),
    "no length": (
        ruler,
        {"--lengths": "8192"},
        "/8192/data/niah_single_1/validation.jsonl: no such file",
    ),
    "unknown task": (ruler, {"--tasks": "vt,niah"}, "--tasks (niah) must be of niah_single_1, "),
    "unknown memory": (
        ruler,
        {"--memory": "own,mine"},
        "--memory (mine) must be of own, empty, other",
    ),
    "one sample": (
        ruler,
        {"--limit": 1, "--memory": "other"},
        "--memory (other) needs two samples, but ",
    ),
    "a small memory": (
        ruler,
        {"--memory-size": 96, "--lengths": "96"},
        "--memory-size (96) is too small for ",
    ),
    "a small window": (
        ruler,
        {"--tokens-per-sample": 32},
        "--tokens-per-sample (32) is too small for a question and its answer, which have ",
    ),
    "no babilong": (babilong, {"--data": "nowhere"}, "nowhere/data/qa1/4k.json: no such file"),
    "unknown length": (babilong, {"--lengths": "4096"}, "--lengths (4096) must be of 0k, 1k, "),
    "unknown question": (babilong, {"--tasks": "qa11"}, "--tasks (qa11) must be of qa1, "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, data, models, tmp_path, monkeypatch, capsys):
    program, changed, message = BAD[case]
    if changed.get("--lengths") == "96":
        long = {"index": 0, "input": story(900) + "\nWhat?", "outputs": ["owl"]}
        write(tmp_path / "96" / "data" / "vt" / "validation.jsonl", [long] * 2)
        changed = {**changed, "--data": tmp_path}
    given = [*arguments(data, models["longmem"], *MEMORY)]
    given += [part for pair in changed.items() for part in pair]
    line = assert_one_line(monkeypatch, capsys, program.main, f"{program.__name__}.py", *given)
    assert message in line


@pytest.mark.parametrize(
    "program, content, message",
    [
        (ruler, "", "holds no samples"),
        (ruler, "{", "line 1: not JSON"),
        (ruler, '{"input": "a"}', "line 1: outputs is None, expected list"),
        (ruler, '{"input": "a", "outputs": [7]}', "line 1: outputs are [7], expected strings"),
        (babilong, "[]", "holds no samples"),
        (babilong, "[1]", "sample 1: expected strings input, question, target"),
        (babilong, '[{"input": "a", "question": "b", "target": 3}]', "sample 1: expected strings"),
        (babilong, "{", "line 1: not JSON"),
    ],
)
def test_damaged_files_are_one_line(
    program, content, message, models, tmp_path, monkeypatch, capsys
):
    ruler_file, babilong_file = (
        ruler.path_of(tmp_path, 4096, "vt"),
        tmp_path / "data" / "qa1" / "4k.json",
    )
    for path in (ruler_file, babilong_file):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    more = ("--tasks", "vt") if program is ruler else ("--tasks", "qa1")
    given = arguments(tmp_path, models["backbone"], *more)
    line = assert_one_line(monkeypatch, capsys, program.main, f"{program.__name__}.py", *given)
    assert line.endswith(message) or message in line


def test_a_model_without_memory_has_no_controls(data, models, monkeypatch, capsys):
    given = arguments(data, models["backbone"], "--memory", "own,empty")
    line = assert_one_line(monkeypatch, capsys, ruler.main, "ruler.py", *given)
    assert line == "--memory (own,empty) needs a model with a memory bank: leave it out"
