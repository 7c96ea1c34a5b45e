#!/usr/bin/env python3
"""The command ``longmem-convert``: a backbone of a pretrained language model. See --help."""

from longmem_fairseq.commands.convert import cli

if __name__ == "__main__":
    cli()
