"""Bad input of fairseq's commands: every mistake gets its one line, with the value and the option
to change."""

import pytest

# name: (command, the last line that it prints); {name} is a path of the fixture `bad_inputs` or one of
# the words of tests/helpers/bad_inputs.py
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
    "evaluate: memory distance": (
        "fairseq-eval-lm {data} --path {longmem} --memory-distance 512",
        "ValueError: --memory-distance (512) must be 0, or positive with a backbone of rotary "
        "positions (this one's are alibi)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line(name, check_bad_input):
    check_bad_input(*CASES[name])
