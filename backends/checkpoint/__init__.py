"""Checkpoints that go on under any plan of the same model: sharded tensors, optimizers by name, and one index.

The program alone saves and loads them.
"""
