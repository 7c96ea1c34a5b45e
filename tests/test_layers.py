"""Who imports whom: the map of the package, and how light its parts are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from longmem_fairseq.fairseq_patches import PATCHES

# every folder of the package, the lowest first: a module imports from its own and from lower ones
ROOMS = [
    "utils",  # knows nothing of fairseq or of models
    "memory",  # torch, numpy, safetensors, faiss; knows nothing of fairseq
    "modules",  # tensors in, tensors out; knows nothing of fairseq
    "tokenizers",
    "data",
    "models",
    "criterions",
    "tasks",
    "fairseq_patches",
    "api",
    "inspector",
    "harness",
    "serving",
    "corpus",
    "conversion",
    "commands",
]
WITHOUT_FAIRSEQ = ["utils", "memory", "modules"]
# fairseq imports every file of tasks/ for --user-dir, and nothing else of the package
ABOVE_ITS_ROOM = {"tasks/user_dir.py": "commands"}


def imported_names(path: Path):
    """Every module that *path* imports, even within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "longmem_fairseq":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(root):
    package = root / "longmem_fairseq"
    return {path.relative_to(package).as_posix(): path for path in package.glob("*/**/*.py")}


def test_the_map_has_every_room(root):
    assert {name.split("/")[0] for name in modules(root)} == set(ROOMS)


def test_imports_go_down(root):
    upward = []
    for name, path in modules(root).items():
        floor = ROOMS.index(ABOVE_ITS_ROOM.get(name, name.split("/")[0]))
        for imported in imported_names(path):
            package, _, room = imported.partition(".")
            if package == "longmem_fairseq" and room.split(".")[0] in ROOMS[floor + 1 :]:
                upward.append(f"{name} imports {imported}")
    assert upward == []


@pytest.mark.parametrize("room", WITHOUT_FAIRSEQ)
def test_the_lowest_rooms_know_nothing_of_fairseq(root, room):
    for name, path in modules(root).items():
        if name.split("/")[0] == room:
            assert not {i for i in imported_names(path) if i.split(".")[0] == "fairseq"}, name


def imports_of(program: str):
    """Names of all modules that a Python program has imported at its end."""
    command = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(printed.splitlines()[-1].split())


def test_the_package_is_light():
    names = imports_of("import longmem_fairseq")
    assert {name for name in names if name.startswith("longmem_fairseq.")} == set()
    assert not names & {"fairseq", "torch", "numpy"}


def test_a_memory_bank_needs_no_fairseq():
    names = imports_of("from longmem_fairseq.memory import MemoryBank")
    assert "torch" in names and not names & {"fairseq", "hydra", "omegaconf"}


@pytest.mark.parametrize("command", ["generate", "memorize", "inspector"])
def test_help_needs_no_torch(command):
    names = imports_of(
        f"import sys\nfrom longmem_fairseq.commands.{command} import main\nsys.argv[1:] = ['--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass"
    )
    assert "longmem_fairseq.commands.options" in names
    assert not names & {"fairseq", "torch", "numpy"}


PATCHED = """
from pkgutil import resolve_name
from longmem_fairseq.fairseq_patches import PATCHES, install
before = {patch.symbol: resolve_name(patch.symbol) for patch in PATCHES}
import longmem_fairseq.api.hub_interface, longmem_fairseq.tasks
import longmem_fairseq.fairseq_patches.processes
assert all(resolve_name(symbol) is found for symbol, found in before.items())
"""
IS_PATCHED = """
patched = {patch.symbol: resolve_name(patch.symbol) for patch in PATCHES}
assert not [symbol for symbol, found in before.items() if patched[symbol] is found]
install()
assert all(resolve_name(symbol) is found for symbol, found in patched.items())
from fairseq.tasks import TASK_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.criterions import CRITERION_REGISTRY
assert "longmem_language_modeling" in TASK_REGISTRY and "longmem_cross_entropy" in CRITERION_REGISTRY
assert {"longmem", "memtrm", "longmem_backbone"} <= set(ARCH_MODEL_REGISTRY)
"""


def test_importing_patches_nothing_and_install_everything_once():
    imports_of(PATCHED + "install()" + IS_PATCHED)


def test_user_dir_installs(root):
    """As in fairseq's commands, where nothing of the package is imported before."""
    program = f"""
from argparse import Namespace
from pkgutil import resolve_name
from fairseq.trainer import Trainer
from fairseq.utils import import_user_module
before = {{"fairseq.trainer.Trainer.train_step": Trainer.train_step}}
import_user_module(Namespace(user_dir={str(root / "longmem_fairseq")!r}))
from longmem_fairseq.fairseq_patches import PATCHES, install
"""
    imports_of(program + IS_PATCHED)


def test_a_process_that_fairseq_spawned_installs():
    """It has unpickled the name of its function, and main's --user-dir would do nothing."""
    program = """
from argparse import Namespace
from pkgutil import resolve_name
from fairseq.trainer import Trainer
before = {"fairseq.trainer.Trainer.train_step": Trainer.train_step}
from longmem_fairseq.fairseq_patches import PATCHES, install, processes
processes._original_main = lambda *arguments: None
processes.distributed_main(0, lambda cfg: None, Namespace(task=None), {})
"""
    imports_of(program + IS_PATCHED)


def test_the_table_of_patches(root):
    """Its tests exist, and docs/architecture.md has the same rows."""
    page = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    for patch in PATCHES:
        file, _, test = patch.test.partition("::")
        (path,) = (root / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(encoding="utf-8")
        row = f"| `{patch.symbol}` | {patch.reason} | `{test}` | {patch.fairseq} |"
        assert row in page, row
