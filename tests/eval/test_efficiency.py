"""eval/efficiency.py: what is measured, the lines, resume, and bad input."""

import pytest
import torch

from eval import efficiency
from eval.common import model_speed
from tests.helpers.benchmark_runs import assert_one_line, call, lines

TINY = ("--preset", "tiny", "--compute-dtype", "float32", "--device", "cpu")


@pytest.fixture
def alone(monkeypatch):
    """Stands for the measurement in a process of its own; notes what it is asked for."""
    calls = []

    def measure(options, dtype, mode, variant, repeats):
        calls.append(variant)
        assert (options.batch_size, dtype, mode, repeats) == (1, "float32", "evaluation", 2)
        if (variant, options.tokens_per_sample) == ("backbone", 1024):
            raise RuntimeError("out of memory\nat length")
        return 0.5, options.memory_size * 10**6

    monkeypatch.setattr(model_speed, "alone", measure)
    return calls


def test_a_line_for_every_context_and_model(alone, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    arguments = [*TINY, "--repeats", 2, "--results", results, "--contexts"]
    call(monkeypatch, efficiency.main, "efficiency.py", *arguments, "512")
    first = lines(results)
    assert [
        (line["name"], line["setting"]["context"], line["tokens_per_second"], line["peak_bytes"])
        for line in first
    ] == [("backbone", 512, 1024, 256_000_000), ("longmem", 512, 512, 256_000_000)]
    assert first[1]["setting"] == {"context": 512, "preset": "tiny", "chunk_size": 4, "k": 64}
    assert first[1]["compute_dtype"] == "float32" and "torch" in first[1]["hardware"]
    # goes on with those that are left; one that does not fit is no line
    capsys.readouterr()
    call(monkeypatch, efficiency.main, "efficiency.py", *arguments, "512,1024")
    assert alone == ["backbone", "longmem"] * 2
    assert capsys.readouterr().out.splitlines() == [
        "backbone, context 512: 1,024 tokens/s, peak 0.256 GB",
        "longmem, context 512: 512 tokens/s, peak 0.256 GB",
        "backbone, context 1,024: not measured: out of memory",
        "longmem, context 1,024: 512 tokens/s, peak 0.768 GB",
    ]
    *before, last = lines(results)
    assert before == first and (last["name"], last["setting"]["context"]) == ("longmem", 1024)


def test_what_is_measured(monkeypatch):
    """The real measurement, in this process: LongMem holds the rest of the context in memory."""
    monkeypatch.setattr("sys.argv", ["efficiency.py", *TINY])
    args = efficiency.get_parser().parse_args()
    built = []
    make_step = model_speed.make_step

    def spy(options, model, mode):
        built.append(model)
        return make_step(options, model, mode)

    monkeypatch.setattr(model_speed, "make_step", spy)
    for variant in ("longmem", "backbone"):
        options = efficiency.options_of(args, variant, 768)
        seconds, peak = model_speed.measure_alone(options, "float32", "evaluation", variant, 1)
        assert seconds > 0 and peak > 4 * 8000 * 128  # at least the embeddings
    longmem, backbone = built
    assert (longmem.window, backbone.window) == (256, 768)
    assert longmem.memory.bank.layout.memory_size == min(longmem.memory.bank.num_tokens) == 512
    assert backbone.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "more, message",
    [
        (("--contexts", "511"), "--contexts (511) must be at least 512, two segments of --preset"),
        (("--contexts", "512,512"), "--contexts (512,512) must name every number once"),
        (("--k", "6"), "--k (6) must be a multiple of --chunk-size (4)"),
        (("--repeats", "0"), "--repeats (0) must be at least 1"),
        (("--results", "x.json"), "--results (x.json) must not end in .json"),
    ],
)
def test_bad_options_are_one_line(more, message, monkeypatch, capsys):
    found = assert_one_line(monkeypatch, capsys, efficiency.main, "efficiency.py", *TINY, *more)
    assert message in found
