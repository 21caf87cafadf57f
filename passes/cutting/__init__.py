"""The flow program that cuts ops over the tensor axis."""
