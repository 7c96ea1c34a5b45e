"""fairseq-interactive and fairseq-generate on our models: what LongMem.generate says."""

import os
import re
import subprocess
import sys

import pytest
import torch
from fairseq_cli import eval_lm, generate, train

from longmem_fairseq import LongMem
from longmem_fairseq.tokenizers import FairseqBPE
from longmem_fairseq.tokenizers.fairseq_bpe import FairseqBPEConfig
from tests.helpers.bad_inputs import LONGMEM
from tests.helpers.corpora import ODD_TEXTS
from tests.helpers.model_folders import WINDOW, story

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

COMMON = f"--task longmem_language_modeling --tokens-per-sample {WINDOW} --cpu --num-workers 0"
SEARCH = "--bpe longmem_tokenizer --beam 1 --max-len-a 1 --max-len-b 24"
COMMANDS = {"fairseq-generate": generate, "fairseq-eval-lm": eval_lm, "fairseq-train": train}


@pytest.fixture
def memory(models, tmp_path):
    """A memory file of the longmem."""
    lm = LongMem.from_pretrained(models["longmem"])
    lm.memorize(story(40, seed=1))
    lm.save_memory(tmp_path / "memory")
    return tmp_path / "memory"


@pytest.fixture
def call(models, monkeypatch, root):
    """A command of fairseq in this process."""

    def run(program, arguments, **paths):
        arguments = arguments.format(**models, **paths)
        command = f"{program} {arguments} --user-dir {root / 'longmem_fairseq'} {COMMON}"
        monkeypatch.setattr(sys, "argv", command.split())
        COMMANDS[program].cli_main()

    return run


def said(output):
    """Number of the prompt -> prompt and continuation."""
    return {int(n): text for n, text in re.findall(r"(?ms)^D-(\d+)\t\S+\t(.*?)\nP-\1\t", output)}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_the_bpe_is_lossless_in_symbols_of_the_dictionary(models, text):
    bpe = FairseqBPE(FairseqBPEConfig(data=str(models["longmem"])))
    symbols = bpe.encode(text)
    dictionary = bpe.tokenizer.dictionary
    ids = dictionary.encode_line(symbols, add_if_not_exist=False, append_eos=False).tolist()
    assert ids == bpe.tokenizer.indices(text).tolist() and dictionary.unk() not in ids
    assert dictionary.string(torch.tensor(ids)) == symbols
    assert bpe.decode(symbols) == text


def test_interactive_continues_what_is_piped_to_it(models, memory, root):
    """Prompts shorter and longer than the window, side by side, and an empty line."""
    prompts = [" ".join(story(words, seed=words).split()) for words in (3, 7, 40)]
    folder = models["longmem"]
    arguments = (
        f"{folder} --path {folder}/checkpoint_last.pt --user-dir longmem_fairseq {COMMON} {SEARCH} "
        f"--memory {memory} --buffer-size 9 --batch-size 2"
    )
    done = subprocess.run(
        [sys.executable, "-m", "fairseq_cli.interactive", *arguments.split()],
        input="\n".join([*prompts, ""]),
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lm = LongMem.from_pretrained(folder)
    lm.load_memory(memory)
    continued = said(done.stdout)
    assert len(continued) == 3
    for number, prompt in enumerate(prompts):
        expected = lm.generate(prompt, 24)
        # a batch goes on until its longest prompt has its new tokens
        assert continued[number].startswith(prompt + expected)
        if number == 2:
            assert continued[number] == prompt + expected


@pytest.mark.parametrize("memorized", [False, True])
def test_generate_continues_the_first_tokens_of_documents(
    models, memory, call, capsys, memorized, tmp_path
):
    data = models["longmem"].parent / "data"
    option = f"--memory {memory}" if memorized else ""
    call(
        "fairseq-generate",
        f"{{data}} --gen-subset test --prefix-size 20 --path {{longmem}}/checkpoint_last.pt {option} "
        + SEARCH,
        data=data,
    )
    output = capsys.readouterr().out
    lm = LongMem.from_pretrained(models["longmem"])
    if memorized:
        lm.load_memory(memory)
    tokens = lm.tokenizer.indices(story(4000)[:400])
    prompt = lm.tokenizer.decode(tokens[:20])
    assert said(output) == {0: prompt + lm.generate(prompt, 24)}
    target = re.search(r"(?ms)^T-0\t(.*?)\nH-0\t", output)[1]
    assert target == lm.tokenizer.decode(tokens[: 20 + WINDOW])


MODEL = "--path {longmem}/checkpoint_last.pt "
BAD = {
    "no prefix size": (
        "fairseq-generate",
        "{data} --gen-subset test --batch-size 1 " + MODEL + SEARCH,
        ValueError,
        "--prefix-size is missing: how many tokens of each document to continue",
    ),
    "a memory but no prefix size": (
        "fairseq-generate",
        "{data} --gen-subset test --batch-size 1 --memory {memory} " + MODEL + SEARCH,
        ValueError,
        "--memory ({memory}) is for fairseq-interactive, and for fairseq-generate with --prefix-size: "
        "leave it out",
    ),
    "evaluation with a memory": (
        "fairseq-eval-lm",
        "{data} --gen-subset test --batch-size 1 --memory {memory} " + MODEL,
        ValueError,
        "--memory ({memory}) is for fairseq-interactive, and for fairseq-generate with --prefix-size: "
        "leave it out",
    ),
    "training with a memory": (
        "fairseq-train",
        "{data} --memory {memory} --criterion longmem_cross_entropy --batch-size 1 --optimizer adam "
        "--save-dir {data}/none --disable-validation --pretrained-model-path "
        "{backbone}/checkpoint_last.pt " + LONGMEM + " --memory-size 16",
        ValueError,
        "--memory ({memory}) is for fairseq-interactive, and for fairseq-generate with --prefix-size: "
        "leave it out",
    ),
    "a model without memory": (
        "fairseq-generate",
        "{data} --gen-subset test --prefix-size 4 --memory {memory} "
        "--path {backbone}/checkpoint_last.pt " + SEARCH,
        ValueError,
        "--memory ({memory}) needs a model with a memory",
    ),
    "a memory of another backbone": (
        "fairseq-generate",
        "{data} --gen-subset test --prefix-size 4 --memory {memory} "
        "--path {other_longmem}/checkpoint_last.pt " + SEARCH,
        ValueError,
        "{memory} holds keys of the backbone ",
    ),
    "no such memory": (
        "fairseq-generate",
        "{data} --gen-subset test --prefix-size 4 --memory {data}/none " + MODEL + SEARCH,
        FileNotFoundError,
        "{data}/none: no such memory file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, models, memory, call):
    program, arguments, kind, message = BAD[case]
    paths = {"data": models["longmem"].parent / "data", "memory": memory}
    with pytest.raises(kind) as error:
        call(program, arguments, **paths)
    assert str(error.value).startswith(message.format(**paths)) and "\n" not in str(error.value)


def test_a_memtrm_takes_its_own_memory_alone(models, call, tmp_path):
    arguments = "{data} --gen-subset test --prefix-size 4 --memory {memory} "
    arguments += "--path {memtrm}/checkpoint_last.pt " + SEARCH
    for kind in ("memtrm", "other_memtrm"):
        lm = LongMem.from_pretrained(models[kind])
        lm.memorize(story(40, seed=1))
        lm.save_memory(tmp_path / kind)
    data = models["longmem"].parent / "data"
    call("fairseq-generate", arguments, data=data, memory=tmp_path / "memtrm")
    with pytest.raises(ValueError, match="other_memtrm holds keys of the backbone "):
        call("fairseq-generate", arguments, data=data, memory=tmp_path / "other_memtrm")


def test_constraints_are_refused(task):
    sample = {"net_input": {"src_tokens": torch.zeros(1, 1)}}
    with pytest.raises(ValueError) as error:
        task.inference_step(None, [], sample, constraints=torch.zeros(1))
    assert str(error.value) == "--constraints do not go with this task: leave them out"
