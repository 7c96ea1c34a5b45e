"""The documents of a served memory, and the file that it is saved in."""

from contextlib import contextmanager
from pathlib import Path
from typing import Dict, List, Optional

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.memory import select_banks
from longmem_fairseq.serving.errors import RequestError
from longmem_fairseq.utils.replaced_file import file_version


class Documents:
    """Adds documents to a model's memory, lists and forgets them.

    After each change the memory is saved; where that fails, the memory is as it was before.

    Args:
        lm: the model
        path: of the memory file (default: the memory lasts as long as the server)
    """

    def __init__(self, lm: LongMem, path: Optional[str] = None):
        self.lm, self.path = lm, path
        self.replaces = None if path is None else file_version(path)  # when the work begins

    def add(self, name: str, text: str) -> Dict:
        """Memorizes a document.

        Returns:
            the document's entry of :meth:`listed`

        Raises:
            RequestError: there is one of that name, the text is empty or none, or the memory cannot be
                saved
        """
        if any(document["name"] == name for document in self.listed()):
            message = f"a document named {name!r} is in memory already: forget it first"
            raise RequestError(message, 409, param="name", code="document_exists")
        with self._changing():
            self.lm.memorize([text], names=[name], progress=False)
        return next(document for document in self.listed() if document["name"] == name)

    def forget(self, name: str) -> None:
        """Forgets a document.

        Raises:
            RequestError: there is no document of that name, or the memory cannot be saved
        """
        if not any(document["name"] == name for document in self.listed()):
            raise RequestError(
                f"no document named {name!r} is in memory", 404, code="document_not_found"
            )
        with self._changing():
            self.lm.forget(name)

    def listed(self) -> List[Dict]:
        """Name and tokens of every document of which something is in memory, the oldest first.

        Tokens of no named document have the name None.
        """
        tokens = self._bank().documents(0)
        return [{"name": name, "tokens": count} for name, count in tokens.items()]

    def size(self) -> Dict:
        """The number of tokens in memory, and the largest possible one."""
        bank = self._bank()
        return {"tokens": len(bank.held(0)), "memory_size": bank.layout.memory_size}

    def _bank(self):
        try:
            return self.lm.memory.single_bank(self.lm.device)
        except ValueError as error:
            raise RequestError(str(error), code="no_memory") from None

    @contextmanager
    def _changing(self):
        """A change inside that fails, or that cannot be saved, does not happen."""
        before = self._bank()
        self.lm.memory.banks[False] = select_banks(before, [0])
        try:
            yield
            if self.path is not None:
                self.lm.save_memory(Path(self.path), self.replaces)
        except BaseException as error:
            self.lm.memory.banks[False] = before
            if not isinstance(error, (ValueError, OSError)):
                raise
            status = 500 if isinstance(error, OSError) else 400
            raise RequestError(f"the memory was left as it was: {error}", status) from error
