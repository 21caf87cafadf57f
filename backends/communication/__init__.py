"""This process among the others and all they say to each other: groups, collectives, queues, small talk, lost ranks.

All of backends may import it, and it imports no other folder.
"""
