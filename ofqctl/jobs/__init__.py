"""The library functions behind the commands: each takes a request and returns a result."""
