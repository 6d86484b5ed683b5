"""The version of raypq."""

__version__ = "0.1.0"
