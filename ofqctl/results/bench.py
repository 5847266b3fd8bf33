"""The results of ``ofqctl bench step`` and ``ofqctl bench infer``."""

from typing import Literal

from ofqctl.results.document import Document, IfAny, Part
from ofqctl.results.run import Bits


class Step(Part):
    """An optimizer step.

    Attributes:
        seconds_median: Median of its seconds.
        seconds_min: Smallest of its seconds.
        peak_bytes: Memory that it allocates, beside weights and the state of the optimizer.
    """

    seconds_median: float
    seconds_min: float
    peak_bytes: float


class TrackerCost(Part):
    """What the oscillation tracker costs.

    Attributes:
        ratio: How many times as much a step with it takes.
        weights: Number of weights that it follows.
        bytes_per_weight: Memory for each of these.
    """

    ratio: Step
    weights: int
    bytes_per_weight: float


class BenchStepResult(Document):
    """An optimizer step in float, quantized, quantized with the tracker, and as the recipe takes it.

    Attributes:
        model: timm's architecture.
        recipe: Name of the recipe.
        bits: Bits of the layers that are neither first nor last.
        float: The step in float.
        quantized: The quantized step.
        tracked: The quantized step with the tracker.
        whole: The step as the recipe's first phase takes it: with its objective, a teacher, its remedies and its
            tracker; None if it does not say how to train such a model.
        ratio: How many times as much as the float step the quantized one takes.
        whole_ratio: How many times as much as the float step the whole one takes.
        tracker: What the tracker costs.
        batch_size: Number of images in a step.
        steps: Number of timed steps.
        amp: Autocast of the forward pass, if any.
        fused: Whether the quantizers were compiled.
        device: Device that it was computed on.
        threads: Number of threads of torch.
        torch: Version of torch.
    """

    command: Literal["bench step"] = "bench step"
    model: str
    recipe: str
    bits: Bits
    float: Step
    quantized: Step
    tracked: Step
    whole: Step | None
    ratio: Step
    whole_ratio: Step | None
    tracker: TrackerCost
    batch_size: int
    steps: int
    amp: Literal["bf16"] | None
    fused: bool
    device: str
    threads: int
    torch: str


class Pass(Part):
    """A forward pass, or how many times as much as another it takes.

    Attributes:
        cpu_seconds_median: Median of its CPU seconds, of all threads together.
        seconds_median: Median of its seconds.
        seconds_min: Smallest of its seconds.
    """

    cpu_seconds_median: float
    seconds_median: float
    seconds_min: float


class MeasuredFile(Part):
    """Figures of a file.

    Attributes:
        file: Its path, or what it was asked for as.
        batches: A pass, by number of images.
        load_seconds_median: Median of the seconds to load it.
        peak_bytes: Peak memory of a process that runs it; None where it is not measured.
        file_bytes: Its size.
        make_cpu_seconds: CPU seconds that another program took to make it, if one did.
        operators: Seconds of a pass by type of operator, with ``--profile``.
        kinds: The same, summed to a few kinds.
        top1: Accuracy in percent, with ``--data``.
    """

    file: str
    batches: dict[str, Pass]
    load_seconds_median: float
    peak_bytes: int | None
    file_bytes: int
    make_cpu_seconds: float | None
    operators: IfAny[dict[str, float]] = None
    kinds: IfAny[dict[str, float]] = None
    top1: IfAny[float] = None


class Ratio(Part):
    """How many times as much as the first file another takes; keys as in its figures."""

    batches: dict[str, Pass]
    load_seconds_median: IfAny[float] = None
    peak_bytes: IfAny[float] = None
    file_bytes: IfAny[float] = None


class BenchInferResult(Document):
    """Inference of files side by side.

    Attributes:
        files: Figures by name: ``model``, then as given with ``--against``.
        ratio: How many times as much as ``model`` the others take.
        runtime: What ran them, with its version.
        threads: Number of threads of an operator.
        batch_sizes: Numbers of images in a pass.
        runs: Number of timed passes.
    """

    command: Literal["bench infer"] = "bench infer"
    files: dict[str, MeasuredFile]
    ratio: dict[str, Ratio]
    runtime: str
    threads: int
    batch_sizes: tuple[int, ...]
    runs: int
