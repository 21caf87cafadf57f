"""From checked profiles to the numbers of a machine, one file for each kind."""
