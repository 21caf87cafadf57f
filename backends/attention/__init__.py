"""Attention of a micro-step over what a batch plan puts on a rank: whole documents, teams, chunks, and a remap around.

The kernels do its arithmetic; the stage calls it, and a step ends its chains.
"""
