"""train_scripts/gpu_session.sh with stubs: steps that are stopped, that run out of time, that fail."""

import os
import signal
import subprocess
import time

import pytest

PYTHON = """#!/usr/bin/env bash
echo "python $*" >>"$CALLS"
[[ -z "$FAIL" || "$*" != *"$FAIL"* ]]
"""
TRAIN = """#!/usr/bin/env bash
trap 'echo "saved" >>"$CALLS"; exit 143' TERM
echo "fairseq-train $*" >>"$CALLS"
if [[ -n "$TRAINS_ON" ]]; then
  sleep 60 &
  wait $!
fi
"""


@pytest.fixture
def session(tmp_path, root):
    """Starts the script; the programs note how they are called in tmp_path/calls."""
    for name, content in (("python", PYTHON), ("fairseq-train", TRAIN)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "calls").touch()

    def start(**settings):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
        small = {"DEVICE": "cpu", "SEEDS": "1", "DATA_DIRS": "data/a data/b", "FAIL": ""}
        return subprocess.Popen(
            ["bash", str(root / "train_scripts" / "gpu_session.sh")],
            env={**own, **small, "TRAINS_ON": "", "RUN_DIR": str(tmp_path / "run"), **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_a_session_that_is_stopped_goes_on(session, tmp_path):
    stopped = session(TRAINS_ON="1")
    while not any(call.startswith("fairseq-train") for call in calls(tmp_path)):
        assert stopped.poll() is None
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=30)
    assert stopped.returncode == 143 and calls(tmp_path)[-1] == "saved"
    before = len(calls(tmp_path))
    again = session()
    output, errors = again.communicate(timeout=60)
    assert (again.returncode, errors) == (0, "")
    assert output.endswith(f"all steps are done: {tmp_path}/run/results\n")
    # the training that was stopped comes first: the steps before it are done
    assert calls(tmp_path)[before].startswith("fairseq-train data/a ")
    assert sum(call.startswith("fairseq-train") for call in calls(tmp_path)[before:]) == 3
    assert sum("eval.evaluate data/b" in call for call in calls(tmp_path)[before:]) == 13


def test_a_training_whose_time_is_up_is_done(session, tmp_path):
    done = session(TRAINS_ON="1", TRAIN_MINUTES="0.005")
    output, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, "")
    assert calls(tmp_path).count("saved") == 3
    log = (tmp_path / "run" / "results" / "train_sidenet.log").read_text()
    assert "stopped after 0.005 minutes" in log


def test_a_step_that_fails_is_named_and_tried_again(session, tmp_path):
    failed = session(FAIL="--name sidenet")
    _, errors = failed.communicate(timeout=60)
    log = tmp_path / "run" / "results" / "sidenet_a.log.part"
    assert failed.returncode == 1
    assert errors.startswith(f"gpu_session.sh: sidenet_a failed, see {log}\n")
    assert errors.endswith("gpu_session.sh: failed: sidenet_a sidenet_b\n")
    before = len(calls(tmp_path))
    again = session()
    again.communicate(timeout=60)
    assert again.returncode == 0 and len(calls(tmp_path)) == before + 3  # both, and the report
