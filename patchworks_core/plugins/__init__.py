"""Segmentation functions, and how a function is named, declared and versioned.

A plugin's path is written into every plan, so its module keeps its name.
"""
