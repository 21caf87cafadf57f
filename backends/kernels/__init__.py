"""Arithmetic on one device: attention of documents and of rectangles, the loss head, rows packed as messages.

Each stands beside the slow version that it must equal. Attention and the stage call them, calibration times them.
"""
