"""Which plans are tried: meshes, settings, pins, and what is said where none fits."""
