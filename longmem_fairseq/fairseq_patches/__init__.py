"""The functions of fairseq that are replaced, and :func:`install`, which replaces them.

fairseq offers no hook for what these do. Importing this package changes nothing.
"""

import argparse
import pkgutil
from importlib import import_module
from typing import NamedTuple

_FAIRSEQ = "0.12.3.1"  # fairseq-fixed: fairseq 0.12.2, repaired for Python 3.11


class Patch(NamedTuple):
    """A name that is replaced.

    symbol: its full name, in fairseq
    replacement: module of this package, and name in it
    reason: what goes wrong without it
    test: file and name of a test that needs it
    fairseq: the version that was looked at
    """

    symbol: str
    replacement: str
    reason: str
    test: str
    fairseq: str = _FAIRSEQ


PATCHES = (
    Patch(
        "fairseq.checkpoint_utils.load_checkpoint_to_cpu",
        "checkpoints.load_checkpoint_to_cpu",
        "damaged and malicious files gave any of a dozen exceptions; exported models can be loaded",
        "test_bad_checkpoints.py::test_a_malicious_checkpoint_is_refused_not_executed",
    ),
    Patch(
        "fairseq.checkpoint_utils.save_checkpoint",
        "checkpoints.save_checkpoint",
        "a task hears of a save on the first rank alone; every rank has a memory to save",
        "test_resume.py::test_resumed_is_uninterrupted",
    ),
    Patch(
        "fairseq.checkpoint_utils.load_checkpoint",
        "checkpoints.load_checkpoint",
        "a task hears of a load without model and folder; a complete run did one update more",
        "test_faults.py::test_a_complete_run_that_is_started_again",
    ),
    Patch(
        "fairseq.checkpoint_utils.PathManager.copy",
        "checkpoints.copy",
        "checkpoint_last.pt was copied in place: half a file after a kill",
        "test_faults.py::test_a_full_disk_leaves_checkpoint_last_whole",
    ),
    Patch(
        "fairseq.checkpoint_utils.torch_persistent_save",
        "checkpoints.torch_persistent_save",
        "a save that met a full disk was tried again behind the first half",
        "test_faults.py::test_a_full_disk_leaves_the_checkpoints_whole",
    ),
    Patch(
        "fairseq.trainer.Trainer.train_step",
        "checkpoints.train_step",
        "NaN did not say in which document",
        "test_faults.py::test_nan_is_reported_with_update_stream_and_document",
    ),
    Patch(
        "fairseq.trainer._catalog_shared_params",
        "shared_parameters.shared_parameters",
        "the log named every missing bias as a shared parameter",
        "test_shared_parameters.py::test_only_what_is_shared_is_found",
    ),
    Patch(
        "fairseq.data.iterators.GroupedIterator.__init__",
        "checkpoints.grouped_iterator",
        "a run resumed with another --update-freq left out the last batches of its epoch",
        "test_data_parallel.py::test_an_epoch_goes_on_with_another_update_frequency",
    ),
    Patch(
        "fairseq.distributed.utils.call_main",
        "processes.call_main",
        "on CPUs torchrun gave separate trainings; SIGTERM lost the work since the last checkpoint",
        "test_faults.py::test_sigterm_saves_and_the_run_goes_on",
    ),
    Patch(
        "fairseq.distributed.utils.distributed_main",
        "processes.distributed_main",
        "a rank that had done its work could die by SIGABRT; a lost rank was a traceback of gloo's",
        "test_processes.py::test_what_happens_to_one_rank_ends_all",
    ),
    Patch(
        "fairseq.models.distributed_fairseq_model.DistributedTimeoutWrapper",
        "processes.timeout_wrapper",
        "--heartbeat-timeout sent SIGINT, which a process waiting inside gloo or nccl ignores",
        "test_processes.py::test_a_rank_that_does_not_answer",
    ),
)
# While a command runs, two names of its own module are replaced as well (processes.py):
# ``fairseq_cli.train.should_stop_early`` (sigterm.py) and, with several processes,
# ``fairseq_cli.eval_lm.eval_lm``, which gave the perplexity of the first rank's documents.

_installed = False


def install() -> None:
    """Makes fairseq know LongMem's models, task and criterion, and replaces :data:`PATCHES`.

    ``--user-dir longmem_fairseq`` calls it, and so does whatever of this package loads a model. A
    program that imports this package and then calls a command of fairseq's calls it first: fairseq
    skips the --user-dir of a package that is imported already. The second call does nothing.
    """
    global _installed
    if _installed:
        return
    import torch

    for room in ("models", "tasks", "criterions"):
        import_module(f"longmem_fairseq.{room}")  # which register what they define
    for patch in PATCHES:
        owner, _, name = patch.symbol.rpartition(".")
        replacement = pkgutil.resolve_name(f"{__name__}.{patch.replacement}")
        owner = pkgutil.resolve_name(owner)
        setattr(owner, name, staticmethod(replacement) if name == "copy" else replacement)
    # fairseq's checkpoints hold one, a plain bag of options
    torch.serialization.add_safe_globals([argparse.Namespace])
    _installed = True
