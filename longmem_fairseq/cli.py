"""What our own commands share: bad input is one line and exit code 2, never a traceback."""

import os
import sys
from typing import Callable


def run(main: Callable[[], None]) -> None:
    """Calls *main*; a ValueError or OSError it raises becomes ``PROGRAM: error: MESSAGE``."""
    try:
        main()
    except (ValueError, OSError) as error:
        program = os.path.basename(sys.argv[0])
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
