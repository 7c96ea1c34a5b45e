#!/usr/bin/env python3
"""Converts a checkpoint of the released LongMem code. See --help."""

from longmem_fairseq.commands.convert_released import cli

if __name__ == "__main__":
    cli()
