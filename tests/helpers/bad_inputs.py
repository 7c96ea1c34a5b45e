"""Data folders and checkpoints, good and bad, and the one line that a command prints for a bad one.

The fixtures ``bad_inputs`` and ``check_bad_input`` of conftest.py make and use them.
"""

import io
import os
import shlex
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm, train

from longmem_fairseq.models.checkpoints import fingerprint
from longmem_fairseq.utils.cli import run
from tests.helpers.malicious import Malicious

WORDS = 12  # and four special symbols
DOCUMENTS = [[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2], [9, 8, 7, 2]]
COMMANDS = {"fairseq-train": train.cli_main, "fairseq-eval-lm": eval_lm.cli_main}
TRAIN = (
    "--task longmem_language_modeling --criterion longmem_cross_entropy --tokens-per-sample 8 "
    "--batch-size 2 --optimizer adam --lr 0.001 --max-update 1 --log-format none"
)
BACKBONE = "--arch longmem_backbone --embed-dim 16 --num-layers 2 --num-attention-heads 2"
MEMORY = "--memory-size 16 --chunk-size 2 --k 4 --retrieval-layer-index 1"
LONGMEM = f"--arch longmem {MEMORY}"
EVAL_LM = "--task longmem_language_modeling --tokens-per-sample 8 --batch-size 2"
# the error about the checkpoint `malicious`
EXECUTES = (
    "refused, it would execute code when loaded (its pickle names objects other than tensors and "
    "plain containers)"
)
WORDS_OF_CASES = {
    "LONGMEM": LONGMEM,
    "BACKBONE": BACKBONE,
    "MEMORY": MEMORY,
    "EVALUATE": "--name m --tokens-per-sample 8 --batch-size 2",
    "EXECUTES": EXECUTES,
    "RELEASED": "one of the released LongMem goes through "
    "preprocess/convert_longmem_checkpoint.py first",
}


def write_data(folder: Path, documents, splits=("train", "valid", "test"), letter="w") -> Path:
    folder.mkdir()
    dictionary = Dictionary()
    for i in range(WORDS):
        dictionary.add_symbol(f"{letter}{i}")
    dictionary.save(str(folder / "dict.txt"))
    for split in splits:
        builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"))
        for document in documents:
            builder.add_item(torch.tensor(document))
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


def call_fairseq(monkeypatch, program: str, arguments: str, root: Path) -> None:
    """One of fairseq's commands, in this process."""
    options = TRAIN if program == "fairseq-train" else EVAL_LM
    common = f"--user-dir {root / 'longmem_fairseq'} --cpu --num-workers 0 {options}"
    # a case's own arguments come last: the last of two wins
    monkeypatch.setattr(sys, "argv", [program, *common.split(), *arguments.split()])
    COMMANDS[program]()


def name_of(backbone: Path) -> str:
    """The beginning of a backbone's fingerprint."""
    model = torch.load(backbone)["model"]
    weights = {name.removeprefix("decoder."): tensor for name, tensor in model.items()}
    return fingerprint(weights).numpy().tobytes().hex()[:16]


def make(base: Path, root: Path) -> dict:
    """Everything in the folder *base*, by name."""
    names = "empty missing corrupt malicious executed released changed scratch"
    made = {name: base / name for name in names.split()}
    made["data"] = write_data(base / "data", DOCUMENTS)
    made["other"] = write_data(base / "other", DOCUMENTS, letter="v")
    made["nothing"] = write_data(base / "nothing", [])
    made["undivided"] = write_data(base / "undivided", [], splits=())
    made["empty"].mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, options in (
            ("backbone", BACKBONE),
            ("longmem", LONGMEM + " --pretrained-model-path {backbone}"),
        ):
            arguments = f"{{data}} {options} --save-dir {base / name}".format(**made)
            call_fairseq(monkeypatch, "fairseq-train", arguments, root)
            made[name] = base / name / "checkpoint_last.pt"
    state = torch.load(made["backbone"])
    state["model"]["decoder.layer_norm.bias"] += 1
    torch.save(state, made["changed"])
    made.update(name=name_of(made["backbone"]), changed_name=name_of(made["changed"]))
    whole = made["backbone"].read_bytes()
    made["corrupt"].write_bytes(whole[: len(whole) // 2])
    torch.save({**state, "model": Malicious(os.mkdir, str(made["executed"]))}, made["malicious"])
    # as much of the released layout as is looked at before the dictionary
    options = Namespace(arch="newgpt-small", embed_dim=4, num_layers=1, num_attention_heads=1)
    weights = {"decoder.model.transformer.wte.weight": torch.zeros(5, 4)}
    history = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    state = {"args": options, "model": weights, "optimizer_history": history, "extra_state": {}}
    torch.save(state, made["released"])
    return made


def write_texts(folder: Path) -> None:
    """The working directory of a command."""
    for name, text in (("a", "a a"), ("b", "b b"), ("prompt", "a"), ("empty", "\n")):
        (folder / f"{name}.txt").write_text(text)
    (folder / "binary.bin").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")


def last_line(command: str, programs: dict, paths: dict, root: Path, monkeypatch, capsys) -> str:
    """Of fairseq's commands, that of the traceback; ours print no other, and exit with 2."""
    program, *arguments = shlex.split(command)
    if program in COMMANDS:
        if program == "fairseq-train":
            arguments += ["--save-dir", str(paths["data"].parent / "run")]
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            call_fairseq(monkeypatch, program, shlex.join(arguments), root)
        is_missing = issubclass(raised.type, FileNotFoundError)  # or a subclass of our own
        return f"{'FileNotFoundError' if is_missing else 'ValueError'}: {raised.value}"
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    capsys.readouterr()  # of fixtures
    with pytest.raises(SystemExit) as exited:
        run(programs[program])
    captured = capsys.readouterr()
    assert exited.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"{program}: error: ")
    return captured.err.removeprefix(f"{program}: error: ").removesuffix("\n")
