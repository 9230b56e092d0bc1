"""Synthetic storms, and their files in SEVIR's layout."""
