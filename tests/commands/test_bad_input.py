"""Bad input of our commands: every mistake gets its one line, which names the value and the option to
change.

Other bad input is beside its subject: fairseq's commands (test_bad_training_input.py), evaluation
(test_bad_evaluation_input.py), sources of documents (test_bad_corpus.py), Hugging Face models
(test_hf_bad_input.py), memory files (test_damaged_memory.py), checkpoints (test_bad_checkpoints.py),
the Python interface (test_hub_bad_input.py), and files of any bytes at all (test_fuzz.py).
"""

import pytest

from longmem_fairseq.commands import convert_released, generate, inspector, memorize, prepare

PROGRAMS = {
    "convert_longmem_checkpoint.py": convert_released.main,
    "prepare_corpus.py": prepare.main,
    "longmem-memorize": memorize.main,
    "longmem-generate": generate.main,
    "longmem-inspect": inspector.main,
}
# name: (command, the line that it prints); {name} is a path of the fixture `bad_inputs` or one of the
# words of tests/helpers/bad_inputs.py, {models} the folder of the fixture `models`; ... is any rest
CASES = {
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
    "memorize: words for a SideNet": (
        "longmem-memorize {models}/longmem a.txt --output m --words-only",
        "--words-only is for a backbone without a SideNet, which would read keys and values that are "
        "not there",
    ),
    "memorize: k": (
        "longmem-memorize {models}/longmem a.txt --output m --k 3",
        "--k (3) must be a multiple of --chunk-size (2)",
    ),
    "memorize: device": (
        "longmem-memorize {models}/longmem a.txt --output m --device abacus",
        "--device (abacus) cannot be used: ...",
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
        "--device (meta) cannot be used: expected cpu, cuda, cuda:1, ...",
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


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, check_bad_input):
    check_bad_input(*CASES[name], PROGRAMS)
