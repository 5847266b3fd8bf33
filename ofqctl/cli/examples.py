"""How examples stand at the end of a command's help."""


def examples(*commands: str) -> str:
    """Each command on a line of its own, below a heading."""
    return "\n\n".join(("Examples:", *commands))
