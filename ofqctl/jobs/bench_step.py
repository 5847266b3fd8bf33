"""Measure time and memory of an optimizer step in float, quantized, with the tracker, and as a recipe takes it."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ofqctl.convert import convert
from ofqctl.data import Batch
from ofqctl.devices import DeviceName, denormals_flushed, pick_device
from ofqctl.distill import TERMS, Teacher
from ofqctl.models import LoadedModel, ModelRequest, load_model
from ofqctl.oscillation import OscillationTracker
from ofqctl.progress import Progress, silent
from ofqctl.ptq import calibrate
from ofqctl.quantizers import fused
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.training import Training
from ofqctl.results.bench import BenchStepResult, Step, TrackerCost
from ofqctl.results.run import Bits
from ofqctl.training import Engine, Processes, SameBatch

_EPOCH = 1000  # steps of an epoch of a recipe's schedules; more than are measured
_WARM_UP = 2  # steps that are not timed: the first one compiles and creates the optimizer's state


@dataclass(frozen=True)
class BenchStepRequest:
    """A request to measure optimizer steps.

    Attributes:
        model: The float model.
        recipe: The recipe of the quantized model, with or without a ``training`` part.
        batch_size: Number of images in one optimizer step.
        device: Device to compute on.
        bf16: Whether forward passes run under bfloat16 autocast.
        steps: Number of timed optimizer steps of each model, >= 1.
        fused: Whether the quantizers' functions are compiled.
        seed: Seed of random weights, images and targets.
    """

    model: ModelRequest
    recipe: Recipe
    batch_size: int = 16
    device: DeviceName = "auto"
    bf16: bool = False
    steps: int = 10
    fused: bool = True
    seed: int = 0


def bench_step(request: BenchStepRequest, progress: Progress = silent) -> BenchStepResult:
    """Measure an optimizer step in float, quantized, with the tracker, and as the recipe's first phase takes it.

    The models take turns, so that other load on the machine affects all. A step is forward, cross-entropy, backward and
    AdamW on the same random images; that of the recipe has its objective, a teacher if it learns from one, which is the
    float model here, its remedies, its optimizer and its tracker. Peak memory counts what is allocated during a step:
    activations, gradients and buffers, not the weights and the optimizer's state.

    Raises:
        OfqctlError: The model or the recipe cannot be used, or the device is absent.
    """
    device = pick_device(request.device)
    progress("load the model", 0, None)
    steps, architecture, notes = _steps(request, device)
    tracked, whole = steps["tracked"], steps.get("whole")
    assert isinstance(tracked, _TrainingStep) and tracked.tracker is not None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with fused(request.fused), denormals_flushed(device):
        for name, step in steps.items():
            progress(f"warm up {name}", 0, None)
            for _ in range(_WARM_UP):
                step()
        for done in range(request.steps):
            progress("steps", done, request.steps)
            for name, step in steps.items():
                seconds[name].append(_seconds(step, device))
        progress("steps", request.steps, request.steps)
        peak = {name: _peak_bytes(step, device) for name, step in steps.items()}
    figures = {
        name: Step(
            seconds_median=statistics.median(seconds[name]),
            seconds_min=min(seconds[name]),
            peak_bytes=peak[name],
        )
        for name in steps
    }
    weights, bytes_per_weight = _kept(tracked.tracker)
    return BenchStepResult(
        model=architecture,
        recipe=request.recipe.name,
        bits=Bits(weights=request.recipe.weights.bits, activations=request.recipe.activations.bits),
        float=figures["float"],
        quantized=figures["quantized"],
        tracked=figures["tracked"],
        whole=figures.get("whole"),
        ratio=_ratio(figures["quantized"], figures["float"]),
        whole_ratio=None if whole is None else _ratio(figures["whole"], figures["float"]),
        tracker=TrackerCost(
            ratio=_ratio(figures["tracked"], figures["quantized"]), weights=weights, bytes_per_weight=bytes_per_weight
        ),
        batch_size=request.batch_size,
        steps=request.steps,
        amp="bf16" if request.bf16 else None,
        fused=request.fused,
        device=str(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        notes=tuple(notes),
    )


def _ratio(ours: Step, theirs: Step) -> Step:
    return Step(
        seconds_median=ours.seconds_median / theirs.seconds_median,
        seconds_min=ours.seconds_min / theirs.seconds_min,
        peak_bytes=ours.peak_bytes / theirs.peak_bytes,
    )


def _kept(tracker: OscillationTracker) -> tuple[int, float]:
    """Number of weights that the tracker follows, and bytes for each, without the trajectories of a few weights."""
    state = tracker.state_dict()
    each = [tensor for name, tensor in state.items() if name.endswith((".codes", ".direction", ".frequency"))]
    weights = int(tracker.summary(1.0)["total"]["weights"])
    return weights, sum(t.numel() * t.element_size() for t in each) / max(1, weights)


def _steps(request: BenchStepRequest, device: torch.device) -> tuple[dict[str, Callable[[], None]], str, list[str]]:
    """Training steps of the models on the same data, the architecture, and notes."""
    steps: dict[str, Callable[[], None]] = {}
    settings, notes = _trained(request), []
    for name in ("float", "quantized", "tracked", *(() if settings is None else ("whole",))):
        torch.manual_seed(request.seed)
        loaded = load_model(request.model)
        size = tuple(loaded.data_config["input_size"])
        images = torch.randn(request.batch_size, *size, device=device)
        teaching = settings is not None and settings.distillation is not None and name == "whole"
        original = copy.deepcopy(loaded.model) if teaching else None
        plan = Plan(modules={})
        if name != "float":
            plan = convert(loaded.model, request.recipe, size)
            calibrate(loaded.model.to(device), plan, [images])
        model = loaded.model.to(device).train()
        if name == "whole" and settings is not None:
            steps[name] = _WholeStep(request, settings, loaded, original, plan, images)
        else:
            tracker = OscillationTracker(model) if name == "tracked" else None
            steps[name] = _TrainingStep(model, images, tracker, bf16=request.bf16)
        notes = list(loaded.notes)
    if settings is None and request.recipe.training is not None:
        notes.append(f"recipe '{request.recipe.name}': learns embeddings, so its own step is not measured")
    return steps, loaded.architecture, notes


def _trained(request: BenchStepRequest) -> Training | None:
    """How the recipe's first phase trains with the batch that is measured; None if it trains no classifier."""
    settings = request.recipe.training
    if settings is None or any("of_embeddings" in TERMS[name].traits for name in settings.objective):
        return None
    return settings.model_copy(update={"batch_size": request.batch_size, "phases": settings.phases[:1]})


class _WholeStep:
    """An optimizer step on one batch as a recipe takes it.

    Args:
        request: The request.
        settings: How to train.
        loaded: The quantized model, on the device.
        original: The float model, if there is a teacher, which it is.
        plan: The plan that the model was quantized by.
        images: Images, (B, 3, H, W).
    """

    def __init__(
        self,
        request: BenchStepRequest,
        settings: Training,
        loaded: LoadedModel,
        original: nn.Module | None,
        plan: Plan,
        images: Tensor,
    ) -> None:
        teacher = None
        if original is not None:
            teacher = Teacher(original, loaded.data_config, loaded.data_config, "self").to(images.device)
        labels = torch.randint(loaded.num_classes, (len(images),), device=images.device)
        batch = Batch(images, labels, torch.arange(len(images)), settings.augmentation.crops)
        engine = Engine(
            loaded.model,
            plan,
            request.recipe.model_copy(update={"training": settings}),
            SameBatch(batch, _EPOCH + request.steps),
            teacher,
            Processes(0, 1, images.device),
            amp=request.bf16,
        )
        self._model, self._steps = loaded.model, engine.steps()

    def __call__(self) -> None:
        """Take the step; gradients are removed afterwards."""
        next(self._steps)
        self._model.zero_grad()


class _TrainingStep:
    """An optimizer step on one batch, which can be repeated.

    Args:
        model: The model in training mode; if it has several outputs (a distillation head), all are trained.
        images: Images, (B, 3, H, W).
        tracker: Tracker to update after the optimizer step, or None.
        bf16: Whether the forward pass runs under bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, images: Tensor, tracker: OscillationTracker | None, *, bf16: bool) -> None:
        self.model, self.images, self.tracker, self.bf16 = model, images, tracker, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.targets = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def __call__(self) -> None:
        """Take the step; gradients are removed afterwards."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.model(self.images)
        each = outputs if isinstance(outputs, tuple | list) else [outputs]
        loss = torch.stack([F.cross_entropy(logits.float(), self.targets) for logits in each]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.tracker is not None:
            self.tracker.update()
        self.optimizer.zero_grad()


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Peak memory that a step allocates, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - allocated
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    allocated = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak
