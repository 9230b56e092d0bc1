"""How each format stores a frame, and what it says about it."""
