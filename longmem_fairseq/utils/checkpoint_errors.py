"""Errors for people, where ``torch.load`` meets a damaged or malicious checkpoint."""

import os
import zipfile
from contextlib import contextmanager


@contextmanager
def clear_errors(path):
    """Around the loading of a checkpoint: errors for people.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: not a checkpoint, a damaged one, or one that would execute code
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        _check_size(path)
        yield
    except ImportError:
        raise
    except MemoryError as error:  # a string in an old pickle may claim to be of 4 GB
        raise ValueError(
            f"{path} is not a checkpoint, or a damaged one, or takes more memory than there is"
        ) from error
    except OSError as error:
        if error.filename is not None:  # not allowed to read it, and the like
            raise
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    except Exception as error:  # torch.load has a dozen for a damaged file
        # only the wording depends on it; PyTorch has no type for this, and two spellings
        if "unsupported global" in str(error).lower():
            raise ValueError(
                f"{path}: refused, it would execute code when loaded (its pickle names objects other "
                "than tensors and plain containers)"
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error


def _check_size(path) -> None:
    """Raises ValueError for a file that unpacks to more than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > os.path.getsize(path):
                raise ValueError("compressed")
