"""``longmem-memorize``, ``longmem-generate`` and ``longmem-inspect``."""
