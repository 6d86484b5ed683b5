"""Ray: the only code that imports it."""
