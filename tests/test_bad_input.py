"""Bad input: every mistake gets its one line, which names the value and the option to change.

fairseq's own commands raise it; our scripts print it and exit with 2. Nothing that is given as a
checkpoint is executed.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm, train

import convert_longmem_checkpoint
import evaluate
import parity
import prepare_corpus
from longmem_fairseq.cli import run
from longmem_fairseq.models.checkpoints import fingerprint
from tests.malicious import Malicious

WORDS = 12  # and four special symbols
DOCUMENTS = [[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2], [9, 8, 7, 2]]
COMMANDS = {"fairseq-train": train.cli_main, "fairseq-eval-lm": eval_lm.cli_main}
SCRIPTS = {
    "evaluate.py": evaluate.main,
    "convert_longmem_checkpoint.py": convert_longmem_checkpoint.main,
    "parity.py": parity.main,
    "prepare_corpus.py": prepare_corpus.main,
}
TRAIN = (
    "--task longmem_language_modeling --criterion longmem_cross_entropy --tokens-per-sample 8 "
    "--batch-size 2 --optimizer adam --lr 0.001 --max-update 1 --log-format none"
)
BACKBONE = "--arch longmem_backbone --embed-dim 16 --num-layers 2 --num-attention-heads 2"
MEMORY = "--memory-size 16 --chunk-size 2 --k 4 --retrieval-layer-index 1"
LONGMEM = f"--arch longmem {MEMORY}"
EVALUATE = "--name m --tokens-per-sample 8 --batch-size 2"
EVAL_LM = "--task longmem_language_modeling --tokens-per-sample 8 --batch-size 2"
EXECUTES = (
    "refused, it would execute code when loaded (its pickle names objects other than tensors and "
    "plain containers)"
)
RELEASED = "one of the released LongMem goes through preprocess/convert_longmem_checkpoint.py first"

# (command, arguments, error, message); {name} is a path of the fixture `made`
FAIRSEQ_CASES = {
    "no backbone": (
        "fairseq-train",
        "{data} " + LONGMEM,
        ValueError,
        "--pretrained-model-path is missing: give the backbone's checkpoint",
    ),
    "missing backbone": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {missing}",
        FileNotFoundError,
        "--pretrained-model-path ({missing}): no such file",
    ),
    "another model as backbone": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {longmem}",
        ValueError,
        "--pretrained-model-path ({longmem}) holds a model of architecture longmem, expected "
        "longmem_backbone; a released LongMem checkpoint goes through "
        "preprocess/convert_longmem_checkpoint.py first",
    ),
    "released checkpoint as backbone": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {released}",
        ValueError,
        "{released} is not a checkpoint that can be read here ('newgpt-small' is unknown or "
        "missing); " + RELEASED,
    ),
    "another dictionary": (
        "fairseq-train",
        "{other} " + LONGMEM + " --pretrained-model-path {backbone}",
        ValueError,
        "--pretrained-model-path ({backbone}) was trained with another dictionary (16 symbols) than "
        "the data's dict.txt (16 symbols): prepare the data with the backbone's dictionary and "
        "tokenizer",
    ),
    "k": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --k 5",
        ValueError,
        "--k (5) must be a multiple of --chunk-size (2)",
    ),
    "retrieval layer": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --retrieval-layer-index 2",
        ValueError,
        "--retrieval-layer-index (2) must be between 0 and 1: the backbone has 2 layers",
    ),
    "negative retrieval layer": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --retrieval-layer-index -1",
        ValueError,
        "--retrieval-layer-index (-1) must be between 0 and 1: the backbone has 2 layers",
    ),
    "memory size": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --memory-size 6",
        ValueError,
        "--memory-size (6) must be at least one segment, --tokens-per-sample (8); 0 for no memory",
    ),
    "memory index": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --memory-index IVF2,Flat",
        ValueError,
        "--memory-index (IVF2,Flat) needs 78 chunks to be trained, but --memory-size holds 8: make it "
        "larger, or the index coarser",
    ),
    "memory index parameters": (
        "fairseq-train",
        "{data} --arch memtrm "
        + MEMORY
        + " --pretrained-model-path {backbone} --memory-index HNSW4 "
        "--memory-index-parameters nprobe=4",
        ValueError,
        "--memory-index-parameters (nprobe=4) do not fit --memory-index HNSW4, for which nprobe=32 "
        "(IVF) or efSearch=64 (HNSW) are known",
    ),
    "memory folder": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --memory-storage disk "
        "--memory-dir {missing}",
        ValueError,
        "--memory-storage disk: cannot make a file of 2,048 bytes in {missing} (No such file or "
        "directory); choose another --memory-dir or a smaller --memory-size",
    ),
    "reduction factor": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {backbone} --layer-reduction-factor 3",
        ValueError,
        "--layer-reduction-factor (3) must divide the backbone's 2 layers",
    ),
    "empty data folder": (
        "fairseq-train",
        "{empty} " + BACKBONE,
        FileNotFoundError,
        "{empty}/dict.txt: no such file; make the data folder with preprocess/prepare_corpus.py",
    ),
    "no split": (
        "fairseq-train",
        "{undivided} " + BACKBONE,
        FileNotFoundError,
        "{undivided}/valid.idx: no such file; make the data folder with "
        "preprocess/prepare_corpus.py",
    ),
    "no documents": (
        "fairseq-train",
        "{nothing} " + BACKBONE,
        ValueError,
        "{nothing}/valid.idx holds no documents: prepare the corpus again",
    ),
    "corrupt backbone": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {corrupt}",
        ValueError,
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "malicious backbone": (
        "fairseq-train",
        "{data} " + LONGMEM + " --pretrained-model-path {malicious}",
        ValueError,
        "{malicious}: " + EXECUTES,
    ),
    "malicious checkpoint to go on from": (
        "fairseq-train",
        "{data} " + BACKBONE + " --restore-file {malicious}",
        ValueError,
        "{malicious}: " + EXECUTES,
    ),
    "evaluate: k": (
        "fairseq-eval-lm",
        "{data} --path {longmem} --k 5",
        ValueError,
        "--k (5) must be a multiple of --chunk-size (2)",
    ),
    "evaluate: memory index": (
        "fairseq-eval-lm",
        "{data} --path {longmem} --memory-index ivf",
        ValueError,
        "--memory-index (ivf) is neither torch nor flat nor an index that faiss can make for 8 "
        "dimensions, such as IVF1024,Flat",
    ),
    "evaluate: memory folder": (
        "fairseq-eval-lm",
        "{data} --path {longmem} --memory-storage disk --memory-dir {missing} --memory-dtype int8",
        ValueError,
        "--memory-storage disk: cannot make a file of 512 bytes in {missing} (No such file or "
        "directory); choose another --memory-dir or a smaller --memory-size",
    ),
    "evaluate: missing backbone": (
        "fairseq-eval-lm",
        "{data} --path {longmem} --pretrained-model-path {missing}",
        FileNotFoundError,
        "--pretrained-model-path ({missing}): no such file",
    ),
    "evaluate: another backbone": (
        "fairseq-eval-lm",
        "{data} --path {longmem} --pretrained-model-path {changed}",
        ValueError,
        "this SideNet was trained with the backbone {name}, not with {changed_name}: "
        "give its own backbone as --pretrained-model-path",
    ),
    "evaluate: another dictionary": (
        "fairseq-eval-lm",
        "{other} --path {backbone}",
        ValueError,
        "the checkpoint was trained with another dictionary than {other}/dict.txt: prepare the data "
        "with the checkpoint's dictionary and tokenizer",
    ),
    "evaluate: no documents": (
        "fairseq-eval-lm",
        "{nothing} --path {backbone}",
        ValueError,
        "{nothing}/test.idx holds no documents: prepare the corpus again",
    ),
    "evaluate: corrupt checkpoint": (
        "fairseq-eval-lm",
        "{data} --path {corrupt}",
        ValueError,
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "evaluate: malicious checkpoint": (
        "fairseq-eval-lm",
        "{data} --path {malicious}",
        ValueError,
        "{malicious}: " + EXECUTES,
    ),
}

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


def call(monkeypatch, program: str, arguments: str, root: Path) -> None:
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


@pytest.fixture(scope="module")
def made(tmp_path_factory, root):
    """Data folders and checkpoints, good and bad, by name."""
    base = tmp_path_factory.mktemp("bad_input")
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
            call(monkeypatch, "fairseq-train", arguments, root)
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


@pytest.mark.parametrize("case", FAIRSEQ_CASES)
def test_fairseq_commands_raise_one_line(case, made, root, monkeypatch, tmp_path):
    program, arguments, error, message = FAIRSEQ_CASES[case]
    if program == "fairseq-train":
        arguments += f" --save-dir {tmp_path / 'run'}"
    with pytest.raises(error) as raised:
        call(monkeypatch, program, arguments.format(**made), root)
    assert type(raised.value) is error
    assert str(raised.value) == message.format(**made)
    assert not made["executed"].exists()


@pytest.mark.parametrize("case", SCRIPT_CASES)
def test_scripts_print_one_line_and_exit_with_2(case, made, monkeypatch, capsys):
    program, arguments, message = SCRIPT_CASES[case]
    monkeypatch.setattr(sys, "argv", [program, *arguments.format(**made).split()])
    with pytest.raises(SystemExit) as exited:
        run(SCRIPTS[program])
    assert exited.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{program}: error: {message.format(**made)}\n"
    assert not made["executed"].exists()
    assert not made["scratch"].exists()
