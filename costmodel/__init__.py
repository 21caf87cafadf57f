"""Seconds and bytes: pure arithmetic on numbers and a resolved machine, without torch and without files."""
