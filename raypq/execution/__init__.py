"""Execution: the interfaces of executors and worker pools, and threads of this process."""
