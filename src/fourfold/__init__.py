"""Fourfold: a declarative parallelism compiler for PyTorch."""
