"""Where weights come from and go to: initialised by name, read from files into shards, written as whole ones again.

The program fills and empties its parameters through it.
"""
