"""Where a tile is: regions of pixels and the grid of tiles over them.

Pure: numbers in, numbers out. What runs on a tile, and where it is kept, is elsewhere.
"""
