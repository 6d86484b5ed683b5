"""Data formats: features, class tables, codes, predictions, models, stores, storage."""
