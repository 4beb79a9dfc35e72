"""Of a whole image, tile by tile: histogram, percentiles, thresholds, which tiles are empty."""
