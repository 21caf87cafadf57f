"""The stages that a rank holds: their parameters and how they are sharded, their calls, what waits in host memory.

The step drives it, through forwards and backwards of one micro-step; the program builds it.
"""
