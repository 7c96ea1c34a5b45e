"""The place in the documents where a loss became NaN."""

from typing import Dict, Optional

from torch import Tensor


class UpdateLosses:
    """The losses of the batches of one update: B streams, T tokens.

    They are looked at only where training ended, so nothing waits for the device.
    """

    def __init__(self):
        self.update, self.batches = None, []

    def add(self, update: int, sample: Dict, losses: Optional[Tensor]) -> None:
        """Keeps the losses of one batch.

        Args:
            sample: with ``id`` and ``position`` of :class:`DocumentStreamDataset`
            losses: B x T, or None from a criterion that does not keep them
        """
        if update != self.update:
            self.update, self.batches = update, []
        if losses is not None:
            self.batches.append((sample, losses))

    def not_finite(self, rank: int) -> Optional[str]:
        """Names the first token whose loss is NaN or infinite; None if there is none."""
        for sample, losses in self.batches:
            for stream, token in (~losses.isfinite()).nonzero().tolist():
                document, position = (sample[name][stream].item() for name in ("id", "position"))
                return (
                    f"the loss is {losses[stream, token].item()} at token {position + token} of "
                    f"document {document} (counted from 0), in stream {stream} of rank {rank}"
                )
        return None
