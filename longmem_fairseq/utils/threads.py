"""How long the threads of an operation wait for each other.

GNU OpenMP's wait actively, for milliseconds. Beside other work such a thread keeps the core from the
one that it waits for: 30% of the time of many small operations (docs/performance.md). A tenth of a
millisecond is enough to meet the next operation without being woken.
"""

import os

ROUNDS = 10_000  # of waiting; also in train_scripts/training.sh


def wait_briefly() -> None:
    """Sets the environment of this process, unless it says how to wait; PyTorch reads it when it is
    imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(ROUNDS))
