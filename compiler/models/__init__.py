"""Models that ship with Fourfold, plain modules like any user's."""
