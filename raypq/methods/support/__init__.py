"""Shared parts of the methods."""
