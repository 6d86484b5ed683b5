"""Side-by-side benchmarks: raypq and its peers in one process, on the same data and threads.

A figure is a ratio of medians, taken from rounds in which every contender runs once: machines are
noisy, and a disturbance affects all contenders of a round.
"""
