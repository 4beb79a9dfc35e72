"""Trials on a few windows of an image: which halo and which rule are right for a function."""
