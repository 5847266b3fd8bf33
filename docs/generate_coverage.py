"""Write ``docs/coverage.md``: what is quantized in the smallest model of every timm family that holds attention.

    python docs/generate_coverage.py            write the page
    python docs/generate_coverage.py --check    fail if the page is out of date
    python docs/generate_coverage.py --find     recompute which model is the smallest (minutes), then write the page

A family is one module of ``timm.models``. It holds attention if, in a dry run of one of its models, a module calls
``scaled_dot_product_attention`` or multiplies two activations at least twice, or if one of its classes is named
``...Attention`` and multiplies query with key elementwise. Gates (squeeze-and-excitation, CBAM, ECA, global context,
split attention) multiply two activations once or not at all, and do not count.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
from ofqctl.artifact.run import serialize
from ofqctl.artifact.tensors import from_tensors
from ofqctl.convert import apply_plan, convert, describe
from ofqctl.convert.survey import Survey, survey
from ofqctl.layers.attention import form_of
from ofqctl.models import build_architecture, families
from ofqctl.ptq import calibrate
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.catalogue import load
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
PAGE = HERE / "coverage.md"
MODELS = HERE / "coverage_models.json"
SIZES = (112, 128, 160, 192, 224, 256)
ELEMENTWISE = ("EfficientAdditiveAttention", "LinearSelfAttention")
RECIPES = {
    "ptq/minmax": ("weights.bits=4", "activations.bits=4"),
    "ofq/vit_w2a2": (),
}


@dataclass(frozen=True)
class Subject:
    """One family's model.

    Attributes:
        family: Module of ``timm.models``.
        architecture: Its smallest model that holds attention.
        img_size: Height and width of the images, in pixels; None is the model's own.
    """

    family: str
    architecture: str
    img_size: int | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """The model with random weights, none of them left at a constant start value such as 0."""
        torch.manual_seed(seed)
        cfg = get_pretrained_cfg(self.architecture)
        kwargs = {} if self.img_size is None else {"img_size": self.img_size}
        classes = 0 if cfg is not None and cfg.num_classes == 0 else 10
        model = build_architecture(self.architecture, num_classes=classes, model_kwargs=kwargs, pretrained_cfg=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model

    def images(self, model: nn.Module, count: int, seed: int = 0) -> Tensor:
        """Noise, (count, 3, H, W)."""
        return torch.randn(count, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Outcome:
    """What one recipe did to one model.

    Attributes:
        plan: What was quantized and what was not.
        unequal: Largest difference between the outputs before saving and after loading, 0 if equal.
        batch_gap: Largest relative difference between outputs for an image alone and beside another.
        without_gradient: Parameters that have a gradient in the float model and none, or one that is not finite, here.
        finite: Whether every output is finite.
    """

    plan: Plan
    unequal: float
    batch_gap: float
    without_gradient: list[str]
    finite: bool


def subjects() -> list[Subject]:
    """The stored choice of models, by family."""
    stored = json.loads(MODELS.read_text(encoding="utf-8"))
    return [Subject(family, **choice) for family, choice in stored.items()]


def recipe(name: str) -> Recipe:
    """A recipe of the table."""
    return load(name, RECIPES[name])


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Every tensor that the model returns."""

    def flat(value: object) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from flat(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from flat(item)

    return list(flat(model(images)))


def examine(subject: Subject, name: str) -> Outcome:
    """Convert, calibrate, run, differentiate, save and reload one model."""
    wanted = _with_gradient(subject)
    model = subject.build()
    images = subject.images(model, 2)
    size = tuple(model.pretrained_cfg["input_size"])
    plan = convert(model, recipe(name), size)
    calibrate(model, plan, [subject.images(model, 2, seed=1)])
    plan = describe(model, plan)
    with torch.inference_mode():
        together, alone = outputs(model, images), outputs(model, images[:1])
    loaded = subject.build(seed=1)
    apply_plan(loaded, Plan.model_validate_json(plan.model_dump_json()))
    from_tensors(loaded, safetensors.torch.load(serialize(model)), subject.architecture)
    with torch.inference_mode():
        again = outputs(loaded.eval(), images)
    return Outcome(
        plan=plan,
        unequal=max(float((a - b).abs().max()) for a, b in zip(together, again, strict=True)),
        batch_gap=max(
            float((a[:1] - b).abs().max() / a.abs().max().clamp(min=1e-12))
            for a, b in zip(together, alone, strict=True)
            if a.shape[1:] == b.shape[1:]
        ),
        without_gradient=_missing(model, images, wanted),
        finite=all(bool(torch.isfinite(o).all()) for o in together),
    )


def _with_gradient(subject: Subject) -> set[str]:
    """Names of the parameters that get a gradient in the float model, in training mode."""
    model = subject.build()
    _backward(model, subject.images(model, 2))
    return {name for name, p in model.named_parameters() if p.grad is not None}


def _missing(model: nn.Module, images: Tensor, wanted: set[str]) -> list[str]:
    _backward(model, images)
    parameters = dict(model.named_parameters())
    for name in list(wanted):
        block, _, child = name.rpartition(".qkv.")
        merged = {f"{block}.products.qk.q", f"{block}.products.qk.k", f"{block}.products.v_proj.weight"}
        if child == "weight" and merged <= parameters.keys():
            wanted = (wanted - {name}) | merged
    grads = {name: parameters[name].grad for name in wanted if name in parameters}
    missing = [name for name, grad in grads.items() if grad is None]
    return missing + [n for n, p in parameters.items() if p.grad is not None and not bool(p.grad.isfinite().all())]


def _backward(model: nn.Module, images: Tensor) -> None:
    torch.manual_seed(0)
    sum((o * torch.randn_like(o)).sum() for o in outputs(model.train(), images)).backward()


# --- which models ---


def holds_attention(model: nn.Module, seen: Survey) -> bool:
    """Whether a module of ``model`` is attention, by the rule above."""
    return any(
        seen.products(name) >= 2
        or (form_of(module) is not None and name in seen.operands)
        or type(module).__name__ in ELEMENTWISE
        for name, module in model.named_modules()
    )


def find_subjects() -> list[Subject]:
    """The smallest model of every family that holds attention, at the smallest image size that it takes."""
    found = []
    for family, names in families().items():
        subject = _smallest(family, names)
        print(f"{family}: {subject}", file=sys.stderr)
        if subject is not None:
            found.append(subject)
    return found


def _smallest(family: str, names: list[str]) -> Subject | None:
    sized = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        kinds = frozenset(type(module) for module in model.modules())
        sized.append((sum(p.numel() for p in model.parameters()), name, kinds))
    without: set[frozenset[type]] = set()
    for _, name, kinds in sorted(sized, key=lambda entry: entry[:2]):
        if kinds in without:
            continue
        model = timm.create_model(name)
        if holds_attention(model, survey(model, model.pretrained_cfg["input_size"])):
            return Subject(family, name, _smallest_size(name))
        without.add(kinds)
    return None


def _smallest_size(name: str) -> int | None:
    """The first of ``SIZES`` below the model's own at which it runs with every softmax over 4 keys or more."""
    own = get_pretrained_cfg(name).input_size[-1]
    for size in (s for s in SIZES if s < own):
        try:
            model = Subject("", name, size).build()
            seen = survey(model, model.pretrained_cfg["input_size"])
        except Exception:  # noqa: BLE001, S112 - whatever a model raises at a size that it does not take
            continue
        keys = [shape[-1] for operands in seen.operands.values() for shape in operands["softmax"].single]
        if model.pretrained_cfg["input_size"][-1] == size and min(keys, default=4) >= 4:
            return size
    return None


def store(found: list[Subject]) -> None:
    """Write the choice of models."""
    rows = [f' "{s.family}": {json.dumps({"architecture": s.architecture, "img_size": s.img_size})}' for s in found]
    MODELS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
