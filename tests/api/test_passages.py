"""Passages never join the texts of two documents."""

import pytest
import torch

from longmem_fairseq.api.passages import CONTEXT, _place
from longmem_fairseq.memory import MemoryBank

DOCUMENTS = {"alice": 13, "bob": 2, "carol": 1, "dave": 22}


class Numbers:
    """A tokenizer whose texts are the ids."""

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("search", ["attention", "hidden"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5])
def test_a_passage_ends_where_its_document_ends(search, chunk_size):
    hidden = {"search": "hidden", "search_dim": 2} if search == "hidden" else {}
    size = 36 // chunk_size * chunk_size
    bank = MemoryBank(1, 1, 1, memory_size=size, chunk_size=chunk_size, k=chunk_size, **hidden)
    texts, number = {}, 0
    for name, length in DOCUMENTS.items():
        ids = torch.arange(number, number + length)
        texts[name], number = ids.tolist(), number + length
        bank.begin_document(0, name, offset=-1)
        keys = torch.zeros(1, 1, length, 1)
        more = {"search_keys": torch.zeros(1, length, 2)} if hidden else {}
        bank.write(keys, keys, token_ids=ids.unsqueeze(0), **more)
    held = bank.logs[0].read(bank.held(0)).tolist()
    for slot in range(bank.num_chunks[0]):
        name, offset, *parts = _place(bank, slot, Numbers())
        before, text, after = ([int(i) for i in part.split()] for part in parts)
        document, first = (
            texts[name],
            int(bank.logs[0].read(range(1 + bank.first_token(0, slot)))[-1]),
        )
        at = document.index(first)
        assert offset == max(0, at - 1) and text == document[at : at + chunk_size]
        stop = at + len(text)
        waits = [i for i in document[stop : stop + CONTEXT] if i in held]
        assert after == waits and len(text) >= 1
        stored = [i for i in document[:at] if i in held]
        assert before == stored[-CONTEXT:]
