"""Format the examples at the end of a command's help."""


def examples(*commands: str) -> str:
    """A heading, and each command on its own line."""
    return "\n\n".join(("Examples:", *commands))
