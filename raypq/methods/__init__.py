"""The quantizers and embeddings: one file each, all behind the contract in ``base``."""
