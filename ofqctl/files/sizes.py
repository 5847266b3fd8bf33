"""Sizes of files in words."""


def megabytes(count: float) -> str:
    """Format a size in bytes, such as ``22.9 MB`` (10^6 bytes)."""
    return f"{count / 1e6:.2f} MB" if count < 10**7 else f"{count / 1e6:.1f} MB"
