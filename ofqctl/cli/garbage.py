"""When Python looks for garbage: not among the objects of libraries, which are many, and stay until the end."""

import gc

_paused = False


def pause() -> None:
    """Look for none while libraries are loaded."""
    global _paused  # noqa: PLW0603
    _paused = True
    gc.disable()


def go_on() -> None:
    """If that was paused: look for garbage again, but not among what there is now."""
    global _paused  # noqa: PLW0603
    if _paused:
        _paused = False
        gc.freeze()
        gc.enable()


def leave() -> None:
    """At the end of the process, leave all to the system."""
    gc.disable()
    gc.freeze()
