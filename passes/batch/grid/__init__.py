"""Micro-steps by ranks, searched."""
