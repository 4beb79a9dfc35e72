"""What is written, and how it takes the place of what was there: paths, stores, arrays of labels.

What the bytes mean is elsewhere.
"""
