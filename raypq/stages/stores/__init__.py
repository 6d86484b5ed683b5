"""Stores as stages write them: runs over shards, versions, models, work ids."""
