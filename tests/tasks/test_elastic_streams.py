"""Every token is read once per epoch, by any number of ranks, also if they change in the middle of it.

On datasets and iterators, without processes; ``test_data_parallel.py`` has real ones.
"""

import pytest
from fairseq.data.iterators import GroupedIterator
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from tests.helpers.documents import FIRST, PAD, Documents
from tests.helpers.examples import examples

SIZES = [30, 1, 55, 12, 0, 41, 8, 19, 27, 140]

# fairseq's iterator asks for it everywhere
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "dict.txt").write_text("a 1\n")
    return folder


class Ranks:
    """The iterators of all ranks of a run, and what their streams remember.

    memory: of each rank and row, the tokens read since the last new document
    """

    def __init__(self, data, documents, ranks, batch_size, span, seed=1, memory_size=0, overlap=0):
        segments = {"tokens_per_sample": 5 + overlap, "segment_overlap": overlap}
        cfg = LongMemLanguageModelingConfig(data=str(data), stream_span=span, **segments)
        task = LongMemLanguageModelingTask(cfg)
        task.datasets["train"], task.memory_size = documents, memory_size
        options = {"max_sentences": batch_size, "num_shards": ranks, "data_buffer_size": 0}
        self.batch_size = batch_size
        self.iterators = [
            task.get_batch_iterator(documents, shard_id=rank, seed=seed, **options)
            for rank in range(ranks)
        ]
        self.memory = [[[] for _ in range(batch_size)] for _ in range(ranks)]
        self.epochs = []

    def go_on(self, former):
        """From the checkpoint of a run of other ranks."""
        for rank, iterator in enumerate(self.iterators):
            iterator.load_state_dict(former.iterators[0].state_dict())
            places = iterator.former[rank] if iterator.former else None
            if places is None:  # the same ranks
                places = [(rank, row) for row in range(self.batch_size)]
            for row, place in enumerate(places):
                self.memory[rank][row] = list(former.memory[place[0]][place[1]]) if place else []

    def read(self, updates=None, update_freq=1):
        """Reads some updates, or the rest of the epoch; returns the tokens that were predicted."""
        if not self.epochs:
            self.epochs = [
                GroupedIterator(i.next_epoch_itr(shuffle=True), update_freq) for i in self.iterators
            ]
        predicted = []
        while updates != 0 and self.epochs[0].has_next():
            for rank, epoch in enumerate(self.epochs):
                for batch in next(epoch):
                    predicted += self._remember(self.memory[rank], batch)
            updates = updates and updates - 1
        assert len({epoch.has_next() for epoch in self.epochs}) == 1
        return predicted

    def _remember(self, memory, batch):
        predicted = []
        for segment in batch["earlier"]:
            for row, tokens in enumerate(segment["src_tokens"]):
                if segment["new_document"][row]:
                    memory[row].clear()
                new = tokens[segment["overlap"][row] :]
                memory[row] += (new[new != PAD] + 1).tolist()  # what comes after each
        source, flags = batch["net_input"]["src_tokens"], batch["net_input"]["new_document"]
        for row, tokens in enumerate(batch["target"]):
            tokens = tokens[tokens != PAD].tolist()
            if not tokens:  # this rank has run out: nothing is read, nothing forgotten
                assert batch["ntokens"] == source.numel() == 0 and not flags.any()
                continue
            if flags[row]:
                memory[row].clear()
            else:  # goes on where its memory ends
                before = int(batch["net_input"]["overlap"][row])
                assert memory[row][-1] == tokens[0] - 1 == source[row, before]
            memory[row] += tokens
            predicted += tokens
        return predicted


def expected(documents):
    return list(range(FIRST, FIRST + int(documents.sizes.sum())))


@pytest.mark.parametrize("ranks, batch_size, update_freq", [(1, 4, 1), (2, 2, 3), (4, 3, 2)])
def test_every_token_once_per_epoch(data, ranks, batch_size, update_freq):
    documents = Documents(SIZES)
    run = Ranks(data, documents, ranks, batch_size, 2)
    assert sorted(run.read(update_freq=update_freq)) == expected(documents)


def test_a_worker_of_a_rank_that_goes_on_elsewhere(data):
    """It gets the layout of the resumed run; one rank has one, because they end slowly."""
    documents = Documents(SIZES)
    one, run = Ranks(data, documents, 1, 4, 2), Ranks(data, documents, 3, 2, 2)
    run.iterators[1].num_workers = 1
    predicted = one.read(4)
    run.go_on(one)
    assert sorted(predicted + run.read()) == expected(documents)


LAYOUTS = st.lists(
    st.tuples(*(st.integers(1, most) for most in (4, 4, 6, 4))), min_size=1, max_size=4
)


@settings(max_examples=examples(40))
@given(
    sizes=st.lists(st.one_of(st.integers(0, 4), st.integers(0, 60)), min_size=1, max_size=6),
    layouts=LAYOUTS,
    span=st.sampled_from([0, 3]),
    seed=st.integers(0, 99),
    overlap=st.sampled_from([0, 2, 7]),
)
def test_ranks_that_change_in_an_epoch(data, sizes, layouts, span, seed, overlap):
    """Each layout: ranks, streams of each, updates until the run is resumed with the next, and their
    --update-freq."""
    documents = Documents([*sizes, 9])
    run, predicted = None, []
    for ranks, batch_size, updates, update_freq in layouts:
        former, run = run, Ranks(data, documents, ranks, batch_size, span, seed, 0, overlap)
        if former is not None:
            run.go_on(former)
        predicted += run.read(updates, update_freq)
        if not run.epochs[0].has_next():
            break
    predicted += run.read()
    assert sorted(predicted) == expected(documents)


@pytest.mark.parametrize("ranks", [2, 4])
def test_as_many_streams_go_on_as_if_nothing_had_happened(data, ranks):
    """On other ranks they read what they would have read, and remember the same."""
    documents = Documents(SIZES)
    one, run = Ranks(data, documents, 1, 4, 2), Ranks(data, documents, ranks, 4 // ranks, 2)
    one.read(6)
    run.go_on(one)
    assert run.iterators[0].earlier == []
    assert sorted(run.read(3)) == sorted(one.read(3))
    assert sorted(run.read()) == sorted(one.read())
    by_stream = [row for rows in zip(*run.memory, strict=True) for row in rows]
    assert by_stream == one.memory[0]


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("memory_size, remembered", [(0, 0), (12, 15), (99, 20)])
def test_those_that_are_too_many_read_again_what_they_remembered(
    data, memory_size, remembered, overlap
):
    """In whole segments of 5 new tokens, from where the document began at the earliest."""
    documents = Documents([35, 30, 25])
    three = Ranks(data, documents, 1, 3, 0, overlap=overlap)
    predicted = three.read(4)
    run = Ranks(data, documents, 1, 1, 0, memory_size=memory_size, overlap=overlap)
    run.go_on(three)
    batches = list(run.iterators[0].next_epoch_itr(shuffle=True))
    again = [
        sum(len(s["src_tokens"][0]) - int(s["overlap"][0]) for s in batch["earlier"])
        for batch in batches
    ]
    assert [count for count in again if count] == ([remembered] * 2 if remembered else [])
    for batch in batches:
        if batch["earlier"]:  # the main segment goes on behind it
            assert not batch["net_input"]["new_document"].any()
            last = batch["earlier"][-1]["src_tokens"][0, -1] + 1
            assert batch["net_input"]["overlap"].tolist() == [overlap]
            first = batch["net_input"]["src_tokens"][0, overlap]
            assert last == first == batch["target"][0, overlap] - 1
        predicted += run._remember(run.memory[0], batch)
    assert sorted(predicted) == expected(documents)


def test_as_many_streams_as_there_are_keep_their_memory(data):
    documents = Documents([200] * 4)
    four = Ranks(data, documents, 2, 2, 0)
    four.read(3)
    for ranks, batch_size, kept in ((1, 3, 3), (1, 4, 4), (3, 2, 4)):
        run = Ranks(data, documents, ranks, batch_size, 0)
        run.go_on(four)
        remembered = sorted(len(row) for rows in run.memory for row in rows)
        assert remembered == [0] * (ranks * batch_size - kept) + [15] * kept
