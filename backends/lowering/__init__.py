"""From a block of the graph to functions: calls as torch calls, regions with their cuts, gradients that come late.

The stage runs what it makes; a step collects the late gradients.
"""
