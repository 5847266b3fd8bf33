"""The command line: each file has one command, which parses its options, calls one job and prints the result."""
