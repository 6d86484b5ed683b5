"""Files of a versioned store: snapshots, journals, leases, marks, sidecars, shard files."""
