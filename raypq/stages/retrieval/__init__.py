"""Retrieval: search, near-duplicates, evaluation and FAISS exchange."""
