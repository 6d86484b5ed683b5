"""Encoding: features to codes."""
