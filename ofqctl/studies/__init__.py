"""Studies: many runs of the commands, compared: what they say, what was run of them, and their figures."""
