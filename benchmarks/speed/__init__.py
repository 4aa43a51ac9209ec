"""How fast the hot paths are, beside what people would use instead, at the same exactness. See ``__main__.py``."""
