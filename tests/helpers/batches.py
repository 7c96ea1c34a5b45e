"""Comparing batches of streams."""

import torch


def flattened(batch):
    """A batch as a dictionary of plain values, to compare batches."""
    net_input = batch["net_input"]
    return {
        **{name: value for name, value in batch.items() if name != "net_input"},
        **net_input,
    }


def assert_same_batches(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        batch, other = flattened(batch), flattened(other)
        assert list(batch) == list(other)
        for name, value in batch.items():
            same = (
                torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
            )
            assert same, name
