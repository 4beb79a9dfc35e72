"""Whole jobs, image to merged labels, beside other tools: ``make bench``."""
