"""Metrics: accuracies, confusions, rankings and drift, as sums that merge in any order."""
