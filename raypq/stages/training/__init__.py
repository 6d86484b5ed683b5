"""Training: by exact reduction over shards, or by gradient."""
