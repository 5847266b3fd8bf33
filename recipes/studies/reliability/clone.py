"""The programs of a clone of this project that disturb its commands, and how their counts are printed."""

import argparse
import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parents[3]


def program(name: str) -> ModuleType:
    """A module of the project's tests, such as ``tests.artifact.kill``; outside of a clone, the process ends with 1."""
    path = _ROOT / f"{name.replace('.', '/')}.py"
    if not path.is_file():
        sys.exit(f"{path}: not there; these rows run in a clone of the project only")
    sys.path.insert(0, str(_ROOT))
    return import_module(name)


def options(description: str | None, count: str) -> argparse.Namespace:
    """What was asked for: what to disturb, how often, and the seed.

    Args:
        description: What the script does.
        count: The name of the number.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("what")
    parser.add_argument(f"--{count}", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def show(counts: Mapping[str, int], outcomes: tuple[str, ...], count: str) -> None:
    """Print how often each outcome came; every other one is a fault.

    Args:
        counts: How often it came, by outcome.
        outcomes: Those that are no faults.
        count: The name of how many there were in all.
    """
    figures = {count: sum(counts.values())} | {name.replace(" ", "_"): counts.get(name, 0) for name in outcomes}
    figures["faults"] = sum(number for name, number in counts.items() if name not in outcomes)
    print(json.dumps({"figures": figures, "versions": {}}))
