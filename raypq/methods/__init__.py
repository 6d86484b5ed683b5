"""Quantizers and embeddings: one method a file, with the interface in ``base``."""
