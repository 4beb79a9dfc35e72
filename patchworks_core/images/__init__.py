"""What is read: an image, its axes, channels and calibration, whatever file or array it is in.

What follows from its pixels is in `statistics`.
"""
