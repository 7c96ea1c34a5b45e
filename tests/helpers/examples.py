"""How many examples a property is tried with."""

import os


def examples(usual: int) -> int:
    """$LONGMEM_HYPOTHESIS_EXAMPLES if it is set, to search for hours, else *usual*."""
    return int(os.environ.get("LONGMEM_HYPOTHESIS_EXAMPLES", usual))
