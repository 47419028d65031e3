"""The version of the package; cards and checkpoints tell it."""

__version__ = "0.1.0"
