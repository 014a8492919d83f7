"""A report as people look at it: text, page, charts."""
