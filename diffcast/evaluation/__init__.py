"""The evaluation loop, its parts on disk, and its results."""
