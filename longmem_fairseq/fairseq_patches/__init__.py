"""What fairseq 0.12 is patched for."""
