"""transformers beside a torchaudio that does not load, as pip installs it for fairseq."""

import logging
import sys
from importlib.util import find_spec

import pytest

from longmem_fairseq.utils.optional_packages import import_transformers

if find_spec("transformers") is None:
    pytest.skip("needs the extra hf", allow_module_level=True)


@pytest.fixture
def torchaudio(tmp_path, monkeypatch):
    """Puts a torchaudio in front of an installed one."""

    def put(code):
        (tmp_path / "torchaudio").mkdir()
        (tmp_path / "torchaudio" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torchaudio", raising=False)

    yield put
    sys.modules.pop("torchaudio", None)


def test_transformers_goes_on_without_one_that_does_not_load(torchaudio, caplog):
    torchaudio("raise OSError('libc10_cuda.so: cannot open shared object file')")
    with caplog.at_level(logging.WARNING):
        assert import_transformers() is sys.modules["transformers"]
    assert find_spec("torchaudio") is None  # what transformers asks
    assert "torchaudio does not load beside this torch (libc10_cuda.so: " in caplog.text
    assert "pip uninstall torchaudio" in caplog.text


def test_one_that_loads_stays(torchaudio, caplog):
    torchaudio("loaded = True")
    with caplog.at_level(logging.WARNING):
        import_transformers()
    assert sys.modules["torchaudio"].loaded and not caplog.text
