"""The task's iterators over real binaries: whole documents, reproducible epochs, and refusals."""

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from tests.helpers.batches import assert_same_batches

# fairseq's iterator asks for pinned memory everywhere, and two workers on any number of cores
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Real fairseq binaries, without an empty document, which fairseq's builder cannot write."""
    folder = tmp_path_factory.mktemp("corpus")
    dictionary = Dictionary()
    for i in range(300):
        dictionary.add_symbol(str(i))
    dictionary.save(str(folder / "dict.txt"))
    sizes = {"train": [30, 1, 55, 12, 41, 8, 19, 27], "valid": [21, 14], "test": [33, 1, 18, 9]}
    for split, lengths in sizes.items():
        builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
        generator = torch.Generator().manual_seed(len(lengths))
        for length in lengths:
            item = torch.randint(4, 304, (length,), generator=generator)
            item[-1] = dictionary.eos()
            builder.add_item(item)
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


def make_task(folder, **options):
    cfg = LongMemLanguageModelingConfig(data=str(folder), tokens_per_sample=8, **options)
    return LongMemLanguageModelingTask(cfg)


def predicted_documents(batches, pad):
    """Tokens by document, put together from (id, position)."""
    documents = {}
    for batch in batches:
        for row, (number, start) in enumerate(zip(batch["id"], batch["position"], strict=True)):
            tokens = batch["target"][row][batch["target"][row] != pad].tolist()
            if tokens:
                documents.setdefault(int(number), []).append((int(start), tokens))
    return {
        number: [token for _, part in sorted(parts) for token in part]
        for number, parts in documents.items()
    }


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_eval_lm_reads_real_binaries_whole(corpus, batch_size):
    task = make_task(corpus)
    task.load_dataset("test")
    documents = task.dataset("test")
    batches = list(task.eval_lm_dataloader(documents, batch_size=batch_size, num_workers=0))
    expected = {number: documents[number].tolist() for number in range(4)}
    assert predicted_documents(batches, task.dictionary.pad()) == expected
    assert sum(batch["ntokens"] for batch in batches) == documents.sizes.sum() == 61
    first = batches[0]["net_input"]["src_tokens"][:, 0]
    assert set(first.tolist()) - {task.dictionary.pad()} == {task.dictionary.eos()}
    if batch_size == 1:  # file order
        numbers = list(dict.fromkeys(int(batch["id"][0]) for batch in batches))
        assert numbers == [0, 1, 2, 3]


def test_eval_lm_shards_partition_the_documents(corpus):
    task = make_task(corpus)
    task.load_dataset("test")
    documents, read = task.dataset("test"), {}
    for shard in range(2):
        batches = task.eval_lm_dataloader(
            documents, batch_size=3, num_workers=0, num_shards=2, shard_id=shard
        )
        own = predicted_documents(list(batches), task.dictionary.pad())
        assert not set(own) & set(read)
        read.update(own)
    assert read == {number: documents[number].tolist() for number in range(4)}


def test_eval_lm_refuses_a_context_window(corpus):
    task = make_task(corpus)
    task.load_dataset("test")
    with pytest.raises(ValueError) as error:
        task.eval_lm_dataloader(task.dataset("test"), batch_size=1, context_window=4)
    assert str(error.value) == (
        "--context-window (4) does not go with document streams: give --segment-overlap instead"
    )


def test_max_tokens_says_how_many_streams_there_are(corpus):
    task = make_task(corpus)
    task.load_dataset("test")
    documents = task.dataset("test")
    batches = list(task.eval_lm_dataloader(documents, max_tokens=31, num_workers=0))
    expected = list(task.eval_lm_dataloader(documents, batch_size=3, num_workers=0))
    assert_same_batches(batches, expected)
    with pytest.raises(ValueError) as error:
        task.eval_lm_dataloader(documents, max_tokens=7)
    assert str(error.value) == (
        "--batch-size is missing, and --max-tokens (7) is less than one segment of "
        "--tokens-per-sample (8)"
    )


def training_batches(task, epoch=1, seed=1, workers=0, split="train", **options):
    iterator = task.get_batch_iterator(
        task.dataset(split), max_sentences=2, seed=seed, epoch=epoch, num_workers=workers, **options
    )
    return list(iterator.next_epoch_itr(shuffle=True))


def test_any_split_can_be_trained_on(corpus):
    batches = {}
    for name in ("train", "test"):  # the same documents, of one or the other
        task = make_task(corpus, stream_span=2, train_subset=name)
        task.load_dataset("test")
        task.datasets["train"] = task.datasets["test"]
        batches[name] = training_batches(task, split=name)
    assert_same_batches(batches["test"], batches["train"])
    task = make_task(corpus, stream_span=2)  # trains on another split: reads this one in order
    task.load_dataset("test")
    assert [len(training_batches(task, split="test")), len(batches["test"])] != [0, 0]
    first = training_batches(task, split="test")[0]["net_input"]["src_tokens"]
    assert not torch.equal(first, batches["test"][0]["net_input"]["src_tokens"])


def test_the_training_split_is_evaluated_whole_and_in_order(corpus):
    task = make_task(corpus, stream_span=2)
    task.load_dataset("train")
    documents = task.dataset("train")
    batches = list(task.eval_lm_dataloader(documents, batch_size=1, num_workers=0))
    numbers = list(dict.fromkeys(int(batch["id"][0]) for batch in batches))
    assert numbers == list(range(8))


@pytest.mark.parametrize("span", [0, 2])
def test_epochs_are_shuffled_anew_and_reproducible(corpus, span):
    task = make_task(corpus, stream_span=span)
    task.load_dataset("train")
    task.load_dataset("valid")
    documents = task.dataset("train")
    expected = {number: documents[number].tolist() for number in range(8)}
    pad, orders = task.dictionary.pad(), []
    for epoch in (1, 2, 3):
        batches = training_batches(task, epoch)
        assert_same_batches(batches, training_batches(task, epoch))
        assert predicted_documents(batches, pad) == expected
        orders.append([(batch["id"].tolist(), batch["position"].tolist()) for batch in batches])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    other_seed = training_batches(task, epoch=1, seed=7)
    assert [batch["id"].tolist() for batch in other_seed] != [ids for ids, _ in orders[0]]
    validation = training_batches(task, 1, split="valid")
    assert_same_batches(validation, training_batches(task, 2, split="valid"))
    flags = sum(int(batch["net_input"]["new_document"].sum()) for batch in validation)
    assert flags == 2  # whole documents, whatever the span


def test_workers_give_the_same_batches(corpus):
    task = make_task(corpus, stream_span=2)
    task.load_dataset("train")
    alone = training_batches(task)
    assert len(alone) > 4
    assert_same_batches(alone, training_batches(task, workers=2))
    assert_same_batches(alone, training_batches(task, data_buffer_size=3))


def test_an_epoch_resumes_in_the_middle(corpus):
    task = make_task(corpus, stream_span=2)
    task.load_dataset("train")
    options = {"max_sentences": 2, "seed": 1, "epoch": 2}
    whole = task.get_batch_iterator(task.dataset("train"), **options)
    batches = whole.next_epoch_itr(shuffle=True)
    for _ in range(3):
        next(batches)
    state = whole.state_dict()
    rest = list(batches)
    resumed = task.get_batch_iterator(task.dataset("train"), **options)
    resumed.load_state_dict(state)
    assert_same_batches(rest, resumed.next_epoch_itr(shuffle=True))


def test_the_task_refuses_what_would_drop_tokens(corpus):
    task = make_task(corpus)
    task.load_dataset("train")
    with pytest.raises(ValueError) as error:
        training_batches(task, skip_remainder_batch=True)
    assert str(error.value) == "--skip-remainder-batch would drop tokens: leave it out"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokens_per_sample": 0}, "--tokens-per-sample (0) must be at least 1"),
        ({"stream_span": -1}, "--stream-span (-1) must not be negative"),
        *(
            (
                {"tokens_per_sample": 8, "segment_overlap": overlap},
                f"--segment-overlap ({overlap}) must be at least 0 and less than "
                "--tokens-per-sample (8)",
            )
            for overlap in (-1, 8)
        ),
    ],
)
def test_sizes_of_the_task(corpus, options, message):
    cfg = LongMemLanguageModelingConfig(data=str(corpus), **options)
    with pytest.raises(ValueError) as error:
        LongMemLanguageModelingTask(cfg)
    assert str(error.value) == message


def test_a_missing_split_is_named(corpus):
    with pytest.raises(FileNotFoundError) as error:
        make_task(corpus).load_dataset("nothing")
    assert str(error.value) == (
        f"{corpus}/nothing.idx: no such file; make the data folder with preprocess/prepare_corpus.py"
    )
