"""Side-by-side benchmarks: raypq and its peers in one process, on the same data and threads.

A figure is a ratio of medians, taken from rounds in which every contender runs once: machines are
noisy, and what disturbs one round disturbs all of it.
"""
