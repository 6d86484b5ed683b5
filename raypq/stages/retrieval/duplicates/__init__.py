"""Near-duplicates: pairs of codes, groups of them, and what to keep."""
