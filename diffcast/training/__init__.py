"""The training loop, its settings, and what keeps a training going."""
