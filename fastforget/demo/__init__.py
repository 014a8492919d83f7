"""The shipped demonstration: ``python -m fastforget demo``."""
