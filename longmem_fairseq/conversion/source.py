"""Where a checkpoint comes from: a Hugging Face folder, a GGUF file, or a repository of the hub."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from torch import Tensor

from longmem_fairseq.conversion.files import WEIGHTS, model_folder, tensors, weight_files
from longmem_fairseq.conversion.gguf_file import GGUFFile, gguf_models
from longmem_fairseq.conversion.gguf_model import gguf_weights, write_json_files
from longmem_fairseq.utils.argument_error import ArgumentError


class Weight(NamedTuple):
    """A tensor of a checkpoint.

    path: the file that holds it
    name: its name there
    theirs: its name in transformers
    tensor: its values, in the order of transformers
    """

    path: Path
    name: str
    theirs: str
    tensor: Tensor


class Checkpoint(NamedTuple):
    """A model of another project.

    folder: holds config.json and the tokenizer
    source: the user's argument, for messages
    gguf: the file with the weights, None if they are in *folder*
    """

    folder: Path
    source: Path
    gguf: Optional[GGUFFile] = None

    def files(self) -> List[Path]:
        """Those that hold the weights."""
        return self.gguf.paths if self.gguf else list(weight_files(self.folder))

    def weights(self, config: Dict[str, Any]) -> Iterator[Weight]:
        """All tensors, one after another.

        Args:
            config: config.json

        Raises:
            FileNotFoundError, ValueError: a file is missing or damaged
        """
        if self.gguf:
            yield from (Weight(*weight) for weight in gguf_weights(self.gguf, config))
            return
        for path, names in weight_files(self.folder).items():
            yield from (Weight(path, name, name, tensor) for name, tensor in tensors(path, names))


@contextmanager
def open_checkpoint(model: str, dry_run: bool, with_tokenizer: bool) -> Iterator[Checkpoint]:
    """The checkpoint that *model* names: a folder, a GGUF file, or a hub id.

    Args:
        dry_run: the configuration is enough
        with_tokenizer: the tokenizer is needed

    Raises:
        ImportError: a package that this needs is not installed
        FileNotFoundError, ValueError: it is missing, damaged, or of another kind
    """
    path = Path(model) if Path(model).is_file() else model_folder(model, dry_run)
    gguf = path if path.is_file() else _gguf_in(path)
    if gguf is None:
        yield Checkpoint(path, path)
        return
    file = GGUFFile(gguf)
    with tempfile.TemporaryDirectory() as folder:  # of the metadata, as JSON files
        write_json_files(file, Path(folder), with_tokenizer)
        try:
            yield Checkpoint(Path(folder), gguf, file)
        except ArgumentError as error:  # which names files that the user has not seen
            raise error.replaced(f"{folder}/", f"{gguf}: ") from None
        except ValueError as error:
            raise ValueError(str(error).replace(f"{folder}/", f"{gguf}: ")) from None


def _gguf_in(folder: Path) -> Optional[Path]:
    """The GGUF file of a folder without other weights."""
    if any(
        (folder / f"{name}{index}").exists() for name in WEIGHTS for index in ("", ".index.json")
    ):
        return None
    models = gguf_models(folder)
    if len(models) > 1:
        names = ", ".join(path.name for path in models[:5])
        raise ValueError(f"{folder} holds {len(models)} GGUF files ({names}): give one of them")
    return models[0] if models else None
