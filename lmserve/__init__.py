"""lmserve: one async server that serves one language model to many people at once."""

__version__ = "0.1.0"
