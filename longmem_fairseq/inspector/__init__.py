"""A page that shows what memory did to a text."""

from longmem_fairseq.inspector.inspection import Inspection, inspect_text
from longmem_fairseq.inspector.page import make_page

__all__ = ["Inspection", "inspect_text", "make_page"]
