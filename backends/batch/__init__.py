"""A global batch on its way to the ranks: read, checked, agreed upon, dealt into turns, packed on one token axis.

Attention, the stage and the step read its turns; the program is given batches through it.
"""
