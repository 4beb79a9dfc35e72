"""Which labels on either side of a face are one object: strips, pairs, rules, the lookup table.

Pure: arrays in, arrays out. Reading strips and writing tables is elsewhere.
"""
