"""One step, from the first action of a schedule to the norm of the gradients, with random numbers by their place.

The program takes steps; calibration times what stands between kernels in one.
"""
