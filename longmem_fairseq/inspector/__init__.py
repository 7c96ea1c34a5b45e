"""A page that shows the effect of memory on a text."""

from longmem_fairseq.inspector.inspection import Inspection, inspect_text
from longmem_fairseq.inspector.page import make_page

__all__ = ["Inspection", "inspect_text", "make_page"]
