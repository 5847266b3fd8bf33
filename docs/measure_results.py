"""Measure the studies that the documentation shows, as far as the time allows, and write their reports and pages.

    python docs/measure_results.py --data ../shared/data --hours 2

A study whose rows are all done is written to docs/results/; the others are left as they are, and listed with the
command that measures the rest and about how long that takes. What was interrupted goes on where it was.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
STUDIES = (
    "training_speed",
    "reliability",
    "peers",
    "costs",
    "erq_stages",
    "oscillation",
    "ptq",
    "imagenette",
    "evolq",
    "fast",
    "widths",
    "mixed",
    "methods",
)  # in the order in which they get their time
DATA = {
    "imagenet-train": "imagenet-calib-1000",
    "imagenet-val": "imagenet-val-800",
    "imagenette-train": "imagenette-128/train",
    "imagenette-val": "imagenette-128/val",
}
MODELS = {"vit": "vit_tiny_patch16_224"}


def main() -> int:
    """Measure, and say what was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of images and weights")
    parser.add_argument("--hours", type=float, default=2.0, help="time for all of them together")
    parser.add_argument("--only", nargs="*", default=STUDIES, help="studies to measure")
    given = parser.parse_args()
    until = time.monotonic() + 3600.0 * given.hours
    left: list[str] = []
    for name in given.only:
        words = ["run", name, *_places(name, given.data)]
        budget = max(0.0, until - time.monotonic())
        needed = _ofqctl(*words, "--dry-run", "--json")["estimate"]
        if needed is None or needed <= budget:
            _ofqctl(*words, "--time-budget", f"{budget:.0f}", shown=True)
        status = _ofqctl("status", *words[1:], "--json")
        if all(row["state"] in ("done", "left out") for row in status["rows"]):
            report = _ofqctl("report", *words[1:], "--json")
            (DOCS / "results" / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        else:
            takes = "" if status["estimate"] is None else f"  # about {status['estimate'] / 60:.0f} min"
            left.append(shlex.join(["ofqctl", "study", *words]) + takes)
    subprocess.run([sys.executable, str(DOCS / "generate_results.py")], check=True)
    for line in left:
        print(f"left out  {line}")
    return 0


def _places(name: str, folder: Path) -> list[str]:
    """Where the data and the models of a study lie."""
    shipped = next(study for study in _ofqctl("ls", "--json")["studies"] if study["name"] == name)
    data = [f"{own}={folder / DATA[own]}" for own in shipped["data"]]
    models = [f"{own}=local-dir:{folder / MODELS[own]}" for own in shipped["models"] if own in MODELS]
    return [*(["--data", *data] if data else []), *(["--model", *models] if models else [])]


def _ofqctl(*words: str, shown: bool = False) -> Any:
    """What ``ofqctl study`` prints: its document, or, if it is only shown, None."""
    command = [sys.executable, "-m", "ofqctl", "study", *words]
    if shown:
        subprocess.run(command, check=False)
        return None
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


if __name__ == "__main__":
    sys.exit(main())
