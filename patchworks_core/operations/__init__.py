"""Filters and corrections of pixels before the segmentation function; in tiles as on the whole."""
