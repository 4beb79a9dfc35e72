"""The steps after staging: pair tiles, look up merged ids, apply them, tabulate the objects."""
