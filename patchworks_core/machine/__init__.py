"""Where work runs: the budget of cores and memory, devices, workers, retries, progress.

What the work is, and what it writes, is elsewhere.
"""
