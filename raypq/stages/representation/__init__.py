"""Evaluation of a feature space without a zero-shot classifier."""
