"""What is kept of every tile: the plan, its labels, its strips, its object sums.

What becomes of staged tiles is in `merge`.
"""
