"""Bad input of the scripts of eval/: every mistake gets its one line, which names the value and the
option to change. Those of benchmarks are in test_benchmarks_*.py."""

import pytest

from eval import copying, evaluate, parity, report

PROGRAMS = {
    "evaluate.py": evaluate.main,
    "copying.py": copying.main,
    "report.py": report.main,
    "parity.py": parity.main,
}
# name: (command, the line that it prints); {name} is a path of the fixture `bad_inputs` or one of the
# words of tests/helpers/bad_inputs.py
CASES = {
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
        "--plot (no/x.png): there is no folder ...",
    ),
    "report: folder as plot": (
        "report.py x.jsonl --plot .",
        "--plot (.) is a folder: give a file to write",
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
    "parity: no fixture": (
        "parity.py {empty}",
        "{empty}/expected.pt: no such checkpoint",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, check_bad_input):
    check_bad_input(*CASES[name], PROGRAMS)
