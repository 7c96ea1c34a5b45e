"""longmem-memorize, longmem-generate and longmem-inspect: files in, text or JSON out, one line for
bad input."""

import importlib
import io
import json
import runpy
import sys
from unittest import mock

import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.cli import run
from longmem_fairseq.commands import generate, inspector, memorize
from tests.model_folders import DOCUMENTS, story

COMMANDS = {
    "longmem-memorize": memorize,
    "longmem-generate": generate,
    "longmem-inspect": inspector,
}
PROMPT = " ".join(story(5, seed=3).split())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory: two documents, a prompt, and files that are no text."""
    monkeypatch.chdir(tmp_path)
    for name, text in DOCUMENTS.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.bin").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
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
        f"m: read 2 documents of {tokens} tokens; the memory holds {tokens + 2} tokens of at most 128\n"
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


def test_memorising_goes_on_with_what_was_saved(call, load):
    assert call("longmem-memorize|{longmem}|a.txt|--output|m").startswith("m: read 1 document of ")
    said = call("longmem-memorize|{longmem}|b.txt|--memory|m|--output|m|--json")
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
        "held": len(expected.held(0)),
        "memory_size": 128,
    }


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
    assert set(targets) == set(COMMANDS)
    for program, target in targets.items():
        module, function = target.split(":")
        module = importlib.import_module(module)
        assert module is COMMANDS[program] and callable(getattr(module, function))
    for package, names in setup.call_args.kwargs["package_data"].items():
        folder = root / package.replace(".", "/")
        assert all((folder / name).is_file() for name in names)


# --- bad input ---

EXAMPLE = "|{longmem}|prompt.txt"
BAD = {
    "longmem-memorize|{longmem}|nothing*.txt|--output|m": "nothing*.txt: no such file",
    "longmem-memorize|{longmem}|.|--output|m": ". is a folder: give its files, as ./*.txt",
    "longmem-memorize|{longmem}|binary.bin|--output|m": (
        "binary.bin is not a text in UTF-8 (byte 0x89 at offset 0)"
    ),
    "longmem-memorize|{longmem}|a.txt|--output|no/m": "--output (no/m): there is no folder ",
    "longmem-memorize|{longmem}|a.txt|--output|.": "--output (.) is a folder: give a file to write",
    "longmem-memorize|{longmem}|--output|m": "standard input: the text is empty",
    "longmem-memorize|{backbone}|a.txt|--output|m": "this model has no memory",
    "longmem-memorize|nowhere|a.txt|--output|m": "nowhere: no such model",
    "longmem-memorize|{longmem}|a.txt|--output|m|--memory-size|-8": "--memory-size (-8) must be ",
    "longmem-memorize|{longmem}|a.txt|--output|m|--memory|b.txt": "b.txt is not a memory file, or a ",
    "longmem-memorize|{longmem}|a.txt|--output|m|--k|3": "--k (3) must be a multiple of --chunk-size",
    "longmem-memorize|{longmem}|a.txt|--output|m|--device|abacus": "device (abacus) cannot be used: ",
    "longmem-generate|{longmem}|--prompt|": "--prompt: the prompt is empty",
    "longmem-generate|{longmem}": "standard input: the prompt is empty",
    "longmem-generate|{longmem}|empty.txt": "empty.txt: the prompt is empty",
    "longmem-generate|{longmem}|a.txt|--prompt|a": "--prompt and files of texts: give one of them",
    f"longmem-generate{EXAMPLE}|--memory|nothing": "nothing: no such memory file",
    f"longmem-generate{EXAMPLE}|--memory|a.txt": "a.txt is not a memory file, or a damaged one",
    "longmem-generate|{longmem}|binary.bin": "binary.bin is not a text in UTF-8",
    f"longmem-generate{EXAMPLE}|--max-new-tokens|-4": "max_new_tokens (-4) must be at least 1",
    f"longmem-generate{EXAMPLE}|--temperature|-1": "temperature (-1.0) must be at least 0",
    f"longmem-generate{EXAMPLE}|--temperature|nan": "temperature (nan) must be at least 0",
    f"longmem-generate{EXAMPLE}|--seed|{2**64}": f"seed ({2**64}) must be a number of 64 bits",
    f"longmem-generate{EXAMPLE}|--top-k|-1|--temperature|1": "top_k (-1) must be at least 0",
    f"longmem-generate{EXAMPLE}|--top-p|1.5|--temperature|1": "top_p (1.5) must be between 0 and 1",
    f"longmem-generate{EXAMPLE}|--beam|-1": "beam (-1) must be at least 1",
    f"longmem-generate{EXAMPLE}|--memory|m|--no-memory": "this model has no memory",
    f"longmem-inspect{EXAMPLE}|--output|p|--max-tokens|-4": "--max-tokens (-4) must be at least 1",
    f"longmem-inspect{EXAMPLE}|--output|p|--per-head|0": "--per-head (0) must be at least 1",
    f"longmem-inspect{EXAMPLE}|--output|no/p": "--output (no/p): there is no folder ",
    f"longmem-inspect{EXAMPLE}|--output|.": "--output (.) is a folder: give a file to write",
    "longmem-inspect|{longmem}|binary.bin|--output|p": "binary.bin is not a text in UTF-8",
    f"longmem-inspect{EXAMPLE}|--output|p|--memory|nothing": "nothing: no such memory file",
    "longmem-inspect|{longmem}|a.txt|b.txt|--output|p": "2 texts: give one to inspect",
    "longmem-inspect|{longmem}|--output|p": "the text is empty",
    "longmem-inspect|{backbone}|a.txt|--output|p": "this model has no memory",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_and_exit_code_2(call, folder, line, capsys):
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as exited:
        call(line)
    captured = capsys.readouterr()
    assert exited.value.code == 2 and captured.out == ""
    program = line.split("|")[0]
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"{program}: error: {BAD[line]}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("program", COMMANDS)
def test_memory_of_another_backbone_is_refused(call, capsys, program):
    call("longmem-memorize|{longmem}|a.txt|--output|m")
    output = "|--output|p" if program != "longmem-generate" else ""
    with pytest.raises(SystemExit) as exited:
        call(f"{program}|{{other_longmem}}|a.txt|--memory|m{output}")
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"{program}: error: m holds keys of the backbone ")
