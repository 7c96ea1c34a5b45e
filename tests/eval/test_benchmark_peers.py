"""eval/benchmark_peers.py: both compute the same, and every mode has a ratio."""

import json
from argparse import Namespace

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("transformers", reason="needs the extra peers")

from eval import benchmark_peers  # noqa: E402
from eval.common import hardware, peers, timed_model  # noqa: E402
from longmem_fairseq.commands.convert import main as convert_checkpoint  # noqa: E402
from longmem_fairseq.tokenizers import CheckpointIds  # noqa: E402
from longmem_fairseq.utils import cli  # noqa: E402
from tests.helpers.hf_models import make_model  # noqa: E402

CPU = torch.device("cpu")
SIZES = (
    "--batch-size 2 --tokens-per-sample 32 --memory-size 64 --k 8 --prompt-tokens 20 --new-tokens 3 "
    "--repeats 2"
).split()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random llama as transformers saves it, and converted."""
    folder = tmp_path_factory.mktemp("llama")
    make_model("llama", folder / "hf")
    options = ["--tokens-per-sample", "32", "--no-tokenizer"]
    convert_checkpoint(["--model", str(folder / "hf"), "--dest", str(folder / "own"), *options])
    return folder / "hf", folder / "own"


@pytest.fixture
def call(folders, monkeypatch):
    """Runs the benchmark, with more options."""
    original, converted = folders

    def run(*more):
        arguments = ["--model", str(converted), "--original", str(original), *SIZES, *more]
        monkeypatch.setattr("sys.argv", ["benchmark_peers.py", *arguments])
        monkeypatch.setattr(hardware, "matmul_rate", lambda *unused: 1e11)  # takes seconds
        cli.run(benchmark_peers.main)

    return run


def test_a_ratio_for_every_mode(call, tmp_path):
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    call("--json", str(report), "--plot", str(plot))
    report = json.loads(report.read_text())
    lines = [line for line in report["results"] if line["peer"] == "transformers"]
    assert [line["mode"] for line in lines] == list(benchmark_peers.MODES)
    for line in lines:
        assert 0 < line["ratio_min"] <= line["ratio"] <= line["ratio_max"]
    assert [check["name"] for check in report["checks"]] == [
        "logits float32",
        "loss float32",
        "generation float32",
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")


@torch.no_grad()
def test_both_have_the_same_weights(folders):
    original, converted = folders
    args = Namespace(model=converted, preset=None, tokens_per_sample=32, device=CPU)
    backbone = timed_model.build_backbone(args, "float32")
    theirs = peers.transformers_model(original, "float32", CPU)
    ids = CheckpointIds.load(converted, backbone.dictionary)
    tokens = torch.randint(4, len(backbone.dictionary), (2, 9))
    known = torch.from_numpy(ids.to_dictionary).long()
    found = backbone.read(tokens).logits[..., known]
    expected = theirs(torch.from_numpy(ids.to_checkpoint).long()[tokens]).logits
    special = list(ids.specials.values())  # some that the model does not have are never predicted
    others = [i for i in range(ids.num_ids) if i not in special]
    assert_close(found[..., others], expected[..., others], atol=1e-4, rtol=1e-4)


def test_a_training_step_changes_as_many_parameters(folders):
    model = peers.transformers_model(folders[0], "float32", CPU)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    args = Namespace(prompts=1, prompt_tokens=4, new_tokens=1)
    peers.transformers_steps(args, model, torch.randint(3, 60, (2, 9)), block + 1)
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in model.model.layers]
    assert trained == [False, False, True, True]
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--original", "nowhere"], "--original (nowhere): no such file or folder"),
        (["--model", "nowhere"], "nowhere"),
        (["--mode", "poetry"], "poetry must be one of logits, loss, training, generation"),
    ],
)
def test_bad_options_are_one_line(call, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        call(*more)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark_peers.py: error: ") and message in line
