"""From text to perplexities with fairseq's own commands: prepare, pre-train, adapt, evaluate."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from tqdm import tqdm

from eval.common.documents import Documents, group_documents, load_documents
from eval.common.stream_scoring import load_model, perplexity, score_group

pytestmark = [
    pytest.mark.slow,
    # fairseq's iterator asks for it everywhere
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
]

SEGMENT = 32
STREAMS = ["--task", "longmem_language_modeling", "--tokens-per-sample", str(SEGMENT)]
TRAINING = [
    *STREAMS,
    *("--criterion", "longmem_cross_entropy", "--batch-size", "4", "--stream-span", "8"),
    *("--optimizer", "adam", "--lr", "1e-3", "--clip-norm", "1", "--max-update", "2"),
    *("--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints", "--seed", "1"),
]
SIZES = ["--embed-dim", "32", "--num-layers", "2", "--num-attention-heads", "4"]
MEMORY = ["--retrieval-layer-index", "1", "--memory-size", "256", "--k", "16"]


@pytest.fixture(scope="module")
def call(root):
    """Runs a program of this checkout; returns all it printed, and fails with it."""

    def run(*command):
        env = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(
            command,
            cwd=root,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def data(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    call(
        *("-m", "preprocess.make_recall_corpus"),
        *("--dest", folder / "text", "--train-documents", 6, "--train-words", 400),
        *("--valid-documents", 2, "--test-documents", 3, "--test-words", 300),
    )
    call(
        *("-m", "preprocess.prepare_corpus"),
        *("--source", folder / "text", "--dest", folder / "data", "--vocab-size", 400),
    )
    return folder / "data"


@pytest.fixture(scope="module")
def trained(call, data, root, tmp_path_factory):
    """Name -> (checkpoint, what training logged as JSON)."""
    runs = tmp_path_factory.mktemp("runs")
    models = {}

    def train(name, arch, *options):
        output = call(
            *("-m", "fairseq_cli.train", data, "--user-dir", "longmem_fairseq", "--cpu"),
            *("--arch", arch, "--save-dir", runs / name, *TRAINING, *options),
            *("--tensorboard-logdir", runs / name / "tensorboard"),
        )
        lines = [line[line.index("{") :] for line in output.splitlines() if ' | {"' in line]
        models[name] = runs / name / "checkpoint_last.pt", [json.loads(line) for line in lines]

    train("backbone", "longmem_backbone", *SIZES)
    # a relative path, as scripts give it
    backbone = ["--pretrained-model-path", os.path.relpath(models["backbone"][0], root)]
    train("longmem", "longmem", *backbone, *MEMORY)
    train("memtrm", "memtrm", *backbone, *MEMORY)
    return models


def evaluate(call, data, path, batch_size, *options):
    """Tokens and perplexity as fairseq-eval-lm reports them, and its exact loss (base 2)."""
    output = call(
        *("-m", "fairseq_cli.eval_lm", data, "--user-dir", "longmem_fairseq", "--cpu"),
        *(*STREAMS, "--path", path, "--batch-size", batch_size, "--gen-subset", "test"),
        *options,
    )
    tokens = int(re.search(r"Evaluated ([\d,]+) tokens", output)[1].replace(",", ""))
    loss, ppl = re.search(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", output).groups()
    return tokens, float(loss), float(ppl)


def test_training_logs_what_the_memory_does(trained):
    for name in ("backbone", "longmem", "memtrm"):
        updates = [line for line in trained[name][1] if "loss" in line and "num_updates" in line]
        assert [int(line["num_updates"]) for line in updates] == [1, 2], name
        for line in updates:
            assert 0 < float(line["loss"]) < 2 * math.log2(400)
            assert ("gate" in line) == (name != "backbone")
        valid = [line for line in trained[name][1] if "valid_loss" in line]
        assert len(valid) == 1
        if name == "backbone":
            continue
        # the bank is empty in the first update; in the second it holds the first's four segments
        assert [float(line["memory_tokens"]) for line in updates] == [0, SEGMENT]
        assert float(updates[0]["gate"]) == 0.5
        assert float(updates[1]["retrieval_ms"]) > 0
        for metric in ("valid_gate", "valid_memory_tokens", "valid_retrieval_ms"):
            assert float(valid[0][metric]) > 0


def test_the_optimizer_and_the_checkpoint_hold_the_sidenet_alone(trained):
    state = torch.load(trained["longmem"][0])
    layer = 2 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 32 + 4 * 32 + 32
    sidenet = layer + 4 + 2 * 32  # 2 backbone layers make one; gate; final norm
    assert sum(t.numel() for t in state["model"].values()) == sidenet + 32  # fingerprint
    moments = [
        value.numel()
        for parameter in state["last_optimizer_state"]["state"].values()
        for name, value in parameter.items()
        if name == "exp_avg"
    ]
    assert sum(moments) == sidenet
    assert state["cfg"]["model"]["pretrained_model_path"] == str(trained["backbone"][0])


def score_split(model, task, batch_size):
    """The scores of every document of the test split, by number."""
    documents, descriptions = load_documents(task, "test")
    bar = tqdm(disable=True)
    return {
        number: scores
        for group in group_documents(documents.sizes, batch_size)
        for number, scores in score_group(
            model, task, Documents(documents, group), descriptions, bar
        )
    }


def test_eval_lm_does_not_depend_on_the_batch_size(call, data, trained):
    manifest = json.loads((data / "manifest.json").read_text())
    path = trained["longmem"][0]
    one = evaluate(call, data, path, 1)
    four = evaluate(call, data, path, 4)  # more streams than documents
    assert one[0] == four[0] == manifest["splits"]["test"]["tokens"]
    assert one[1] == pytest.approx(four[1], abs=1.01e-3)  # printed with three digits
    assert one[2] == pytest.approx(four[2], abs=1.01e-2)  # and two


@pytest.mark.parametrize("name", ["backbone", "longmem", "memtrm"])
def test_scores_do_not_depend_on_the_batch_size(data, trained, name):
    """The same in this process, to all digits, and against a plain loop over the documents."""
    perplexities = []
    for batch_size in (1, 4):
        model, task = load_model(str(trained[name][0]), str(data), SEGMENT)
        scores = score_split(model, task, batch_size)
        documents = task.dataset("test")
        assert sorted(scores) == list(range(len(documents)))
        for number, document in scores.items():
            assert document.tokens.tolist() == documents[number].tolist()
        nll = sum(float(document.nll.sum()) for document in scores.values())
        perplexities.append(math.exp(nll / int(documents.sizes.sum())))
    assert perplexities[0] == pytest.approx(perplexities[1], abs=1e-4)
    model, task = load_model(str(trained[name][0]), str(data), SEGMENT)
    nll = 0.0
    for document in documents:
        document = document.long()
        source = torch.cat([torch.tensor([task.dictionary.eos()]), document[:-1]])
        for start in range(0, len(document), SEGMENT):
            segment = source[start : start + SEGMENT].unsqueeze(0)
            with torch.no_grad():
                logits, _ = model(segment, new_document=torch.tensor([start == 0]))
            target = document[start : start + SEGMENT, None]
            nll -= logits[0].log_softmax(-1).gather(1, target).sum().item()
    expected = math.exp(nll / int(documents.sizes.sum()))
    assert expected == pytest.approx(perplexities[0], abs=1e-4)


def test_eval_lm_overrides_the_memory(call, data, trained):
    """--memory-size of one segment and --no-memory read the same tokens, with other results."""
    path = trained["longmem"][0]
    tokens, loss, _ = evaluate(call, data, path, 4, "--no-memory")
    model, task = load_model(str(path), str(data), SEGMENT, no_memory=True)
    nll = sum(float(document.nll.sum()) for document in score_split(model, task, 4).values())
    assert model.decoder.memory is None
    assert math.log2(perplexity(nll, tokens)) == pytest.approx(loss, abs=1e-3)
    small, _ = load_model(str(path), str(data), SEGMENT, memory_size=SEGMENT)
    assert small.decoder.memory.options["memory_size"] == SEGMENT


def test_tensorboard_shows_the_memory(trained):
    folder = trained["longmem"][0].parent / "tensorboard"
    events = b"".join(path.read_bytes() for path in folder.rglob("*tfevents*"))
    for name in (b"loss", b"ppl", b"gate", b"memory_tokens", b"retrieval_ms"):
        assert name in events


def test_checkpoints_say_what_evaluation_needs(trained):
    longmem, memtrm = (
        torch.load(trained[name][0], weights_only=True)["cfg"]["model"]
        for name in ("longmem", "memtrm")
    )
    # found from any working directory
    assert longmem["pretrained_model_path"] == str(trained["backbone"][0])
    # MemTRM has the backbone's sizes, not its own defaults
    assert [memtrm[name] for name in ("embed_dim", "num_layers", "num_attention_heads")] == [
        32,
        2,
        4,
    ]
