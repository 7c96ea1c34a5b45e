"""Documents as contiguous streams, and prompts."""

from longmem_fairseq.data.document_stream_dataset import DocumentStreamDataset
from longmem_fairseq.data.indexed_documents import IndexedDocuments
from longmem_fairseq.data.prompts import documents_to_continue, lines_to_continue
from longmem_fairseq.data.stream_layout import Piece, lay_out_streams

__all__ = [
    "DocumentStreamDataset",
    "IndexedDocuments",
    "Piece",
    "documents_to_continue",
    "lay_out_streams",
    "lines_to_continue",
]
