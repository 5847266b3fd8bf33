"""Commands that replace an output of a tiny model, each in a process of its own that can be killed.

The process is forked from this one, which has imported everything, so that many of them take little time.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from PIL import Image

from ofqctl.artifact import load_run
from ofqctl.cli.app import main
from ofqctl.files import WEIGHTS

MODEL = ["vit_tiny_patch16_224", "--no-pretrained", "--num-classes", "2", "--model-kwargs"]
MODEL += ["img_size=16", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=1"]
BITS = ["--recipe", "ptq/minmax", "--set", "calibration.images=2", "weights.bits={}"]
TRAIN = ["--recipe", "statsq", "--data", "F/images", "--set", "training.batch_size=4", "training.phases.0.epochs=2"]
TRAIN += ["calibration.images=4", "--checkpoint-every", "2"]
Results = Mapping[str, Counter[str]]  # how often each result came, by command
OTHERS = "thesis.txt"  # somebody else's file, which every command leaves alone


@dataclass(frozen=True)
class Command:
    """A command that replaces something.

    Attributes:
        name: Its name.
        old: Arguments that make the old state in the folder ``F``.
        new: Arguments that replace it; after a kill, they are given again.
        state: The state of a folder; raises if it is neither old nor new.
        share: Its share of the moments; one that takes long has a smaller one.
    """

    name: str
    old: list[list[str]]
    new: list[str]
    state: Callable[[Path], object]
    share: int = 2


def run_state(folder: Path) -> str | None:
    """The weights of the run in a folder, read as every command reads them; None if there is none."""
    run = folder / "run"
    if not (run / "config.json").exists():
        return None
    load_run(run)
    return hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()


def file_state(name: str) -> Callable[[Path], object]:
    return lambda folder: hashlib.sha256((folder / name).read_bytes()).hexdigest()


def _quantize(bits: int, run: str) -> list[str]:
    return ["quantize", *MODEL, *[word.format(bits) for word in BITS], "--output", f"F/{run}", "--overwrite"]


_ONNX = ["--onnx", "--verify-images", "2", "--output", "F/model.onnx", "--overwrite"]
_TRAIN = ["train", *MODEL, *TRAIN, "--output", "F/run"]
_PAGE = ["--html", "F/page.html"]
COMMANDS = [
    Command("quantize", [_quantize(4, "run")], _quantize(2, "run"), run_state),
    Command(
        "export",
        [_quantize(4, "run"), _quantize(2, "source"), ["export", "F/run", *_ONNX]],
        ["export", "F/source", *_ONNX],
        file_state("model.onnx"),
        share=1,
    ),
    Command("train", [], [*_TRAIN, "--resume", "auto"], run_state),
    Command("train over a run", [_quantize(4, "run")], [*_TRAIN, "--overwrite"], run_state),
    Command(
        "html",
        [_quantize(4, "run"), _quantize(2, "source"), ["compare", "F/run", "F/run", *_PAGE]],
        ["compare", "F/source", "F/run", *_PAGE],
        file_state("page.html"),
    ),
]


def prepare(command: Command, folder: Path) -> None:
    """Make the old state."""
    for number in range(24):
        path = folder / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 200 * (number % 2), 90)).save(path)
    for arguments in command.old:
        assert ended(started(arguments, folder)) == 0, arguments
    (folder / "run").mkdir(exist_ok=True)
    if command.old:
        (folder / "run" / OTHERS).write_text("mine")


def started(arguments: list[str], folder: Path, before: Callable[[], object] = lambda: None) -> int:
    """Start a command with ``F`` in its arguments standing for ``folder``; gives the process."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        before()
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False, buffering=1) for stream in (1, 2))  # noqa: SIM115
        code = main([word.replace("F/", f"{folder}/") for word in arguments])
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def asked_for(description: str | None, *, moments: int) -> argparse.Namespace:
    """The arguments of a program that disturbs the commands at random moments."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--moments", type=int, default=moments)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=[command.name for command in COMMANDS], help="one command")
    return parser.parse_args()


def faulty(results: Results) -> bool:
    """Whether a result of some command is a fault."""
    return any(key.startswith("FAULT") for counts in results.values() for key in counts)


def told(results: Results) -> bool:
    """Print the results of each command; gives whether one is a fault."""
    for name, counts in results.items():
        print(f"{name}: {sum(counts.values())} moments, {dict(counts)}")
    return faulty(results)


def divided(moments: int, commands: Sequence[Command], only: str = "") -> Iterator[tuple[Command, range]]:
    """Commands, or only the one of a name, with the numbers of the moments of each."""
    chosen = [command for command in commands if only in ("", command.name)]
    ends = list(accumulate((command.share for command in chosen), initial=0))
    for command, (low, high) in zip(chosen, pairwise(ends), strict=True):
        yield command, range(moments * low // ends[-1], moments * high // ends[-1])


def names(folder: Path) -> list[str]:
    """Everything in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@contextlib.contextmanager
def copied(old: Path, folder: Path) -> Iterator[Path]:
    """A copy of the old state of one's own."""
    shutil.copytree(old, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)
