"""Small undamaged files of every kind, the damages to draw from, and what each command gives."""

import contextlib
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofqctl.cli.app import main
from ofqctl.training.state import Checkpoint

from . import damage

Command = Callable[[Path], Sequence[object]]

_TINY = ("--no-pretrained", "--num-classes", "2", "--model-kwargs", "img_size=16", "patch_size=8", "embed_dim=16")
_TINY += ("depth=1", "num_heads=2")
_NOT_COMPARED = ("notes", "images_per_second", "seconds", "output", "run", "model", "path", "onnx", "saved_logits")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """Run the program in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ended(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Try:
    """A kind of damage, and the commands that it is sent through.

    Attributes:
        what: The file and how it is damaged.
        source: The file or folder that is copied and damaged.
        file: The damaged file in it; empty for the file itself.
        how: Damages it.
        commands: Each takes the copy and gives the arguments.
        signed: Whether another result than that of the undamaged file is a fault.
    """

    what: str
    source: Path
    file: str
    how: Callable[[Path, random.Random], str]
    commands: Sequence[Command]
    signed: bool = True

    @property
    def kind(self) -> str:
        """Which of the `KINDS` it is of."""
        name = self.file or self.source.name
        if self.source.name == "recipe.yaml":
            return "recipes"
        if name == "results.json":
            return "results"
        if name in ("recipe.yaml", "summary.csv", "oscillation.safetensors"):
            return "beside"
        return "sealed" if self.signed else "re-signed"


KINDS = ("sealed", "re-signed", "results", "beside", "recipes")


class Subjects:
    """Small undamaged files of every kind, and what each command gives for them.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        draw = np.random.default_rng(0)
        for name in ("a", "b"):
            (self.data / name).mkdir(parents=True)
            for index in range(4):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.data / name / f"{index}.png")
        self.quantized, self.trained = folder / "quantized", folder / "trained"
        quick = ("--set", "calibration.images=8", "calibration.batch_size=4")
        given = ("vit_tiny_patch16_224", *_TINY, "--data", self.data)
        rounding = ("--recipe", "ptq/minmax", "--calib-data", self.data)
        must("quantize", *given, *rounding, "--output", self.quantized, *quick)
        training = ("training.batch_size=4", "training.phases.0.epochs=2", "training.phases.0.warmup_epochs=0")
        self._train_half_way("train", *given, "--recipe", "statsq", "--output", self.trained, *quick, *training)
        self.onnx = folder / "model.onnx"
        must("export", self.quantized, "--onnx", "--output", self.onnx, "--verify-images", 2)
        self.recipe = folder / "recipe.yaml"
        shutil.copy(self.quantized / "recipe.yaml", self.recipe)
        self.right: dict[str, Any] = {}

    def _train_half_way(self, *training: object) -> None:
        """Make the trained run, with the training state of its first epoch, so that there is something to resume."""
        save, saved = Checkpoint.save, []

        def keep(state: Checkpoint, directory: Path, *name: str) -> None:
            save(state, directory, *name)
            saved.append((directory / "last.pt").read_bytes())

        Checkpoint.save = keep  # type: ignore[method-assign]
        try:
            must(*training)
        finally:
            Checkpoint.save = save  # type: ignore[method-assign]
        (self.trained / "last.pt").write_bytes(saved[1])

    def tries(self) -> list[Try]:
        """Every damage with its commands; those that stand twice are drawn twice as often."""
        image = self.data / "a" / "0.png"
        common = [
            lambda path: ("inspect", path, "--json"),
            lambda path: ("evaluate", path, "--data", self.data, "--json"),
            lambda path: ("predict", path, image, "--json"),
        ]
        runs = [
            *common,
            lambda path: ("compare", path, self.quantized, "--json"),
            lambda path: ("analyze-oscillation", path, "--json"),
            lambda path: ("export", path, "--safetensors", "--output", path / "one.safetensors", "--json"),
        ]
        trained = [*runs, lambda path: ("train", "--resume", path, "--json")]
        resumed = [trained[-1], trained[-1], lambda path: ("analyze-oscillation", path, "--json")]
        quantize = ("quantize", "vit_tiny_patch16_224", *_TINY, "--calib-data", self.data, "--json")
        recipes = [
            lambda path: ("recipe", "show", path),
            lambda path: (*quantize, "--recipe", path, "--output", path.parent / "out"),
        ]
        found = self._of_run(self.quantized, runs) + self._of_run(self.trained, trained)
        for file in ("last.pt", "results.json", "oscillation.safetensors"):
            found.append(Try(f"trained: {file}, deleted", self.trained, file, damage.remove, trained, signed=False))
        found += [Try("trained: last.pt, bytes", self.trained, "last.pt", how, resumed) for how in damage.BYTES]
        state = Try("trained: last.pt, re-signed", self.trained, "last.pt", damage.change_state, resumed, signed=False)
        found += 4 * [state]
        found += 2 * [Try("model.onnx, bytes", self.onnx, "", how, common) for how in damage.BYTES]
        found += 4 * [Try("model.onnx, re-signed", self.onnx, "", damage.change_graph, common, signed=False)]
        found += 4 * [Try("recipe, a value", self.recipe, "", damage.change_yaml, recipes, signed=False)]
        found += [Try("recipe, bytes", self.recipe, "", how, recipes, signed=False) for how in damage.BYTES]
        return found

    def _of_run(self, source: Path, commands: Sequence[Command]) -> list[Try]:
        name, found = source.name, []
        for weight, file in ((4, "config.json"), (2, "results.json"), (1, "recipe.yaml")):
            how = damage.change_yaml if file.endswith("yaml") else damage.change_json
            found += weight * [Try(f"{name}: {file}, a value", source, file, how, commands)]
        for file in sorted(path.name for path in source.iterdir()):
            found += [Try(f"{name}: {file}, bytes", source, file, how, commands) for how in damage.BYTES]
        unsigned = partial(damage.change_json, unsigned=True)
        config, tensor = f"{name}: config.json, re-signed", f"{name}: a tensor, re-signed"
        found += 4 * [Try(config, source, "config.json", unsigned, commands, signed=False)]
        found += 3 * [Try(tensor, source, "model.safetensors", damage.change_weights, commands, signed=False)]
        return found

    def expected(self, source: Path, place: Path, command: Command) -> Any:
        """What the command gives for the undamaged file."""
        key = f"{source} {command(source)}"
        if key not in self.right:
            copied(source, place)
            ended = run(*command(place))
            assert ended.code == 0, ended.err
            self.right[key] = figures_of(ended, place)
            cleared(place.parent)
        return self.right[key]


def figures_of(ended: Ended, place: Path) -> Any:
    """What is compared: the figures of a result, and the weights that were trained."""
    try:
        values = json.loads(ended.out)
    except ValueError:
        values = ended.out
    trained = isinstance(values, dict) and "training" in values
    sums = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest() if trained else ""
    return _compared(values), sums


def _compared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _compared(inner) for key, inner in value.items() if key not in _NOT_COMPARED}
    return [_compared(inner) for inner in value] if isinstance(value, list) else value


def must(*arguments: object) -> None:
    ended = run(*arguments)
    if ended.code:
        raise RuntimeError(f"{arguments}: {ended.err}")


def copied(source: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)


def cleared(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
