"""Classification: predictions from codes, their evaluation, added classes."""
