"""What a person types: each file one command that parses, calls one job and prints its result."""
