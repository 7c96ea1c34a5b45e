#!/usr/bin/env python3
"""The command ``longmem-prepare``: fairseq binaries of text documents. See --help."""

from longmem_fairseq.commands.prepare import cli

if __name__ == "__main__":
    cli()
