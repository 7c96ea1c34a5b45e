"""Benchmarks and measurements, each run as ``python -m eval.NAME`` in the checkout's folder."""

from longmem_fairseq.utils.threads import wait_briefly

wait_briefly()  # before PyTorch is imported
