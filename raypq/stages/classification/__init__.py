"""Classification: predictions from codes, their evaluation, and added classes."""
