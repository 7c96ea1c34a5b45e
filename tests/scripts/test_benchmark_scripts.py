"""The scripts of eval/ and quickstart.sh: what they hand to the programs, and how they end.

python and fairseq's commands are stubs that note how they are called; a call with $FAIL in it fails.
"""

import os
import subprocess

import pytest

STUB = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
if [[ -n "$FAIL" && "$*" == *"$FAIL"* ]]; then
  seq 1 9
  echo "boom" >&2
  exit 1
fi
"""


@pytest.fixture
def script(tmp_path, root):
    """Runs a script; gives what came of it and the calls."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "fairseq-train", "fairseq-eval-lm"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(name, *arguments, fail="", **settings):
        calls.write_text("")
        path = f"{programs}:{os.environ['PATH']}"
        own = {"PATH": path, "VIRTUAL_ENV": str(programs.parent), "RUN_DIR": str(tmp_path / "run")}
        found = subprocess.run(
            ["bash", str(root / name), *arguments],
            env={**own, "CALLS": str(calls), "FAIL": fail, "COMPUTE_DTYPE": "float32", **settings},
            capture_output=True,
            text=True,
        )
        return found, calls.read_text().splitlines()

    return run


@pytest.fixture
def model(tmp_path):
    """Makes a model's folder, with files of these names."""

    def make(name, *files):
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
        return folder

    return make


def test_the_checkpoint_that_is_there_with_its_own_window(script, model):
    backbone = model("backbone", "model.safetensors", "checkpoint.pt")
    longmem = model("longmem", "model.safetensors")
    memtrm = model("memtrm", "checkpoint.pt", "checkpoint_last.pt")
    settings = {"PLAIN_MODELS": "backbone", "MEMORY_OPTIONS": "--memory-size 9", "DATA_DIR": "d"}
    found, calls = script("eval/books.sh", "--limit", "3", **settings)
    assert found.returncode == 0, found.stderr
    *evaluations, report = [call.split() for call in calls]
    assert [call[call.index("--path") + 1] for call in evaluations] == [
        str(backbone / "checkpoint.pt"),
        str(memtrm / "checkpoint_last.pt"),
        str(longmem / "model.safetensors"),
    ]
    assert ["--memory-size" in call for call in evaluations] == [False, True, True]
    assert all(call[-2:] == ["--limit", "3"] for call in evaluations)
    assert "--tokens-per-sample" not in " ".join(calls) and report[1:3] == ["-m", "eval.report"]
    _, calls = script("eval/books.sh", **settings, TOKENS_PER_SAMPLE="24")
    assert [" --tokens-per-sample 24 " in call for call in calls] == [True, True, True, False]


def test_the_backbone_with_longer_windows_is_another_baseline(script, model):
    for name in ("backbone", "sidenet", "memtrm", "longmem"):
        model(name, "checkpoint.pt")
    settings = {"TOKENS_PER_SAMPLE": "24", "WIDE_WINDOWS": "48 96", "DATA": "d", "TRAIN": "t"}
    for name, program in (("eval/squad.sh", "squad"), ("eval/arxiv.sh", "evaluate")):
        found, calls = script(name, **settings, DATA_DIR="d")
        assert found.returncode == 0, found.stderr
        runs = [(call, call[: call.index(" --results")].split("--name ")[1]) for call in calls[:-1]]
        windows = {name: call.split("--tokens-per-sample ")[1].split()[0] for call, name in runs}
        assert list(windows.items()) == [
            ("backbone", "24"),
            ("sidenet", "24"),
            ("backbone, window 48", "48"),
            ("backbone, window 96", "96"),
            ("memtrm", "24"),
            ("longmem", "24"),
        ]
        assert all(f"-m eval.{program} --path" in call for call, _ in runs)
        assert all("/backbone/" in call for call, name in runs if "window" in name)


def test_a_folder_without_a_model_is_one_line(script, model):
    folder = model("backbone", "dict.txt")
    found, calls = script("eval/books.sh", DATA_DIR="d")
    assert (found.returncode, calls) == (2, [])
    assert found.stderr == (
        f"books.sh: error: {folder} holds no checkpoint_last.pt, checkpoint.pt or "
        "model.safetensors: give RUN_DIR, PLAIN_MODELS and MEMORY_MODELS\n"
    )


def test_efficiency_measures_and_reports(script, tmp_path):
    arguments = ("--preset", "tiny", "--contexts", "512")
    found, calls = script("eval/efficiency.sh", *arguments, RESULTS_DIR=str(tmp_path / "r"))
    measured, report = calls
    assert found.returncode == 0, found.stderr
    assert (
        measured.split()[3:]
        == (
            "--preset gpt2_medium --contexts 4096,8192 --compute-dtype bfloat16 "
            f"--results {tmp_path}/r/efficiency.jsonl --preset tiny --contexts 512"
        ).split()
    )
    plot = ["--plot", f"{tmp_path}/r/efficiency.png"]
    assert report.split()[3:] == [f"{tmp_path}/r/efficiency.jsonl", *plot]


def test_a_long_training_of_the_ablations_tells_how_far_it_is(script, model, tmp_path):
    """A second of sleep is a minute here."""
    model("backbone", "checkpoint.pt")
    (tmp_path / "venv" / "bin" / "fairseq-train").write_text(
        "#!/usr/bin/env bash\necho num_updates=50\n"
        'all="$*" && rest=${all##*--save-dir } && dir=${rest%% *}\n'
        'mkdir -p "$dir" && touch "$dir/checkpoint_last.pt"\n'
        "/bin/sleep 0.5\n"
    )
    minutes = {"BASH_FUNC_sleep%%": "() { SECONDS=$((SECONDS + 61)); /bin/sleep 0.1; }"}
    settings = {"PARTS": "layer", "LAYERS": "1", "DATA_DIR": str(tmp_path)}
    found, calls = script("eval/ablations.sh", **settings, **minutes)
    assert (found.returncode, found.stderr) == (0, "")
    assert "update 50 of 100000, about " in found.stdout
    assert "--name layer 1 " in calls[-1]


def test_a_training_of_the_ablations_that_fails_says_so(script, model):
    folder = model("backbone", "checkpoint.pt").parent
    settings = {"PARTS": "layer", "LAYERS": "1", "DATA_DIR": "d"}
    found, calls = script("eval/ablations.sh", fail="--save-dir", **settings)
    (call,) = calls
    assert f"--pretrained-model-path {folder}/backbone/checkpoint.pt" in call
    log = folder / "longmem_layer1.log"
    message = f"ablations.sh: error: training longmem_layer1 failed, see {log}\n"
    assert (found.returncode, found.stderr) == (2, "6\n7\n8\n9\nboom\n" + message)


@pytest.mark.parametrize(
    "fail, what",
    [("--name memtrm", "evaluating memtrm"), ("longmem_lang", "fairseq-eval-lm of backbone")],
)
def test_an_evaluation_of_the_quickstart_that_fails_says_so(script, model, fail, what):
    for name in ("backbone", "sidenet", "longmem", "memtrm"):
        folder = model(name, "checkpoint_last.pt", "dict.txt").parent
    found, _ = script("train_scripts/quickstart_tiny.sh", fail=fail)
    assert found.returncode == 2
    message = f"quickstart_tiny.sh: error: {what} failed, see {folder}/evaluation.log"
    assert found.stderr.splitlines()[-2:] == ["boom", message]


@pytest.mark.parametrize(
    "name, length, sources",
    [
        ("ruler", "4096", {"HAYSTACK": "essays", "SQUAD": "dev.json"}),
        ("babilong", "4k", {"BABI": "babi", "BOOKS": "books"}),
    ],
)
def test_long_contexts_are_made_once_and_read_with_and_without_memory(
    script, model, tmp_path, name, length, sources
):
    model("backbone", "checkpoint.pt")
    settings = {"WIDE_WINDOWS": "48", "TASKS": "vt,fwe", "SAMPLES": "5", **sources}
    found, calls = script(f"eval/{name}.sh", "--limit", "3", **settings)
    assert found.returncode == 0, found.stderr
    made, *evaluations, report = calls
    data = f"{tmp_path}/run/results/{name}_data"
    assert f"-m preprocess.make_{name} --model {tmp_path}/run/backbone --dest {data} " in made
    assert f"--lengths {length} " in made and "--samples 5" in made and "--tasks vt,fwe" in made
    assert all(f"--{option.lower()} {value}" in made for option, value in sources.items())
    names = [call.split("--name ")[1].split(" --results")[0] for call in evaluations]
    memory = ["backbone with memory", "backbone with excerpts", "backbone, words alone"]
    assert names == ["backbone", "backbone, window 48", *memory]
    assert ["--pointer none" in call for call in evaluations] == [True, True, False, False, False]
    assert ["--excerpts 512" in call for call in evaluations] == [False, False, False, True, True]
    assert all("--memory own,empty,other --memory-size 1048576" in c for c in evaluations[2:])
    assert all(f"--data {data} --lengths {length}" in call for call in evaluations)
    assert all(call.endswith("--limit 3") for call in evaluations)
    assert f"eval.report {tmp_path}/run/results/{name}.jsonl" in report
    os.makedirs(data)
    _, again = script(f"eval/{name}.sh", PLAIN_OPTIONS="", EXCERPTS="0", **settings)
    assert len(again) == 4 and "--pointer none" not in " ".join(again)
