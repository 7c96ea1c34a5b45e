"""longmem_fairseq/data: every token is predicted exactly once, in order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longmem_fairseq.data import DocumentStreamDataset, Piece, lay_out_streams
from tests.helpers.batches import assert_same_batches, flattened
from tests.helpers.documents import BOS, FIRST, PAD, Documents
from tests.helpers.examples import examples


def streams_of(documents, batch_size, segment, span=0, shards=1, seed=None, overlap=0):
    return DocumentStreamDataset(
        documents,
        pad=PAD,
        bos=BOS,
        batch_size=batch_size,
        tokens_per_sample=segment,
        segment_overlap=overlap,
        stream_span=span,
        num_shards=shards,
        seed=seed,
    )


def batches_of(dataset):
    return [dataset[index] for index in range(len(dataset))]


def check_accounting(documents, dataset, batch_size, segment, shards, span=0, overlap=0):
    """All that the docstring of DocumentStreamDataset promises; returns the steps."""
    first_of_document = {FIRST + int(start) for start in documents.starts[:-1]}
    predicted = []
    steps, left = divmod(len(dataset), shards)
    assert left == 0
    for shard in range(shards):
        last = [None] * batch_size  # token, of each stream
        num_rows = batch_size
        read = [0] * batch_size  # segments since the last new document
        for step in range(steps):
            batch = dataset[step * shards + shard]
            source, target = batch["net_input"]["src_tokens"], batch["target"]
            flags = batch["net_input"]["new_document"].tolist()
            assert source.shape == target.shape
            assert source.size(0) == batch["nsentences"] == len(flags) <= num_rows
            num_rows = len(flags)  # a stream that has run out was the last row, and stays away
            assert source.size(1) <= segment
            assert batch["ntokens"] == int((target != PAD).sum())
            for row in range(num_rows):
                tokens = target[row][target[row] != PAD].tolist()
                inputs = source[row][source[row] != PAD].tolist()
                before = int(batch["net_input"]["overlap"][row])
                assert batch["start_indices"][row] == before
                # padding on the right alone, of both alike, and where targets were predicted before
                right = [PAD] * (source.size(1) - before - len(tokens))
                assert target[row].tolist() == [PAD] * before + tokens + right
                assert source[row].tolist() == inputs + right
                number, start = int(batch["id"][row]), int(batch["position"][row])
                if not tokens:
                    # all streams of this shard have run out, those of another have not
                    assert (number, start, flags[row], num_rows) == (-1, -1, False, 1)
                    assert shards > 1
                    continue
                begin = documents.starts[number] + start + FIRST
                assert before == min(overlap, start + before)
                assert len(tokens) <= segment - overlap
                assert tokens == list(range(begin + before, begin + before + len(tokens)))
                assert inputs[1:] == list(range(begin, tokens[-1]))
                assert inputs[0] == (BOS if begin in first_of_document else begin - 1)
                if not flags[row]:
                    assert tokens[0] == last[row] + 1 and tokens[0] not in first_of_document
                read[row] = 1 if flags[row] else read[row] + 1
                assert span == 0 or read[row] <= span
                if span == 0:
                    assert flags[row] == (tokens[0] in first_of_document)
                last[row] = tokens[-1]
                predicted += tokens
    assert sorted(predicted) == list(range(FIRST, FIRST + int(documents.sizes.sum())))
    return steps


SIZES = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, 40), st.integers(200, 400)), max_size=12
)


@settings(max_examples=examples(100))
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 5),
    segment=st.integers(1, 9),
    span=st.integers(0, 4),
    shards=st.integers(1, 3),
    seed=st.one_of(st.none(), st.integers(0, 1000)),
    overlap=st.integers(0, 8),
)
def test_every_token_is_predicted_once_and_streams_are_contiguous(
    sizes, batch_size, segment, span, shards, seed, overlap
):
    overlap %= segment
    documents = Documents(sizes)
    dataset = streams_of(documents, batch_size, segment, span, shards, seed, overlap)
    steps = check_accounting(documents, dataset, batch_size, segment, shards, span, overlap)
    assert (steps == 0) == (sum(sizes) == 0)


@settings(max_examples=examples(100))
@given(sizes=SIZES, streams=st.integers(1, 6), segment=st.integers(1, 9), span=st.integers(0, 4))
def test_streams_without_order_end_at_about_the_same_time(sizes, streams, segment, span):
    """Greedily dealt, no stream ends later than the mean by more than the longest piece."""
    layout = lay_out_streams(sizes, streams, segment, span)
    segments = [[-(-(piece.stop - piece.start) // segment) for piece in s] for s in layout]
    longest = max((n for stream in segments for n in stream), default=0)
    totals = [sum(stream) for stream in segments]
    assert max(totals) <= sum(totals) / streams + longest


@settings(max_examples=examples(100))
@given(sizes=SIZES, segment=st.integers(1, 9), span=st.integers(1, 4), seed=st.integers(0, 99))
def test_pieces_are_at_most_a_span(sizes, segment, span, seed):
    layout = lay_out_streams(sizes, 3, segment, span, np.random.default_rng(seed))
    pieces = sorted(piece for stream in layout for piece in stream)
    assert all(0 < piece.stop - piece.start <= span * segment for piece in pieces)
    for document, size in enumerate(sizes):
        own = [piece for piece in pieces if piece.document == document]
        stops = [0] + [piece.stop for piece in own]
        assert [piece.start for piece in own] + [size] == stops


def test_layout_by_hand():
    assert lay_out_streams([5, 0, 9, 2], 1, 4) == [[Piece(0, 0, 5), Piece(2, 0, 9), Piece(3, 0, 2)]]
    # longest first; 9 tokens are 3 segments, 5 are 2, so the last piece goes to stream 1
    assert lay_out_streams([5, 0, 9, 2], 2, 4) == [
        [Piece(2, 0, 9)],
        [Piece(0, 0, 5), Piece(3, 0, 2)],
    ]
    assert lay_out_streams([3], 3, 4) == [[Piece(0, 0, 3)], [], []]
    assert lay_out_streams([], 2, 4) == [[], []]
    # stream 0 of 2 starts with half a span of 2 segments, and reads the rest at the end
    spans = lay_out_streams([8, 8], 2, 4, span=2)
    assert spans == [[Piece(0, 0, 4), Piece(0, 4, 8)], [Piece(1, 0, 8)]]


def test_batches_by_hand():
    dataset = streams_of(Documents([5, 1]), batch_size=2, segment=3)
    assert len(dataset) == 2
    first, second = flattened(dataset[0]), flattened(dataset[1])
    assert first["src_tokens"].tolist() == [[BOS, 100, 101], [BOS, PAD, PAD]]
    assert first["target"].tolist() == [[100, 101, 102], [105, PAD, PAD]]
    assert first["new_document"].tolist() == [True, True]
    assert first["id"].tolist() == [0, 1] and first["position"].tolist() == [0, 0]
    assert first["ntokens"] == 4 and first["nsentences"] == 2
    assert second["src_tokens"].tolist() == [[102, 103]]  # the second stream has run out
    assert second["target"].tolist() == [[103, 104]]
    assert second["new_document"].tolist() == [False]
    assert second["id"].tolist() == [0] and second["position"].tolist() == [3]
    assert second["ntokens"] == 2


def test_segments_that_overlap_by_hand():
    dataset = streams_of(Documents([8, 1]), batch_size=2, segment=5, overlap=3)
    assert len(dataset) == 4
    first, second, third = (flattened(dataset[step]) for step in range(3))
    assert first["src_tokens"].tolist() == [[BOS, 100], [BOS, PAD]]
    assert first["target"].tolist() == [[100, 101], [108, PAD]]
    assert first["overlap"].tolist() == first["start_indices"] == [0, 0]
    # the document has only two tokens before these
    assert second["src_tokens"].tolist() == [[BOS, 100, 101, 102]]
    assert second["target"].tolist() == [[PAD, PAD, 102, 103]]
    assert second["overlap"].tolist() == second["start_indices"] == [2]
    assert second["position"].tolist() == [0] and second["ntokens"] == 2
    assert third["src_tokens"].tolist() == [[100, 101, 102, 103, 104]]
    assert third["target"].tolist() == [[PAD, PAD, PAD, 104, 105]]
    assert third["position"].tolist() == [1] and third["new_document"].tolist() == [False]


def test_a_loop_over_the_dataset_ends():
    dataset = streams_of(Documents([5, 1]), batch_size=2, segment=3)
    assert_same_batches(dataset, batches_of(dataset))
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"batch {index} of 2"):
            dataset[index]


def test_a_span_starts_from_the_token_before_it():
    dataset = streams_of(Documents([40]), batch_size=1, segment=4, span=2, seed=3)
    starts = {}
    for batch in batches_of(dataset):
        if batch["net_input"]["new_document"][0]:
            source = batch["net_input"]["src_tokens"]
            starts[int(batch["position"][0])] = int(source[0, 0])
    assert len(starts) >= 5 and 0 in starts
    assert starts == {start: FIRST + start - 1 if start else BOS for start in starts}


def test_streams_with_spans_do_not_all_start_afresh_together():
    dataset = streams_of(Documents([4000] * 8), batch_size=8, segment=5, span=8, seed=1)
    fresh = [int(batch["net_input"]["new_document"].sum()) for batch in batches_of(dataset)]
    assert fresh[0] == 8
    assert max(fresh[1:40]) <= 5


def test_a_document_longer_than_anything():
    documents = Documents([3, 100_003, 0, 1])
    dataset = streams_of(documents, batch_size=2, segment=512)
    assert check_accounting(documents, dataset, 2, 512, 1) == -(-100_003 // 512)


def test_more_streams_than_documents():
    documents = Documents([7, 3])
    dataset = streams_of(documents, batch_size=5, segment=4, shards=2)
    assert check_accounting(documents, dataset, 5, 4, 2) == 2
    # one document for each shard, and the second is shorter: a row without tokens is left
    assert dataset[3]["ntokens"] == 0 and dataset[3]["target"].shape == (1, 0)


def test_order_is_that_of_the_seed():
    documents = Documents([9, 30, 4, 17, 25, 8, 40, 2])
    for span in (0, 2):
        one, same, other = (
            batches_of(streams_of(documents, 2, 4, span, 1, seed)) for seed in (1, 1, 2)
        )
        assert_same_batches(one, same)
        assert [b["id"].tolist() for b in one] != [b["id"].tolist() for b in other]
    evaluated = batches_of(streams_of(documents, 1, 4))
    assert list(range(8)) == list(dict.fromkeys(int(b["id"][0]) for b in evaluated))


def test_shards_read_different_documents():
    documents = Documents([9, 30, 4, 17, 25, 8, 40, 2])
    dataset = streams_of(documents, 2, 4, shards=3, seed=5)
    read = [set(), set(), set()]
    for index in range(len(dataset)):
        read[index % 3] |= set(dataset[index]["id"].tolist()) - {-1}
    assert sorted(document for shard in read for document in shard) == list(range(8))
