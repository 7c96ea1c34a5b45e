"""longmem-memorize, longmem-generate and longmem-inspect: files in, text or JSON out; bad input is in
test_bad_input.py."""

import fcntl
import importlib
import io
import json
import os
import runpy
import sys
from unittest import mock

import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.commands import (
    convert,
    generate,
    inspector,
    lm_eval,
    memorize,
    prepare,
    serve,
)
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.utils.cli import run
from tests.helpers.model_folders import DOCUMENTS, story

COMMANDS = {
    "longmem-memorize": memorize,
    "longmem-generate": generate,
    "longmem-inspect": inspector,
}
PROMPT = " ".join(story(5, seed=3).split())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: two documents and a prompt."""
    monkeypatch.chdir(tmp_path)
    for name, text in DOCUMENTS.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(models, folder, monkeypatch, capsys):
    """Runs a command in this process; returns what it printed."""

    def run_command(line, stdin=""):
        program, *arguments = line.split("|")
        command = [argument.format(**models) for argument in arguments]
        monkeypatch.setattr(sys, "argv", [f"/usr/bin/{program}", *command])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        run(COMMANDS[program].main)
        return capsys.readouterr().out

    return run_command


@pytest.fixture
def load(models):
    """A longmem that has memorised the documents, or nothing."""

    def load_model(memorised=True):
        lm = LongMem.from_pretrained(models["longmem"])
        if memorised:
            lm.memorize(DOCUMENTS.values(), names=["a.txt", "b.txt"])
        return lm

    return load_model


def num_tokens(lm, *texts):
    return sum(len(lm.tokenizer.indices(text)) for text in texts)


# --- what they do ---


def test_a_memory_of_files_serves_the_other_commands(call, load, folder):
    lm = load()
    said = call("longmem-memorize|{longmem}|[ab].txt|--output|m")
    tokens = num_tokens(lm, *DOCUMENTS.values())
    assert said == (
        f"m: read 2 documents of {tokens} tokens; the memory holds {tokens + 2} tokens, beginnings "
        "included, of at most 128\n"
    )
    text, empty = lm.generate(PROMPT, 12), load(memorised=False).generate(PROMPT, 12)
    assert text != empty
    line = "longmem-generate|{longmem}|prompt.txt|--max-new-tokens|12"
    assert call(line) == empty + "\n"
    for option in ("", "|--memory-map"):
        assert call(f"{line}|--memory|m{option}") == text + "\n"
    said = call("longmem-inspect|{longmem}|prompt.txt|--memory|m|--output|page.html")
    gain = lm.score(PROMPT + "\n\n").log_probs - lm.score(PROMPT + "\n\n", memory=False).log_probs
    assert (
        said
        == f"page.html: {len(gain)} tokens, to which memory gave {gain.mean():+.3f} nats each\n"
    )
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "<h1>prompt.txt</h1>" in page and '"a.txt"' in page and '"b.txt"' in page
    assert f"Memorised before: 2 documents; {tokens + 2} tokens held." in page


@pytest.mark.parametrize("option", ["", "|--memory-map"])
def test_memorising_goes_on_with_what_was_saved(call, load, option):
    assert call("longmem-memorize|{longmem}|a.txt|--output|m").startswith("m: read 1 document of ")
    said = call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m|--json" + option)
    lm, other = load(), load(memorised=False)
    other.load_memory("m")
    bank, expected = (used.memory.single_bank(used.device) for used in (other, lm))
    assert bank.header() == expected.header()
    assert (bank.logs[0].ids == expected.logs[0].ids).all()
    tokens = num_tokens(lm, DOCUMENTS["b"])
    assert json.loads(said) == {
        "memory": "m",
        "documents": 1,
        "tokens": tokens,
        "held": expected.num_tokens[0],
        "waiting": expected.num_pending[0],
        "memory_size": 128,
    }


def test_a_memory_to_which_another_process_adds_is_refused_at_once(call, folder, capsys):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    before = (folder / "m").read_bytes()
    with open(folder / "m") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as exited:
            call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m")
    assert exited.value.code == 2 and capsys.readouterr().err == (
        "longmem-memorize: error: --output (m): another process is adding to it: wait until it has "
        "ended\n"
    )
    assert (folder / "m").read_bytes() == before
    call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m")
    assert [source.name for source in MemoryBank.load("m").sources[0]] == ["a.txt", "b.txt"]


def test_a_memory_that_appears_during_the_work_is_left_as_it_is(call, load, capsys, monkeypatch):
    def memorize(lm, texts, names, special_tokens):
        other.save_memory("m")  # another process was faster
        return 1

    other = load()
    monkeypatch.setattr(LongMem, "memorize", memorize)
    with pytest.raises(SystemExit):
        call("longmem-memorize|{longmem}|a.txt|--output|m")
    assert capsys.readouterr().err.startswith(
        "longmem-memorize: error: m: cannot be written (another process saved it after it was read"
    )
    assert [source.name for source in MemoryBank.load("m").sources[0]] == ["a.txt", "b.txt"]


def test_numbers_of_a_full_memory_agree(call):
    """Tokens of an incomplete chunk cannot be found: they are not held, and no more than that are."""
    said = call("longmem-memorize|{longmem}|a.txt|prompt.txt|--output|m|--memory-size|16|--k|4")
    bank = MemoryBank.load("m")
    assert bank.num_tokens == [16] and bank.num_pending[0] > 0
    held = "the memory holds 16 tokens, beginnings included, of at most 16"
    assert said.endswith(f"{held}, and {bank.num_pending[0]} of an unfinished chunk\n")


@pytest.mark.parametrize(
    "name, message",
    [
        ("a.txt", "is there, and no memory file: give a new name"),
        ("protected", "it is read-only (mode 400): chmod u+w, or give another name"),
        ("pipe", "it is no regular file: give another name"),
    ],
)
def test_the_output_is_looked_at_before_the_work(call, load, folder, capsys, name, message):
    load().save_memory("protected")
    (folder / "protected").chmod(0o400)
    os.mkfifo(folder / "pipe")
    with mock.patch.object(LongMem, "from_pretrained"), pytest.raises(SystemExit):
        call(f"longmem-memorize|{{longmem}}|a.txt|--output|{name}")
    error = capsys.readouterr().err
    assert error.startswith(f"longmem-memorize: error: --output ({name})")
    assert error.endswith(message + "\n") and error.count("\n") == 1
    assert (folder / "a.txt").read_text(encoding="utf-8") == DOCUMENTS["a"]


def test_standard_input_is_a_text(call, load, folder):
    call("longmem-memorize|{longmem}|--output|m", stdin=DOCUMENTS["a"])
    lm = load(memorised=False)
    lm.load_memory("m")
    assert lm.memory.single_bank(lm.device).sources[0][0].name == "standard input"
    lm.forget()
    text = lm.generate(PROMPT, 5)
    for source in ("", "|-"):  # also after options
        said = call("longmem-generate|{longmem}|--max-new-tokens|5" + source, stdin=PROMPT + "\n")
        assert said == text + "\n"
    call("longmem-inspect|{longmem}|--output|page.html", stdin=PROMPT)
    assert "<h1>standard input</h1>" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ["\r\n", "\r\n\r\n", "\n"])
def test_a_prompt_of_windows_is_continued_as_any_other(call, load, folder, ending):
    text, mark = load(memorised=False).generate(PROMPT, 5), "\ufeff"
    line = "longmem-generate|{longmem}|--max-new-tokens|5"
    assert (
        call(line, stdin=PROMPT + ending) == call(line, stdin=mark + PROMPT + ending) == text + "\n"
    )
    (folder / "windows.txt").write_bytes((mark + PROMPT + ending).encode())
    assert call(line + "|windows.txt") == text + "\n"


def test_a_document_of_windows_is_memorised_as_any_other(call, folder):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    windows = "\ufeff" + DOCUMENTS["a"].replace("\n", "\r\n")
    (folder / "a.txt").write_bytes(windows.encode())
    call("longmem-memorize|{longmem}|a.txt|--output|windows")
    assert (folder / "m").read_bytes() == (folder / "windows").read_bytes()


def test_several_prompts(call, load):
    lm = load(memorised=False)
    texts = [lm.generate(prompt, 5) for prompt in (PROMPT, "Ann")]
    line = f"longmem-generate|{{longmem}}|--max-new-tokens|5|--prompt|{PROMPT}|--prompt|Ann"
    assert call(line) == "".join(f"==> --prompt <==\n{text}\n" for text in texts)
    assert [json.loads(said) for said in call(line + "|--json").splitlines()] == [
        {"name": "--prompt", "prompt": prompt, "continuation": text}
        for prompt, text in zip((PROMPT, "Ann"), texts, strict=True)
    ]


def test_options_of_the_generation_arrive(call, load):
    lm = load(memorised=False)
    line = f"longmem-generate|{{longmem}}|--prompt|{PROMPT}|--max-new-tokens|9"
    drawn = lm.generate(PROMPT, 9, temperature=0.7, top_k=5, top_p=0.9, seed=3)
    options = "|--temperature|0.7|--top-k|5|--top-p|0.9|--seed|3"
    assert call(line + options) == drawn + "\n" != call(line)
    assert call(line + "|--beam|3") == lm.generate(PROMPT, 9, beam=3) + "\n"
    stop = lm.generate(PROMPT, 9)[4:7]
    assert call(f"{line}|--stop|{stop}|--stop|nothing") == lm.generate(PROMPT, 9, stop=stop) + "\n"


def test_options_of_the_model_arrive(call, models):
    lm = LongMem.from_pretrained(models["longmem"], k=2, memory_size=64, dtype="bfloat16")
    lm.memorize(DOCUMENTS["a"])
    options = "|--k|2|--memory-size|64|--compute-dtype|bfloat16"
    call("longmem-memorize|{longmem}|a.txt|--output|m" + options)
    said = call(f"longmem-generate|{{longmem}}|--prompt|{PROMPT}|--memory|m" + options)
    assert said == lm.generate(PROMPT) + "\n"


def test_the_window_may_be_another(call, models, caplog):
    """Which a prompt that does not fit in it is told of, where there is no memory."""
    lm = LongMem.from_pretrained(models["backbone"], tokens_per_sample=64)
    prompt = " ".join([PROMPT] * 4)
    line = f"longmem-generate|{{backbone}}|--max-new-tokens|5|--prompt|{prompt}"
    length = num_tokens(lm, prompt) + 1
    assert call(line + "|--tokens-per-sample|64") == lm.generate(prompt, 5) + "\n"
    assert 16 < length <= 64 and "the window" not in caplog.text
    call(line)
    unread = next(n for n in range(0, length, 8) if length - n <= 16)
    assert f"tokens and the window 16: the first {unread} are not read" in caplog.text


def test_a_text_is_inspected_from_its_start(call, load, folder):
    lm = load(memorised=False)
    said = call(
        "longmem-inspect|{longmem}|a.txt|--max-tokens|40|--per-head|1|--output|page.html|--json"
    )
    text = lm.tokenizer.decode(lm.tokenizer.indices(DOCUMENTS["a"])[:40])
    gain = lm.score(text).log_probs - lm.score(text, memory=False).log_probs
    result = json.loads(said)
    assert result == {
        "page": "page.html",
        "tokens": 40,
        "gain": pytest.approx(float(gain.mean()), abs=1e-6),
    }


@pytest.mark.parametrize("program", COMMANDS)
def test_help_has_an_example_that_is_understood(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as exited:
        COMMANDS[program].main()
    assert exited.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (example,) = (line for line in lines if f"{program} runs/" in line)
    arguments = example[example.index(program) :].replace("'", "").split()
    monkeypatch.setattr(sys, "argv", arguments)
    reached = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(COMMANDS[program], "read_texts", reached)
    with pytest.raises(InterruptedError):
        COMMANDS[program].main()


def test_the_distribution_installs_the_commands_and_the_page(root):
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(root / "setup.py"))
    scripts = setup.call_args.kwargs["entry_points"]["console_scripts"]
    targets = dict(script.split(" = ") for script in scripts)
    others = {"longmem-convert": convert, "longmem-prepare": prepare}
    others |= {"longmem-serve": serve, "longmem-lm-eval": lm_eval}
    expected = {**COMMANDS, **others}
    assert set(targets) == set(expected)
    for program, target in targets.items():
        module, function = target.split(":")
        module = importlib.import_module(module)
        assert module is expected[program] and callable(getattr(module, function))
    for package, names in setup.call_args.kwargs["package_data"].items():
        folder = root / package.replace(".", "/")
        assert all((folder / name).is_file() for name in names)


@pytest.mark.parametrize("program", ["longmem-generate", "longmem-inspect"])
def test_memory_of_another_backbone_is_refused(call, capsys, program):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    output = "|--output|p" if program != "longmem-generate" else ""
    with pytest.raises(SystemExit) as exited:
        call(f"{program}|{{other_longmem}}|a.txt|--memory|m{output}")
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"{program}: error: m holds keys of the backbone ")
