"""Preparation of feature stores: extract, repack, split, import."""
