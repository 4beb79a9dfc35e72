"""OME-Zarr as it is written: label images, pyramids, metadata, conversion of images.

Reading it is in `images`.
"""
