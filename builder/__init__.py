"""builder prepares everything that must be in place before a GPU pod starts. This package file imports nothing."""

__version__ = "0.1.0"
