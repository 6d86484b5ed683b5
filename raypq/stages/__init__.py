"""Stages: the work of each job, without Ray."""
