"""longmem-memorize, longmem-generate and longmem-inspect: files in, text or JSON out; bad input is in
test_bad_input.py."""

import importlib
import json
import runpy
import sys
from unittest import mock

import pytest

from longmem_fairseq import LongMem
from longmem_fairseq.commands import (
    convert,
    lm_eval,
    prepare,
    serve,
)
from tests.helpers.commands import COMMANDS, PROMPT, num_tokens
from tests.helpers.model_folders import DOCUMENTS


def test_a_memory_of_files_serves_the_other_commands(call, load, folder):
    lm = load()
    said = call("longmem-memorize|{longmem}|[ab].txt|--output|m")
    tokens = num_tokens(lm, *DOCUMENTS.values())
    assert said == (
        f"m: read 2 documents of {tokens} tokens; the memory holds {tokens + 2} tokens, beginnings "
        "included, of at most 128\n"
    )
    text, empty = lm.generate(PROMPT, 12), load(memorized=False).generate(PROMPT, 12)
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
    assert f"Memorized before: 2 documents; {tokens + 2} tokens held." in page


def test_standard_input_is_a_text(call, load, folder):
    call("longmem-memorize|{longmem}|--output|m", stdin=DOCUMENTS["a"])
    lm = load(memorized=False)
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
    text, mark = load(memorized=False).generate(PROMPT, 5), "\ufeff"
    line = "longmem-generate|{longmem}|--max-new-tokens|5"
    assert (
        call(line, stdin=PROMPT + ending) == call(line, stdin=mark + PROMPT + ending) == text + "\n"
    )
    (folder / "windows.txt").write_bytes((mark + PROMPT + ending).encode())
    assert call(line + "|windows.txt") == text + "\n"


def test_several_prompts(call, load):
    lm = load(memorized=False)
    texts = [lm.generate(prompt, 5) for prompt in (PROMPT, "Ann")]
    line = f"longmem-generate|{{longmem}}|--max-new-tokens|5|--prompt|{PROMPT}|--prompt|Ann"
    assert call(line) == "".join(f"==> --prompt <==\n{text}\n" for text in texts)
    assert [json.loads(said) for said in call(line + "|--json").splitlines()] == [
        {"name": "--prompt", "prompt": prompt, "continuation": text}
        for prompt, text in zip((PROMPT, "Ann"), texts, strict=True)
    ]


def test_options_of_the_generation_arrive(call, load):
    lm = load(memorized=False)
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
    """A warning tells of a prompt that does not fit in it, where there is no memory."""
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
    lm = load(memorized=False)
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
