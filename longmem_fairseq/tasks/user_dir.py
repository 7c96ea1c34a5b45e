"""Installs LongMem for ``--user-dir longmem_fairseq``; not to be imported by anything else.

fairseq imports the package, and then every module in its folders tasks/ and models/: this one is
here for that.
"""

from longmem_fairseq.fairseq_patches import install

install()
