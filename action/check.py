"""What the GitHub Action does: quantize a model or take a run, and hold its figures against limits.

Everything is asked from ofqctl's commands and their JSON. Inputs are variables of the environment named OFQCTL_*; the
table is appended to the file $GITHUB_STEP_SUMMARY, the outputs to $GITHUB_OUTPUT. The exit code is 1 if a limit is not
met, or there is no figure to hold against it.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One line of the table.

    Attributes:
        figure: What was measured.
        value: Its value; None if there is none.
        unit: Its unit.
        limit: What it is held against, or None.
        is_lowest: Whether the limit is the lowest value that passes; otherwise it is the largest.
        why: Why there is no value.
    """

    figure: str
    value: float | None
    unit: str
    limit: float | None
    is_lowest: bool = False
    why: str = "it was not measured"

    @property
    def met(self) -> bool:
        """Whether the limit is met; a limit without a figure is not."""
        if self.limit is None:
            return True
        if self.value is None:
            return False
        return self.value >= self.limit if self.is_lowest else self.value <= self.limit

    @property
    def shown(self) -> str:
        """The figure in words."""
        return self.why if self.value is None else f"{self.value:.4g} {self.unit}"

    @property
    def bound(self) -> str:
        """The limit in words."""
        return "" if self.limit is None else f"{'at least' if self.is_lowest else 'at most'} {self.limit:g} {self.unit}"


def asked(name: str) -> str:
    """An input; empty if it is not given."""
    return os.environ.get(f"OFQCTL_{name}", "").strip()


def limit(name: str) -> float | None:
    """A limit, or None."""
    text = asked(name)
    try:
        return float(text) if text else None
    except ValueError:
        raise SystemExit(f"::error::{name.lower().replace('_', '-')}: {text!r} is not a number") from None


def ofqctl(*words: str, may_fail: bool = False) -> dict[str, Any]:
    """The JSON that a command prints."""
    print(f"[command]ofqctl {shlex.join(words)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "ofqctl", *words, "--json"], stdout=subprocess.PIPE, check=False)
    if ended.returncode and not may_fail:
        raise SystemExit(ended.returncode)
    return dict(json.loads(ended.stdout))


def quantized(model: str, run: str) -> None:
    """Quantize a model as the inputs say."""
    words = ["quantize", model, "--output", run]
    for option in ("recipe", "calib-data", "data"):
        value = asked(option.upper().replace("-", "_"))
        words += [f"--{option}", value] if value else []
    ofqctl(*words, *shlex.split(asked("OPTIONS")))


def measured(run: str, *, anew: bool) -> tuple[dict[str, Any], float | None, float | None]:
    """What `inspect` says of a run, its top-1 accuracy, and how many points that is below the float model's."""
    about = ofqctl("inspect", run)
    evaluation = (about.get("results") or {}).get("evaluation") or {}
    top1 = (evaluation.get("quantized") or {}).get("top1")
    paired = (evaluation.get("paired") or {}).get("difference")
    if anew:
        top1 = ofqctl("evaluate", run, "--data", asked("DATA"))["top1"]
    return about, top1, None if paired is None else -paired


def oscillating(run: str, most: float | None) -> Row:
    """The share of weights that oscillate in the worst layer; only asked for if there is a limit."""
    row = Row("oscillating, worst layer", None, "%", most)
    if most is not None:
        said = ofqctl("analyze-oscillation", run, "--max-oscillating", f"{most:g}", may_fail=True)
        gates = said.get("gates") or []
        row.value = 100 * gates[0]["value"] if gates else None
        row.why = said.get("error", {}).get("message", row.why)
    return row


def table(run: str, about: dict[str, Any], rows: list[Row]) -> str:
    """The summary in Markdown."""
    lines = [f"### ofqctl: `{run}`", "", f"{about['model']}, recipe {about['recipe']}", ""]
    lines += ["| figure | value | limit | |", "|---|---|---|---|"]
    for row in rows:
        mark = "" if row.limit is None else ("met" if row.met else "**not met**")
        lines.append(f"| {row.figure} | {' '.join(row.shown.replace('|', '/').split())} | {row.bound} | {mark} |")
    return "\n".join(lines) + "\n\n"


def append(variable: str, text: str) -> None:
    """Append to the file that a variable of the runner names."""
    with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
        file.write(text)


def main() -> int:
    """Quantize, measure, compare and tell."""
    limits = {name: limit(name) for name in ("MIN_TOP1", "MAX_DROP", "MAX_SIZE", "MAX_OSCILLATING")}
    model, run = asked("MODEL"), asked("RUN")
    if model:
        quantized(model, run)
    about, top1, drop = measured(run, anew=bool(asked("DATA")) and not model)
    size = about["size"]
    rows = [
        Row("top-1", top1, "%", limits["MIN_TOP1"], is_lowest=True),
        Row("lost against float", drop, "points", limits["MAX_DROP"]),
        Row("size", size["total"] / 1e6, "MB", limits["MAX_SIZE"]),
        Row("size of the float model", size["float_model"] / 1e6, "MB", None),
        oscillating(run, limits["MAX_OSCILLATING"]),
    ]
    rows = [row for row in rows if row.value is not None or row.limit is not None]
    missed = [row for row in rows if not row.met]
    append("GITHUB_STEP_SUMMARY", table(run, about, rows))
    outputs = {
        "run": run,
        "top1": "" if top1 is None else f"{top1:g}",
        "megabytes": f"{size['total'] / 1e6:.4g}",
        "passed": str(not missed).lower(),
    }
    append("GITHUB_OUTPUT", "".join(f"{name}={value}\n" for name, value in outputs.items()))
    for row in missed:
        print(f"::error title=ofqctl::{row.figure}: {' '.join(row.shown.split())}; allowed is {row.bound}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
