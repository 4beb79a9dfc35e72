"""Readers: one module per family of formats, each giving an `Opened` image and nothing decoded."""
