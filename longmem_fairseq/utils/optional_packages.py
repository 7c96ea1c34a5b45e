"""Packages of the extras, which need not be there."""

import importlib
import logging
import sys

logger = logging.getLogger(__name__)


def import_transformers():
    """The module transformers, which also works beside a torchaudio that does not load.

    fairseq asks for torchaudio, which nothing here uses, and pip takes one that is made for CUDA.
    Beside a torch without CUDA it cannot be loaded, and transformers, which tries, has no models then.

    Raises:
        ImportError: it is not installed
    """
    try:
        importlib.import_module("torchaudio")
    except ImportError:  # there is none, which is fine
        pass
    except OSError as error:
        sys.modules["torchaudio"] = None
        logger.warning(
            f"torchaudio does not load beside this torch ({error}): transformers goes on without it; "
            "pip uninstall torchaudio, nothing here uses it"
        )
    return importlib.import_module("transformers")
