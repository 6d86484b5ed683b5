"""Metrics: accuracy, confusion, ranking and drift, as sums that merge in any order."""
