"""Corpora and tasks, each made by ``python -m preprocess.NAME`` in the checkout's folder."""
