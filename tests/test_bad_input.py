"""Bad input: every mistake gets its one line, which names the value and the option to change.

The table is of commands. Others are beside what they are about: sources of documents
(test_bad_corpus.py), Hugging Face models (test_hf_bad_input.py), memory files (test_damaged_memory.py),
checkpoints (test_bad_checkpoints.py), benchmarks (test_benchmarks_*.py), the Python interface
(test_hub_bad_input.py), and files of any bytes at all (test_fuzz.py).
"""

import io
import shlex
import sys

import pytest

from eval import copying, evaluate, parity, report
from longmem_fairseq.commands import convert_released, generate, inspector, memorize, prepare
from longmem_fairseq.utils.cli import run
from tests.helpers.bad_inputs import BACKBONE, EXECUTES, LONGMEM, MEMORY, call_fairseq

PROGRAMS = {
    "evaluate.py": evaluate.main,
    "copying.py": copying.main,
    "report.py": report.main,
    "convert_longmem_checkpoint.py": convert_released.main,
    "parity.py": parity.main,
    "prepare_corpus.py": prepare.main,
    "longmem-memorize": memorize.main,
    "longmem-generate": generate.main,
    "longmem-inspect": inspector.main,
}
COMMON = {
    "LONGMEM": LONGMEM,
    "BACKBONE": BACKBONE,
    "MEMORY": MEMORY,
    "EVALUATE": "--name m --tokens-per-sample 8 --batch-size 2",
    "EXECUTES": EXECUTES,
    "RELEASED": "one of the released LongMem goes through "
    "preprocess/convert_longmem_checkpoint.py first",
}

# name: (command, the last line that it prints); {name} is of COMMON or a path of the fixture
# `bad_inputs`, {models} the folder of the fixture `models`; ... is the rest of a line
CASES = {
    "train: no backbone": (
        "fairseq-train {data} {LONGMEM}",
        "ValueError: --pretrained-model-path is missing: give the backbone's checkpoint",
    ),
    "train: half precision": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --fp16",
        "ValueError: --fp16 is not supported: leave it out, and choose the type of the matrix products "
        "with --compute-dtype",
    ),
    "train: automatic mixed precision": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --amp",
        "ValueError: --amp is not supported: leave it out, and choose the type of the matrix products "
        "with --compute-dtype",
    ),
    "train: missing backbone": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {missing}",
        "FileNotFoundError: --pretrained-model-path ({missing}): no such file",
    ),
    "train: another model as backbone": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {longmem}",
        "ValueError: --pretrained-model-path ({longmem}) holds a model of architecture longmem, "
        "expected longmem_backbone; a released LongMem checkpoint goes through "
        "preprocess/convert_longmem_checkpoint.py first",
    ),
    "train: released checkpoint as backbone": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {released}",
        "ValueError: {released} is not a checkpoint that can be read here ('newgpt-small' is "
        "unknown or missing); {RELEASED}",
    ),
    "train: another dictionary": (
        "fairseq-train {other} {LONGMEM} --pretrained-model-path {backbone}",
        "ValueError: --pretrained-model-path ({backbone}) was trained with another dictionary (16 "
        "symbols) than the data's dict.txt (16 symbols): prepare the data with the backbone's "
        "dictionary and tokenizer",
    ),
    "train: k": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --k 5",
        "ValueError: --k (5) must be a multiple of --chunk-size (2)",
    ),
    "train: retrieval layer": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --retrieval-layer-index 2",
        "ValueError: --retrieval-layer-index (2) must be between 0 and 1: the backbone has 2 layers",
    ),
    "train: negative retrieval layer": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --retrieval-layer-index -1",
        "ValueError: --retrieval-layer-index (-1) must be between 0 and 1: the backbone has 2 layers",
    ),
    "train: memory size": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --memory-size 6",
        "ValueError: --memory-size (6) must be at least one segment, --tokens-per-sample (8); 0 for"
        " no memory",
    ),
    "train: memory index": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --memory-index IVF2,Flat",
        "ValueError: --memory-index (IVF2,Flat) needs 78 chunks to be trained, but --memory-size "
        "holds 8: make it larger, or the index coarser",
    ),
    "train: memory index parameters": (
        "fairseq-train {data} --arch memtrm {MEMORY} --pretrained-model-path {backbone} "
        "--memory-index HNSW4 --memory-index-parameters nprobe=4",
        "ValueError: --memory-index-parameters (nprobe=4) do not fit --memory-index HNSW4, for "
        "which nprobe=32 (IVF) or efSearch=64 (HNSW) are known",
    ),
    "train: memory folder": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --memory-storage disk "
        "--memory-dir {missing}",
        "ValueError: --memory-storage disk: cannot make a file of 2,048 bytes in {missing} (No such"
        " file or directory); choose another --memory-dir or a smaller --memory-size",
    ),
    "train: reduction factor": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {backbone} --layer-reduction-factor 3",
        "ValueError: --layer-reduction-factor (3) must divide the backbone's 2 layers",
    ),
    "train: no layers": (
        "fairseq-train {data} {BACKBONE} --num-layers 0",
        "ValueError: --num-layers (0) must be between 1 and 1,000",
    ),
    "train: no heads": (
        "fairseq-train {data} {BACKBONE} --num-attention-heads 0",
        "ValueError: --num-attention-heads (0) must be between 1 and 1,048,576",
    ),
    "train: empty data folder": (
        "fairseq-train {empty} {BACKBONE}",
        "FileNotFoundError: {empty}/dict.txt: no such file; make the data folder with "
        "preprocess/prepare_corpus.py",
    ),
    "train: no split": (
        "fairseq-train {undivided} {BACKBONE}",
        "FileNotFoundError: {undivided}/valid.idx: no such file; make the data folder with "
        "preprocess/prepare_corpus.py",
    ),
    "train: no documents": (
        "fairseq-train {nothing} {BACKBONE}",
        "ValueError: {nothing}/valid.idx holds no documents: prepare the corpus again",
    ),
    "train: corrupt backbone": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {corrupt}",
        "ValueError: {corrupt} is not a checkpoint, or a damaged one",
    ),
    "train: malicious backbone": (
        "fairseq-train {data} {LONGMEM} --pretrained-model-path {malicious}",
        "ValueError: {malicious}: {EXECUTES}",
    ),
    "train: malicious checkpoint to go on from": (
        "fairseq-train {data} {BACKBONE} --restore-file {malicious}",
        "ValueError: {malicious}: {EXECUTES}",
    ),
    "evaluate: k": (
        "fairseq-eval-lm {data} --path {longmem} --k 5",
        "ValueError: --k (5) must be a multiple of --chunk-size (2)",
    ),
    "evaluate: memory index": (
        "fairseq-eval-lm {data} --path {longmem} --memory-index ivf",
        "ValueError: --memory-index (ivf) is neither torch nor flat nor an index that faiss can "
        "make for 8 dimensions, such as IVF1024,Flat",
    ),
    "evaluate: memory folder": (
        "fairseq-eval-lm {data} --path {longmem} --memory-storage disk --memory-dir {missing} "
        "--memory-dtype int8",
        "ValueError: --memory-storage disk: cannot make a file of 512 bytes in {missing} (No such "
        "file or directory); choose another --memory-dir or a smaller --memory-size",
    ),
    "evaluate: memory of one process": (
        "fairseq-eval-lm {data} --path {longmem} --memory-shards 4",
        "ValueError: --memory-shards (4) needs as many processes: torchrun --nproc-per-node 4 with "
        "fairseq-eval-lm, or with torch.distributed.init_process_group in Python",
    ),
    "evaluate: missing backbone": (
        "fairseq-eval-lm {data} --path {longmem} --pretrained-model-path {missing}",
        "FileNotFoundError: --pretrained-model-path ({missing}): no such file",
    ),
    "evaluate: another backbone": (
        "fairseq-eval-lm {data} --path {longmem} --pretrained-model-path {changed}",
        "ValueError: this SideNet was trained with the backbone {name}, not with {changed_name}: "
        "give its own backbone as --pretrained-model-path",
    ),
    "evaluate: another dictionary": (
        "fairseq-eval-lm {other} --path {backbone}",
        "ValueError: the checkpoint was trained with another dictionary than {other}/dict.txt: "
        "prepare the data with the checkpoint's dictionary and tokenizer",
    ),
    "evaluate: no documents": (
        "fairseq-eval-lm {nothing} --path {backbone}",
        "ValueError: {nothing}/test.idx holds no documents: prepare the corpus again",
    ),
    "evaluate: corrupt checkpoint": (
        "fairseq-eval-lm {data} --path {corrupt}",
        "ValueError: {corrupt} is not a checkpoint, or a damaged one",
    ),
    "evaluate: malicious checkpoint": (
        "fairseq-eval-lm {data} --path {malicious}",
        "ValueError: {malicious}: {EXECUTES}",
    ),
    "evaluate.py: missing checkpoint": (
        "evaluate.py {data} --path {missing} {EVALUATE}",
        "{missing}: no such checkpoint",
    ),
    "evaluate.py: corrupt checkpoint": (
        "evaluate.py {data} --path {corrupt} {EVALUATE}",
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "evaluate.py: malicious checkpoint": (
        "evaluate.py {data} --path {malicious} {EVALUATE}",
        "{malicious}: {EXECUTES}",
    ),
    "evaluate.py: malicious backbone": (
        "evaluate.py {data} --path {longmem} --pretrained-model-path {malicious} {EVALUATE}",
        "{malicious}: {EXECUTES}",
    ),
    "evaluate.py: missing backbone": (
        "evaluate.py {data} --path {longmem} --pretrained-model-path {missing} {EVALUATE}",
        "--pretrained-model-path ({missing}): no such file",
    ),
    "evaluate: memory distance": (
        "fairseq-eval-lm {data} --path {longmem} --memory-distance 512",
        "ValueError: --memory-distance (512) must be 0, or positive with a backbone of rotary "
        "positions (this one's are alibi)",
    ),
    "evaluate.py: k": (
        "evaluate.py {data} --path {longmem} --k 5 {EVALUATE}",
        "--k (5) must be a multiple of --chunk-size (2)",
    ),
    "evaluate.py: memory size": (
        "evaluate.py {data} --path {longmem} --memory-size 6 {EVALUATE}",
        "--memory-size (6) must be at least one segment, --tokens-per-sample (8); 0 for no memory",
    ),
    "evaluate.py: no tokens to retrieve": (
        "evaluate.py {data} --path {longmem} --k 0 {EVALUATE}",
        "--k (0) must be at least 1",
    ),
    "evaluate.py: no shards": (
        "evaluate.py {data} --path {longmem} --memory-shards 0 {EVALUATE}",
        "--memory-shards (0) must be at least 1",
    ),
    "evaluate.py: chunks of no memory": (
        "evaluate.py {data} --path {longmem} --memory-size 0 --k 4 {EVALUATE}",
        "--k (4) needs a model with a memory bank: leave it out",
    ),
    "evaluate.py: memory of a backbone": (
        "evaluate.py {data} --path {backbone} --memory-size 16 {EVALUATE}",
        "--memory-size (16) does not apply to a longmem_backbone model: leave it out",
    ),
    "evaluate.py: the summary as results": (
        "evaluate.py {data} --path {longmem} --results x.json {EVALUATE}",
        "--results (x.json) must not end in .json, where eval/report.py writes its summary: name it "
        ".jsonl",
    ),
    "evaluate.py: folder as results": (
        "evaluate.py {data} --path {longmem} --results . {EVALUATE}",
        "--results (.) is a folder: give a file to append lines to",
    ),
    "report: its summary": (
        "report.py x.json",
        "results (x.json) must not end in .json, where eval/report.py writes its summary: name it "
        ".jsonl",
    ),
    "report: no folder to draw to": (
        "report.py x.jsonl --plot no/x.png",
        "no/x.png: there is no folder no",
    ),
    "report: folder as plot": (
        "report.py x.jsonl --plot .",
        ". is a folder: give a file to write",
    ),
    "copying: seed": (
        "copying.py {data} --path {backbone} --seed -3",
        "--seed (-3) must be at least 0",
    ),
    "copying: window": (
        "copying.py {data} --path {backbone} --tokens-per-sample 3",
        "--tokens-per-sample (3) must be at least 4",
    ),
    "evaluate.py: no memory to control": (
        "evaluate.py {data} --path {backbone} --memory empty {EVALUATE}",
        "--memory empty needs a model with a memory bank",
    ),
    "evaluate.py: another dictionary": (
        "evaluate.py {other} --path {backbone} {EVALUATE}",
        "the checkpoint was trained with another dictionary than {other}/dict.txt: prepare the data"
        " with the checkpoint's dictionary and tokenizer",
    ),
    "evaluate.py: empty data folder": (
        "evaluate.py {empty} --path {longmem} {EVALUATE}",
        "{empty}/dict.txt: no such file; make the data folder with preprocess/prepare_corpus.py",
    ),
    "evaluate.py: no documents": (
        "evaluate.py {nothing} --path {longmem} {EVALUATE}",
        "{nothing}/test.idx holds no documents: prepare the corpus again",
    ),
    "convert: missing checkpoint": (
        "convert_longmem_checkpoint.py --backbone {missing} --dict {data}/dict.txt --dest "
        "{scratch}/converted",
        "{missing}: no such checkpoint",
    ),
    "convert: corrupt checkpoint": (
        "convert_longmem_checkpoint.py --backbone {corrupt} --dict {data}/dict.txt --dest "
        "{scratch}/converted",
        "{corrupt} is not a checkpoint, or a damaged one",
    ),
    "convert: malicious checkpoint": (
        "convert_longmem_checkpoint.py --backbone {malicious} --dict {data}/dict.txt --dest "
        "{scratch}/converted",
        "{malicious}: {EXECUTES}",
    ),
    "convert: ours already": (
        "convert_longmem_checkpoint.py --backbone {backbone} --dict {data}/dict.txt --dest "
        "{scratch}/converted",
        "{backbone} is not in the released layout, an argparse Namespace as `args` and a state dict"
        " as `model`: is it converted already?",
    ),
    "convert: missing dictionary": (
        "convert_longmem_checkpoint.py --backbone {released} --dict {missing} --dest "
        "{scratch}/converted",
        "--dict ({missing}): no such file",
    ),
    "convert: larger dictionary": (
        "convert_longmem_checkpoint.py --backbone {released} --dict {data}/dict.txt --dest "
        "{scratch}/converted",
        "--dict ({data}/dict.txt) has 16 symbols, more than the 5 rows of the backbone's embedding:"
        " give the dictionary it was trained with",
    ),
    "convert: used folder": (
        "convert_longmem_checkpoint.py --backbone {released} --dict {data}/dict.txt --dest {data}",
        "--dest ({data}) is not empty: give a new or empty folder",
    ),
    "parity: no fixture": (
        "parity.py {empty}",
        "{empty}/expected.pt: no such checkpoint",
    ),
    "prepare: empty folder": (
        "prepare_corpus.py --source {empty} --dest {scratch}/prepared",
        "--source ({empty}) holds no documents: expected .txt or .jsonl files, also .gz or .zst",
    ),
    "memorize: no file matches": (
        "longmem-memorize {models}/longmem nothing*.txt --output m",
        "nothing*.txt: no such file",
    ),
    "memorize: a folder": (
        "longmem-memorize {models}/longmem . --output m",
        ". is a folder: give its files, as ./*.txt",
    ),
    "memorize: no text": (
        "longmem-memorize {models}/longmem binary.bin --output m",
        "binary.bin is not a text in UTF-8 (byte 0x89 at offset 0)",
    ),
    "memorize: no folder to write to": (
        "longmem-memorize {models}/longmem a.txt --output no/m",
        "--output (no/m): there is no folder ...",
    ),
    "memorize: no memory": (
        "longmem-memorize {models}/backbone a.txt --output m",
        "this model has no memory: it is a backbone, or was made without one",
    ),
    "memorize: no model": (
        "longmem-memorize nowhere a.txt --output m",
        "nowhere: no such model",
    ),
    "memorize: k": (
        "longmem-memorize {models}/longmem a.txt --output m --k 3",
        "--k (3) must be a multiple of --chunk-size (2)",
    ),
    "memorize: device": (
        "longmem-memorize {models}/longmem a.txt --output m --device abacus",
        "device (abacus) cannot be used: ...",
    ),
    "generate: empty prompt": (
        'longmem-generate {models}/longmem --prompt ""',
        "--prompt: the prompt is empty",
    ),
    "generate: nothing on standard input": (
        "longmem-generate {models}/longmem",
        "standard input: the prompt is empty",
    ),
    "generate: empty file": (
        "longmem-generate {models}/longmem empty.txt",
        "empty.txt: the prompt is empty",
    ),
    "generate: prompt twice": (
        "longmem-generate {models}/longmem a.txt --prompt a",
        "--prompt and files of texts: give one of them",
    ),
    "generate: no memory file": (
        "longmem-generate {models}/longmem prompt.txt --memory nothing",
        "nothing: no such memory file",
    ),
    "generate: memory file that is none": (
        "longmem-generate {models}/longmem prompt.txt --memory a.txt",
        "a.txt is not a memory file, or a damaged one ...",
    ),
    "generate: no text": (
        "longmem-generate {models}/longmem binary.bin",
        "binary.bin is not a text in UTF-8 (byte 0x89 at offset 0)",
    ),
    "generate: length": (
        "longmem-generate {models}/longmem prompt.txt --max-new-tokens -4",
        "--max-new-tokens (-4) must be at least 1",
    ),
    "generate: temperature": (
        "longmem-generate {models}/longmem prompt.txt --temperature -1",
        "--temperature (-1.0) must be 0, or finite and at least 0.001",
    ),
    "generate: top-k": (
        "longmem-generate {models}/longmem prompt.txt --top-k -1 --temperature 1",
        "--top-k (-1) must be at least 0",
    ),
    "generate: top-p": (
        "longmem-generate {models}/longmem prompt.txt --top-p 1.5 --temperature 1",
        "--top-p (1.5) must be between 0 and 1",
    ),
    "generate: beam": (
        "longmem-generate {models}/longmem prompt.txt --beam -1",
        "--beam (-1) must be at least 1",
    ),
    "generate: memory and no memory": (
        "longmem-generate {models}/longmem prompt.txt --memory m --no-memory",
        "this model has no memory: it is a backbone, or was made without one",
    ),
    "inspect: length": (
        "longmem-inspect {models}/longmem prompt.txt --output p --max-tokens -4",
        "--max-tokens (-4) must be at least 1",
    ),
    "inspect: passages": (
        "longmem-inspect {models}/longmem prompt.txt --output p --per-head 0",
        "--per-head (0) must be at least 1",
    ),
    "inspect: no folder": (
        "longmem-inspect {models}/longmem prompt.txt --output no/p",
        "--output (no/p): there is no folder ...",
    ),
    "inspect: folder as output": (
        "longmem-inspect {models}/longmem prompt.txt --output .",
        "--output (.) is a folder: give a file to write",
    ),
    "generate: temperature that is no number": (
        "longmem-generate {models}/longmem prompt.txt --temperature nan",
        "--temperature (nan) must be 0, or finite and at least 0.001",
    ),
    "generate: temperature next to nothing": (
        "longmem-generate {models}/longmem prompt.txt --temperature 1e-45",
        "--temperature (1e-45) must be 0, or finite and at least 0.001",
    ),
    "generate: temperature without end": (
        "longmem-generate {models}/longmem prompt.txt --temperature inf",
        "--temperature (inf) must be 0, or finite and at least 0.001",
    ),
    "generate: what to draw from, and no draws": (
        "longmem-generate {models}/longmem prompt.txt --top-k 3",
        "--top-k and --top-p say what is drawn from: give a --temperature above 0 too",
    ),
    "generate: prompt that is no text": (
        "longmem-generate {models}/longmem --prompt caf\udce9",
        "--prompt is not a text in UTF-8 (byte 0xE9 at offset 3)",
    ),
    "generate: stop that is no text": (
        "longmem-generate {models}/longmem prompt.txt --stop \udce9",
        "--stop is not a text in UTF-8 (byte 0xE9 at offset 0)",
    ),
    "generate: map of no memory": (
        "longmem-generate {models}/longmem prompt.txt --memory-map",
        "--memory-map needs --memory, the file that is to be mapped",
    ),
    "generate: device without numbers": (
        "longmem-generate {models}/longmem prompt.txt --device meta",
        "device (meta) cannot be used: expected cpu, cuda, cuda:1, ...",
    ),
    "generate: seed": (
        "longmem-generate {models}/longmem prompt.txt --seed 18446744073709551616",
        "--seed (18446744073709551616) must be a number of 64 bits",
    ),
    "memorize: folder as output": (
        "longmem-memorize {models}/longmem a.txt --output .",
        "--output (.) is a folder: give a file to write",
    ),
    "inspect: two texts": (
        "longmem-inspect {models}/longmem a.txt b.txt --output p",
        "2 texts: give one to inspect, the others to longmem-memorize",
    ),
    "inspect: no text": (
        "longmem-inspect {models}/longmem --output p",
        "the text is empty",
    ),
    "inspect: no memory": (
        "longmem-inspect {models}/backbone a.txt --output p",
        "this model has no memory: it is a backbone, or was made without one",
    ),
}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "a a"), ("b", "b b"), ("prompt", "a"), ("empty", "\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "binary.bin").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return tmp_path


def last_line(command, bad_inputs, root, monkeypatch, capsys):
    """Of fairseq's commands, that of the traceback; ours print no other, and exit with 2."""
    program, *arguments = shlex.split(command)
    if program.startswith("fairseq-"):
        if program == "fairseq-train":
            arguments += ["--save-dir", str(bad_inputs["data"].parent / "run")]
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            call_fairseq(monkeypatch, program, shlex.join(arguments), root)
        return f"{raised.type.__name__}: {raised.value}"
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    capsys.readouterr()  # what fixtures printed
    with pytest.raises(SystemExit) as exited:
        run(PROGRAMS[program])
    captured = capsys.readouterr()
    assert exited.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith(f"{program}: error: ")
    return captured.err.removeprefix(f"{program}: error: ").removesuffix("\n")


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, texts, bad_inputs, root, monkeypatch, capsys, request):
    command, expected = CASES[name]
    paths = {**bad_inputs, **COMMON}
    if "{models}" in command:
        paths["models"] = request.getfixturevalue("models")["longmem"].parent
    command, expected = command.format(**paths), expected.format(**paths)
    before = sorted(texts.iterdir())
    line = last_line(command, bad_inputs, root, monkeypatch, capsys)
    if expected.endswith("..."):
        line = line[: len(expected) - 3] + "..."
    assert line == expected
    assert not bad_inputs["executed"].exists() and not bad_inputs["scratch"].exists()
    assert sorted(texts.iterdir()) == before


def test_the_table_is_long_enough():
    assert len({command for command, _ in CASES.values()}) == len(CASES) >= 60
