"""Tools that know nothing of fairseq or of models."""
