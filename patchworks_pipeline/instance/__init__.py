"""The home of an instance, and what is logged in it."""
