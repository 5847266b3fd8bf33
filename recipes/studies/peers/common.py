"""What the scripts of all programs have in common: arguments, float model, images, figures and what is printed.

A script names its variants, each a function that makes a quantized model of a `Task`. Everything else is the same for
every program: the images and their preprocessing are the float model's; the float model that speeds are relative to is
the ONNX file that ``ofqctl export`` writes, in ONNX Runtime; programs compute with one thread, take turns pass by pass,
and CPU time counts. Printed is one JSON document; whatever else a program prints goes to stderr.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

import ofqctl
from ofqctl.data import DataSpec, ImageLoader, open_data
from ofqctl.export import OnnxModel

_PASSES, _WARM_UP = 20, 3
_BATCHES = (1, 8)  # images in a timed pass; eight at a time are evaluated, too, so that nothing is compiled for more


@dataclass(frozen=True)
class Task:
    """What a variant has.

    Attributes:
        model: The float model, (B, 3, H, W) -> (B, classes); a variant may change it.
        float_file: The same model as an ONNX file.
        images: Calibration images, (B, 3, H, W) each, normalized.
        folder: Folder for what it writes.
    """

    model: nn.Module
    float_file: Path
    images: list[Tensor]
    folder: Path


@dataclass(frozen=True)
class Made:
    """What a variant made.

    Attributes:
        run: The quantized model, images (B, 3, H, W) -> logits (B, classes).
        files: What the program writes of it.
    """

    run: Callable[[Tensor], Tensor]
    files: Sequence[Path]


Variant = Callable[[Task], Made]


@contextlib.contextmanager
def importing(package: str) -> Iterator[None]:
    """Within the block a program is imported, ahead of what is timed; without it, the script ends with one line."""
    with _printing_to_stderr():
        try:
            yield
        except ImportError as error:
            _end(f"needs the package {package} ({error}): pip install {package}")


def main(variants: Mapping[str, Variant], packages: Sequence[str], *, beside_torch: bool = False) -> None:
    """Make the variant that the arguments name, measure it, and print the figures.

    Args:
        variants: The variants by name.
        packages: Packages whose versions are told.
        beside_torch: Whether the speed beside the float model in torch is measured as well.
    """
    arguments = _arguments(list(variants))
    torch.set_num_threads(1)
    try:
        with _printing_to_stderr(), tempfile.TemporaryDirectory() as folder:
            figures = _figures(variants[arguments.variant], arguments, Path(folder), beside_torch)
    except Exception as error:  # noqa: BLE001  what other programs raise has no common base
        _end(f"{arguments.variant}: {type(error).__name__}: {error}")
    print(json.dumps({"figures": figures, "versions": {name: version(name) for name in packages}}, indent=1))


def _arguments(variants: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=variants)
    parser.add_argument("--model", required=True, help="what ofqctl.load takes: local-dir:PATH, a timm name")
    parser.add_argument("--calib-data", required=True, help="images to calibrate on")
    parser.add_argument("--calib-images", type=int, default=128, help="number of images to calibrate on")
    parser.add_argument("--data", required=True, help="labelled images to measure on")
    parser.add_argument("--predictions", help=".csv file for a row for each image of --data")
    parser.add_argument("--limit", type=int, help="number of images of --data to measure on")
    return parser.parse_args()


def _figures(variant: Variant, arguments: argparse.Namespace, folder: Path, beside_torch: bool) -> dict[str, float]:
    float_file, judged, float_model = folder / "float.onnx", ofqctl.load(arguments.model), ofqctl.load(arguments.model)
    ofqctl.export(float_model, float_file)
    data = open_data(DataSpec(arguments.calib_data), purpose="calibrate")
    loader = ImageLoader(data, judged.preprocess, batch_size=8, limit=arguments.calib_images)
    task = Task(ofqctl.load(arguments.model), float_file, [images for images, _ in loader], folder)

    start = time.process_time()
    made = variant(task)
    figures: dict[str, float] = {"make_seconds": time.process_time() - start}
    figures["bytes"] = sum(path.stat().st_size for path in made.files)

    in_runtime = OnnxModel(float_file, threads=1)
    for count in _BATCHES:
        images = torch.cat(task.images)[:count].repeat(count, 1, 1, 1)[:count]
        models = {"peer": made.run, "float": in_runtime} | ({"torch": in_torch(float_model)} if beside_torch else {})
        seconds = _seconds(models, images)
        figures[f"ms_{count}"] = 1000 * seconds["peer"]
        figures[f"speed_{count}"] = seconds["float"] / seconds["peer"]
        if beside_torch:
            figures[f"speed_torch_{count}"] = seconds["torch"] / seconds["peer"]

    def forward(images: Tensor) -> Tensor:
        return made.run(images)

    judged.forward = forward  # preprocessing, labels and figures stay the float model's
    accuracy = ofqctl.evaluate(
        judged,
        arguments.data,
        limit=arguments.limit,
        device="cpu",
        batch_size=_BATCHES[-1],
        save_predictions=arguments.predictions,
    )
    return {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss} | figures


def _seconds(models: Mapping[str, Callable[[Tensor], Tensor]], images: Tensor) -> dict[str, float]:
    """The median CPU seconds of a pass of each model; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for done in range(-_WARM_UP, _PASSES):
        for name, run in models.items():
            start = time.process_time()
            run(images)
            if done >= 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def in_torch(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A model of torch without gradients; not in inference mode, which tensors of some programs do not know."""

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return model(images)

    return run


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Within the block, what any library prints goes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _end(reason: str) -> NoReturn:
    """End with 1 and one line on stderr."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(1)
