"""Bad input to our scripts: they print one line and exit with 2.

It names the value and the option to change. Nothing that is given as a checkpoint is executed.
"""

import sys

import pytest

import convert_longmem_checkpoint
import evaluate
import parity
import prepare_corpus
from longmem_fairseq.cli import run
from tests.bad_inputs import EXECUTES

SCRIPTS = {
    "evaluate.py": evaluate.main,
    "convert_longmem_checkpoint.py": convert_longmem_checkpoint.main,
    "parity.py": parity.main,
    "prepare_corpus.py": prepare_corpus.main,
}
EVALUATE = "--name m --tokens-per-sample 8 --batch-size 2"
CONVERT = "--dict {data}/dict.txt --dest {scratch}/converted"
# (script, arguments, message)
SCRIPT_CASES = {
    "missing checkpoint": (
        "evaluate.py",
        "{data} --path {missing} " + EVALUATE,
        "Model file not found: {missing}",
    ),
    "corrupt checkpoint": (
        "evaluate.py",
        "{data} --path {corrupt} " + EVALUATE,
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "malicious checkpoint": (
        "evaluate.py",
        "{data} --path {malicious} " + EVALUATE,
        "{malicious}: " + EXECUTES,
    ),
    "malicious backbone": (
        "evaluate.py",
        "{data} --path {longmem} --pretrained-model-path {malicious} " + EVALUATE,
        "{malicious}: " + EXECUTES,
    ),
    "missing backbone": (
        "evaluate.py",
        "{data} --path {longmem} --pretrained-model-path {missing} " + EVALUATE,
        "--pretrained-model-path ({missing}): no such file",
    ),
    "k": (
        "evaluate.py",
        "{data} --path {longmem} --k 5 " + EVALUATE,
        "--k (5) must be a multiple of --chunk-size (2)",
    ),
    "memory size": (
        "evaluate.py",
        "{data} --path {longmem} --memory-size 6 " + EVALUATE,
        "--memory-size (6) must be at least one segment, --tokens-per-sample (8); 0 for no memory",
    ),
    "no memory to control": (
        "evaluate.py",
        "{data} --path {backbone} --memory empty " + EVALUATE,
        "--memory empty needs a model with a memory bank",
    ),
    "another dictionary": (
        "evaluate.py",
        "{other} --path {backbone} " + EVALUATE,
        "the checkpoint was trained with another dictionary than {other}/dict.txt: prepare the data "
        "with the checkpoint's dictionary and tokenizer",
    ),
    "empty data folder": (
        "evaluate.py",
        "{empty} --path {longmem} " + EVALUATE,
        "{empty}/dict.txt: no such file; make the data folder with preprocess/prepare_corpus.py",
    ),
    "no documents": (
        "evaluate.py",
        "{nothing} --path {longmem} " + EVALUATE,
        "{nothing}/test.idx holds no documents: prepare the corpus again",
    ),
    "convert: missing checkpoint": (
        "convert_longmem_checkpoint.py",
        "--backbone {missing} " + CONVERT,
        "{missing}: no such checkpoint",
    ),
    "convert: corrupt checkpoint": (
        "convert_longmem_checkpoint.py",
        "--backbone {corrupt} " + CONVERT,
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "convert: malicious checkpoint": (
        "convert_longmem_checkpoint.py",
        "--backbone {malicious} " + CONVERT,
        "{malicious}: " + EXECUTES,
    ),
    "convert: ours already": (
        "convert_longmem_checkpoint.py",
        "--backbone {backbone} " + CONVERT,
        "{backbone} is not in the released layout, an argparse Namespace as `args` and a state dict "
        "as `model`: is it converted already?",
    ),
    "convert: missing dictionary": (
        "convert_longmem_checkpoint.py",
        "--backbone {released} --dict {missing} --dest {scratch}/converted",
        "--dict ({missing}): no such file",
    ),
    "convert: larger dictionary": (
        "convert_longmem_checkpoint.py",
        "--backbone {released} " + CONVERT,
        "--dict ({data}/dict.txt) has 16 symbols, more than the 5 rows of the backbone's embedding: "
        "give the dictionary it was trained with",
    ),
    "convert: used folder": (
        "convert_longmem_checkpoint.py",
        "--backbone {released} --dict {data}/dict.txt --dest {data}",
        "--dest ({data}) is not empty: give a new or empty folder",
    ),
    "parity: no fixture": (
        "parity.py",
        "{empty}",
        "{empty}/expected.pt: no such checkpoint",
    ),
    "prepare: empty folder": (
        "prepare_corpus.py",
        "--source {empty} --dest {scratch}/prepared",
        "--source ({empty}) holds no documents: expected .txt, .jsonl or .jsonl.zst files",
    ),
}


@pytest.mark.parametrize("case", SCRIPT_CASES)
def test_scripts_print_one_line_and_exit_with_2(case, bad_inputs, monkeypatch, capsys):
    program, arguments, message = SCRIPT_CASES[case]
    monkeypatch.setattr(sys, "argv", [program, *arguments.format(**bad_inputs).split()])
    with pytest.raises(SystemExit) as exited:
        run(SCRIPTS[program])
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{program}: error: {message.format(**bad_inputs)}\n"
    assert not bad_inputs["executed"].exists()
    assert not bad_inputs["scratch"].exists()
