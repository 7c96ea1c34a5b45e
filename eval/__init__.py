"""Benchmarks and measurements, each run as ``python -m eval.NAME`` in the checkout's folder."""
