"""A horizontally scalable WebSocket pub/sub broker."""

__version__ = "0.1.0"

__all__ = ["__version__"]
