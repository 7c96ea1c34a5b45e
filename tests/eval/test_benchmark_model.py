"""eval/benchmark_model.py: operations against PyTorch's counter, stages, goals, one small run."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eval import benchmark_model
from eval.common import hardware, necessary, timed_model, timing
from longmem_fairseq.models.backbone import LongMemBackboneConfig
from tests.helpers.benchmark_runs import assert_one_line

CPU = torch.device("cpu")
SMALL = [
    *("benchmark_model.py", "--preset", "tiny", "--tokens-per-sample", "32", "--batch-size", "2"),
    *("--memory-size", "128", "--k", "16", "--compute-dtype", "float32", "--repeats", "1"),
    *("--prompt-tokens", "20", "--new-tokens", "3"),
]


def options(monkeypatch, *more):
    monkeypatch.setattr("sys.argv", [*SMALL, *more])
    return benchmark_model.read_options()


@pytest.mark.parametrize("training", [False, True])
def test_necessary_flops_are_those_that_torch_counts(training, monkeypatch):
    args = options(monkeypatch)
    backbone = timed_model.build_backbone(args, "float32")
    model = timed_model.build_model(args, "float32", timed_model.NO_MEMORY, backbone)
    step = timed_model.make_step(args, model, "training" if training else "evaluation")
    # the attention whose products the counter knows
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step.run()
    sizes = timed_model.sizes_of(args, timed_model.NO_MEMORY)
    needed = sum(necessary.necessary_flops(sizes, training).values())
    # The counter also counts the products of queries with future keys, the other half of T x T:
    # 2 B T^2 C in each of 4 backbone and 2 SideNet layers, and twice that in backward.
    masked = 2 * 2 * 32**2 * 128 * (4 + 2 + (2 * 2 if training else 0))
    assert counter.get_total_flops() == pytest.approx(needed + masked, rel=1e-6)


def test_necessary_flops_of_memory(monkeypatch):
    sizes = timed_model.sizes_of(options(monkeypatch), timed_model.LONGMEM)
    flops = necessary.necessary_flops(sizes, training=True)
    # 64 queries of 4 heads x 32: with 32 chunks; scores and values of 16 tokens
    assert flops["search"] == 2 * 64 * 32 * 128
    assert flops[necessary.READ] == 2 * (2 * 64 * 16 * 128)
    without = necessary.necessary_flops(
        timed_model.sizes_of(options(monkeypatch), timed_model.NO_MEMORY), training=True
    )
    assert flops["backward"] - without["backward"] == flops[necessary.READ]


def test_inner_stages_do_not_count_for_the_outer_one(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    stages = timing.Stages(CPU)
    inner = stages.wrap("inner", lambda number: number + 1)
    with stages("outer"):
        assert inner(1) == 2
    assert stages.seconds == {"inner": 2.0, "outer": 5.0}


def test_calls_are_timed_in_turns():
    calls = []
    steps = {name: timing.Step(lambda name=name: calls.append(name)) for name in "a"}
    steps["b"] = timing.Step(lambda: calls.append("b"), prepare=lambda: calls.append("-"))
    seconds = timing.interleaved(steps, 2, CPU)
    assert "".join(calls) == "a-b" + "a-ba-b"
    assert [len(seconds[name]) for name in "ab"] == [2, 2]


def test_goals():
    def row(mode, dtype, speed, share, cost):
        return {
            "variant": "longmem",
            "mode": mode,
            "compute_dtype": dtype,
            "tokens_per_second": speed,
            "share": share,
            "memory_cost": cost,
        }

    results = [
        row("evaluation", "float32", 100, 0.75, 0.16),
        row("evaluation", "bfloat16", 240, 0.7, 0.1),
        row("training", "bfloat16", 90, 0.5, 0.2),
    ]
    checks = benchmark_model.goals("small", "cpu", results)
    assert [tuple(check) for check in checks] == [
        ("small evaluation float32: share", 0.75, ">= 0.75", True),
        ("small evaluation float32: memory cost", 0.16, "<= 0.15", False),
        ("small evaluation bfloat16: memory cost", 0.1, "<= 0.15", True),
        ("small training bfloat16: memory cost", 0.2, "<= 0.2", True),
        ("small evaluation: tokens/s bfloat16 / float32", 2.4, ">= 2.5", False),
    ]
    assert str(checks[1]) == "NOT MET  small evaluation float32: memory cost: 0.160 (<= 0.15)"
    on_gpu = benchmark_model.goals("gpt2_medium", "cuda", results[2:])
    assert [(check.goal, check.ok) for check in on_gpu] == [(">= 0.4", True), ("<= 0.1", False)]
    assert benchmark_model.goals("tiny", "cpu", results) == []


def test_run(tmp_path, monkeypatch, capsys):
    report, plot = tmp_path / "report.json", tmp_path / "plot.png"
    more = ["--quick", "--mode", "evaluation,training", "--json", str(report), "--plot", str(plot)]
    monkeypatch.setattr("sys.argv", [*SMALL, *more])
    monkeypatch.setattr(hardware, "matmul_rate", lambda *unused: 1e11)  # takes seconds
    benchmark_model.main()
    report = json.loads(report.read_text())
    assert set(report) == {
        *("date", "hardware", "commit", "command", "model", "sizes"),
        *("rates", "results", "breakdown", "checks"),
    }
    assert report["sizes"]["chunks"] == 32
    assert [(row["mode"], row["variant"]) for row in report["results"]] == [
        ("evaluation", "longmem"),
        ("evaluation", "longmem without memory"),
        ("evaluation", "backbone"),
        ("training", "longmem"),
        ("training", "longmem without memory"),
    ]
    assert report["rates"]["matmul_flops_per_second"] == {"float32": 1e11}
    for row in report["results"]:
        assert row["tokens_per_second"] == pytest.approx(2 * 32 / row["seconds"])
        assert row["share"] == pytest.approx(row["necessary_flops"] / row["seconds"] / 1e11)
    stages = [row["stage"] for row in report["breakdown"] if row["mode"] == "training"]
    assert stages == [
        *("backbone", "SideNet layers", "search", necessary.READ, "head", "loss", "write"),
        *("backward", "optimizer", "other"),
    ]
    assert all(row["seconds"] > 0 for row in report["breakdown"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    screen = capsys.readouterr().out
    assert "where a step of longmem goes: training, float32" in screen


def test_a_converted_model(models, tmp_path, monkeypatch):
    """Its own sizes, in all modes; the goals are those of a converted model."""
    report = tmp_path / "report.json"
    own = ["--model", str(models["backbone"]), "--prompts", "2"]
    own += ["--quick", "--mode", "evaluation,training,generation"]
    monkeypatch.setattr("sys.argv", [*SMALL, *own, "--json", str(report)])
    monkeypatch.setattr(hardware, "matmul_rate", lambda *unused: 1e11)
    benchmark_model.main()
    report = json.loads(report.read_text())
    assert report["model"] == "backbone"
    assert (report["sizes"]["layers"], report["sizes"]["embed_dim"]) == (2, 32)
    assert report["sizes"]["block_weights"] == 12 * 32**2
    generation = [row for row in report["results"] if row["mode"] == "generation"]
    assert [row["variant"] for row in generation] == list(timed_model.VARIANTS)
    for row in generation:
        assert row["tokens_per_second"] == pytest.approx(2 * 3 / row["seconds"])
    weights = 4 * (2 * 12 * 32**2 + 32 * report["sizes"]["vocabulary"])  # of the backbone
    assert generation[-1]["necessary_bytes"] == 3 * weights
    assert [check["name"] for check in report["checks"]] == [
        "backbone evaluation float32: speed / backbone's",
        "backbone training float32: share",
        "backbone generation float32: memory cost",
    ]
    stages = {row["stage"] for row in report["breakdown"] if row["mode"] == "generation"}
    assert {"backbone", "SideNet layers", "search", necessary.READ, "head"} < stages


def test_grouped_heads_and_a_gated_mlp_by_hand():
    cfg = LongMemBackboneConfig(
        embed_dim=576, num_attention_heads=9, num_kv_heads=3, ffn_dim=1536, gated_mlp=True
    )
    sizes = necessary.block_sizes(cfg)  # SmolLM2-135M
    assert sizes["block_weights"] == 2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536
    assert (sizes["heads_dim"], sizes["kv_dim"]) == (576, 192)


def test_a_window_is_measured_in_a_process_of_its_own(monkeypatch):
    args = options(monkeypatch, "--window-contexts", "64")
    results, rates = [], hardware.Rates({"float32": 1e9}, 1e9)
    benchmark_model.add_windows(args, "float32", results, rates)
    (row,) = results
    assert row["variant"] == "backbone, window 64"
    assert row["tokens_per_second"] == pytest.approx(64 / row["seconds"])
    # at least the parameters, at most everything there is
    assert 4 * 8000 * 128 < row["peak_bytes"] < 2**34


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model-option", "memory_sise=4"], "memory_sise"),
        (["--model-option", "memory_scope=page"], "--model-option memory_scope=page"),
        (["--model-option", "no_memory=true"], "keep the memory"),
        (["--k", "6"], "--k (6) must be a multiple of --chunk-size (4)"),
        (["--mode", "dreaming"], "argument --mode: dreaming must be one of evaluation, training"),
        (
            ["--mode", "generation", "--new-tokens", "13"],
            "--new-tokens (33 together) must not exceed",
        ),
        (["--model", "nowhere"], "nowhere): no such file"),
        (["--repeats", "0"], "argument --repeats: 0 must be a number of at least 1"),
        (["--json", "nowhere/at/all.json"], "--json (nowhere/at/all.json): there is no folder /"),
    ],
)
def test_bad_options_are_one_line(more, message, monkeypatch, capsys):
    arguments = [*SMALL, "--quick", *more]
    assert message in assert_one_line(monkeypatch, capsys, benchmark_model.main, *arguments)
