"""What is read and written: features, class tables, codes, models, snapshots, storage."""
