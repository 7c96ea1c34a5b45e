"""Documents as contiguous streams."""

from longmem_fairseq.data.document_stream_dataset import DocumentStreamDataset
from longmem_fairseq.data.stream_layout import Piece, lay_out_streams

__all__ = ["DocumentStreamDataset", "Piece", "lay_out_streams"]
