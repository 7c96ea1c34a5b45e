"""Text documents as fairseq binaries."""
