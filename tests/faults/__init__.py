"""Faults on purpose: kills, errors of the disk, damaged files, bad functions; what came of them.

Everything is replayed from its numbers: `python -m tests.faults` prints the tables of
``docs/reliability.md``, and one line for each trial that went wrong.
"""
