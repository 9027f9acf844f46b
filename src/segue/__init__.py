"""Segue: customers change channels, their context doesn't."""

__version__ = "0.1.0"
