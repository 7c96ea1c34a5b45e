"""Several processes train as one does at equal global batch, evaluate as one, and resume one another.

Streams on any number of ranks, without processes: ``test_elastic_streams.py``.
"""

import json
import re
import shutil

import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.dataclass.configs import DatasetConfig, DistributedTrainingConfig, FairseqConfig
from fairseq_cli import eval_lm
from omegaconf import OmegaConf
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from longmem_fairseq.fairseq_patches import processes, rank_evaluation
from longmem_fairseq.memory import MemoryBank
from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.models.memtrm import MemTRMConfig
from longmem_fairseq.tasks import config
from tests.helpers.ranks import run_ranks
from tests.helpers.training_runs import COMMON, SGD, TRAINING, fit, longmem, memory_files, named

UPDATES = 28  # into the second epoch
STOP = 13  # of 23 in the first

# fairseq's iterator asks for it everywhere
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


def arguments_of(runs):
    # every rank draws its own dropout, and Adam makes much of gradients that are next to nothing
    return f"{runs}/data1 {longmem(runs)} {SGD} --lr 3 --dropout 0"


def num_tokens(runs):
    documents = MMapIndexedDataset(f"{runs}/data1/train")
    return int(documents.sizes.sum())


@pytest.fixture(scope="module")
def one(root, runs, tmp_path_factory):
    """A run of one process with four streams, interrupted, and the last checkpoint of all of it."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        fit(monkeypatch, arguments_of(runs), folder / "part", STOP)
        shutil.copytree(folder / "part", folder / "whole")
        return folder / "part", fit(monkeypatch, arguments_of(runs), folder / "whole", UPDATES)


@pytest.fixture
def fit_ranks(root, runs, tmp_path):
    """Trains on several ranks; returns the last checkpoint, and the loss after every update."""

    def fit(ranks, batch_size, save_dir, updates):
        command = f"fairseq-train {TRAINING} --disable-validation {arguments_of(runs)}"
        command += f" --save-dir {save_dir} --max-update {updates} --batch-size {batch_size}"
        printed = run_ranks(command, ranks, root, tmp_path / "logs")
        logged = [json.loads(line) for line in re.findall(r"train_inner\W+(\{.*)", printed)]
        losses = {int(line["num_updates"]): line["loss"] for line in logged}
        return torch.load(save_dir / "checkpoint_last.pt"), losses

    return fit


def assert_close_runs(actual, expected):
    """Parameters, sums over the last epoch, and the place in it; sums in other orders differ."""
    assert_close(actual["model"], expected["model"], rtol=1e-4, atol=1e-5)
    sums, places = [], []
    for state in (actual, expected):
        extra = state["extra_state"]
        meters = {key: meter for _, key, _, meter in extra["metrics"]["train"]}
        sums += [float(meters["loss"]["sum"]), meters["loss"]["count"]]
        places.append([extra["train_iterator"][key] for key in ("epoch", "iterations_in_epoch")])
    assert sums[:2] == pytest.approx(sums[2:], rel=1e-6)
    assert places[0] == places[1]


def test_ranks_train_as_one_process_with_as_many_streams(fit_ranks, one, tmp_path):
    """Also where a rank has run out of documents and another has not: the last updates of an epoch."""
    actual, losses = fit_ranks(4, 1, tmp_path / "ranks", UPDATES)
    assert list(losses) == list(range(1, UPDATES + 1))
    assert_close_runs(actual, one[1])
    weight = "decoder.layers.0.fc2.weight"
    started = torch.load(one[0] / "checkpoint_last.pt")["model"][weight]
    assert (actual["model"][weight] - started).abs().max() > 0.01  # it learns


def test_other_ranks_with_as_many_streams_go_on_as_before(fit_ranks, fit_here, runs, one, tmp_path):
    """One process, then two, then one: as one all along."""
    part = shutil.copytree(one[0], tmp_path / "part")
    two, losses = fit_ranks(2, 2, part, STOP + 4)
    assert list(losses) == list(range(STOP + 1, STOP + 5))
    assert len(named(part / "checkpoint_last.pt")) == 2
    assert two["extra_state"]["train_iterator"]["earlier_streams"] == []
    assert_close_runs(fit_here(arguments_of(runs), part, UPDATES), one[1])


def test_other_numbers_of_streams_finish_the_epoch(fit_ranks, fit_here, runs, one, tmp_path):
    """One process with four streams, then two with three each, then one with three."""
    part = shutil.copytree(one[0], tmp_path / "part")
    six, _ = fit_ranks(2, 3, part, STOP + 3)
    assert six["extra_state"]["train_iterator"]["earlier_streams"] == [(4, STOP)]
    banks = [MemoryBank.load(str(part / name)) for name in named(part / "checkpoint_last.pt")]
    assert [bank.layout.num_streams for bank in banks] == [3, 3]
    last = fit_here(f"{arguments_of(runs)} --batch-size 3 --max-epoch 1", part, UPDATES)
    meters = {key: meter for _, key, _, meter in last["extra_state"]["metrics"]["train"]}
    # all tokens of the epoch, each once
    expected = num_tokens(runs)
    assert meters["loss"]["count"] == expected
    assert last["extra_state"]["train_iterator"]["epoch"] == 2
    assert memory_files(part)  # of the checkpoints that are kept


def test_a_memory_for_all_streams_is_not_divided(fit_here, fit_ranks, runs, tmp_path):
    arguments = f"{arguments_of(runs)} --memory-scope batch"
    fit_here(arguments, tmp_path / "run", 5)
    with pytest.raises(ValueError) as raised:
        fit_here(f"{arguments} --batch-size 3", tmp_path / "run", 8)
    assert str(raised.value) == (
        "--memory-scope batch: the streams of a rank share a memory, which cannot be divided among "
        "others: go back to --distributed-world-size 1 and the --batch-size of before, or go on with "
        "an empty memory (--no-save-memory)"
    )


def test_ranks_evaluate_as_one_process(root, runs, one, monkeypatch, caplog, tmp_path):
    """The documents of all ranks; neither rank's own perplexity, nor the mean of the two."""
    command = f"fairseq-eval-lm {runs}/data1 {COMMON} --path {one[0]}/checkpoint_last.pt"
    command += " --gen-subset train --batch-size 1"
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", command.split())
    results = []
    original = eval_lm.eval_lm
    monkeypatch.setattr(eval_lm, "eval_lm", lambda **o: results.append(original(**o)) or results[0])
    eval_lm.cli_main()
    printed = run_ranks(command, 2, root, tmp_path / "logs")
    (line,) = re.findall("2 processes evaluated (.*)", printed)
    tokens, loss, perplexity = re.search(
        r"([\d,]+) tokens.*2\) (\S+), perplexity (\S+)", line
    ).groups()
    assert int(tokens.replace(",", "")) == num_tokens(runs)
    assert float(loss) == pytest.approx(float(results[0]["loss"]), rel=1e-6)
    assert float(perplexity) == pytest.approx(float(results[0]["perplexity"]), rel=1e-6)


def test_what_is_of_one_rank_is_refused_on_several():
    for name in ("post_process", "output_word_probs", "output_word_stats"):
        with pytest.raises(ValueError) as raised:
            rank_evaluation.eval_lm_of_ranks([], None, [], None, **{name: True})
        option = "--" + name.replace("_", "-")
        assert str(raised.value) == f"{option} does not go with several processes: use one"


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_every_parameter_has_a_gradient_from_the_first_update_on(build, config):
    """That of the gate is zero while its memory is empty, or DistributedDataParallel, in which fairseq
    wraps models on GPUs, would wait for it, and optimizers count its updates otherwise."""
    assert not DistributedTrainingConfig().find_unused_parameters
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(build(config, perturb=True).train())
        (name,) = [name for name, _ in model.named_parameters() if "memory_bias" in name]
        gate, gradients = model.get_parameter(name), []
        for tokens in (8, 8, 0):  # the last is the batch of a rank that has run out
            model.zero_grad(set_to_none=True)
            segment = torch.randint(4, 60, (1, tokens))
            model(src_tokens=segment, new_document=torch.tensor([not gradients]))[
                0
            ].sum().backward()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            assert all(parameter.grad is not None for parameter in trained)
            gradients.append(bool(gate.grad.abs().sum() > 0))
        assert gradients == [False, True, False]
    finally:
        torch.distributed.destroy_process_group()


def test_shards_of_shards_are_refused():
    """fairseq-eval-lm would read the same documents in every process."""
    for option in ({"num_shards": 2}, {"shard_id": 1}):
        cfg = FairseqConfig(dataset=DatasetConfig(**option))
        with pytest.raises(ValueError, match=r"--shard-id \(\d\) do not go with several processes"):
            processes.distributed_main(0, eval_lm.main, cfg, {})


@pytest.mark.parametrize("option", ["--ddp-backend fully_sharded", "--bf16", "--tpu"])
def test_what_is_not_supported_is_refused_before_anything_else(fit_here, runs, tmp_path, option):
    with pytest.raises(ValueError, match=f"{option.split()[0]}.* is not supported"):
        fit_here(f"{arguments_of(runs)} {option}", tmp_path, 2)


UNSUPPORTED = {
    "--ddp-backend (slowmo) is not supported: choose pytorch_ddp, or on a CPU legacy_ddp; "
    "--zero-sharding os shards the optimizer's state": "distributed_training.ddp_backend=slowmo",
    "--pipeline-model-parallel is not supported: every process holds the whole "
    "model": "distributed_training.pipeline_model_parallel=true",
    "--zero-sharding (os) needs fairscale: pip install "
    "fairscale": "distributed_training.zero_sharding=os",
    "--use-bmuf is not supported: leave it out": "optimization.use_bmuf=true",
    "--write-checkpoints-asynchronously is not supported: leave it "
    "out": "checkpoint.write_checkpoints_asynchronously=true",
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(monkeypatch, message):
    monkeypatch.setattr(config, "find_spec", lambda package: None)  # whether it is here or not
    cfg = OmegaConf.structured(FairseqConfig)
    config.check_command(cfg)
    cfg.merge_with_dotlist([UNSUPPORTED[message]])
    with pytest.raises(ValueError) as raised:
        config.check_command(cfg)
    assert str(raised.value) == message


def test_an_epoch_goes_on_with_another_update_frequency(fit_here, runs, tmp_path):
    """23 batches, of which 5 or 22 were read: neither is a multiple of 4."""
    for stop in (5, 22):
        arguments = f"{arguments_of(runs)} --max-epoch 1"
        fit_here(arguments, tmp_path / str(stop), stop)
        last = fit_here(f"{arguments} --update-freq 4", tmp_path / str(stop), UPDATES)
        meters = {key: meter for _, key, _, meter in last["extra_state"]["metrics"]["train"]}
        assert meters["loss"]["count"] == num_tokens(runs)
        assert last["extra_state"]["train_iterator"]["epoch"] == 2
        assert last["optimizer_history"][-1]["num_updates"] == stop + -(-(23 - stop) // 4)
