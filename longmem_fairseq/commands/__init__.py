"""``longmem-memorize``, ``longmem-generate`` and ``longmem-inspect``."""

from longmem_fairseq.commands.light_fairseq import import_fairseq

import_fairseq()  # before a command imports it in full
