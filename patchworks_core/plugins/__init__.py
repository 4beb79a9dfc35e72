"""Segmentation functions that come with patchworks; each says what it needs."""
