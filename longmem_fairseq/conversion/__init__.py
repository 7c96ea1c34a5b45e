"""Pretrained language models of other projects, as backbones."""
