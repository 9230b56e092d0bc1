"""SEVIR and what has its layout: catalogue, reader, download, packed cache, check."""
