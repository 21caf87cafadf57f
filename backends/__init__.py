"""Runs what was decided: program.py is its front, compat.py holds the names that differ between versions of torch.

All else stands in folders that import each other one way only. compiler/ makes programs and verifies them.
"""
