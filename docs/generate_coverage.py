"""Write ``docs/coverage.md``: what is quantized in the smallest model of every timm family that holds attention.

    python docs/generate_coverage.py            write the page
    python docs/generate_coverage.py --check    fail if the page is out of date
    python docs/generate_coverage.py --find     search the smallest models anew (minutes), then write the page

``tests/convert/test_coverage.py`` runs, trains, saves and reloads every model of the page.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from ofqctl.convert import make_plan
from ofqctl.convert.survey import Survey, survey
from ofqctl.errors import ModelError
from ofqctl.layers.attention import form_of
from ofqctl.models import build_architecture, families, with_tokens
from ofqctl.models.outputs import check_output, leave_out_classifier
from ofqctl.recipe import Plan
from ofqctl.recipe.catalogue import load

PAGE = Path(__file__).resolve().parent / "coverage.md"
MODELS = PAGE.with_name("coverage_models.json")
POST_TRAINING, OFQ = "ptq/minmax", "ofq/vit_w2a2"
RECIPES = {
    POST_TRAINING: load(POST_TRAINING, ["weights.bits=4", "activations.bits=4"]),
    OFQ: load(OFQ),
}
SIZES = (112, 128, 160, 192, 224, 256)  # pixels; tried in this order where the model's own images are larger
PRODUCTS, QKR = "attention products: ", "query-key reparameterization: "  # what reasons start with
ELEMENTWISE = ("EfficientAdditiveAttention", "LinearSelfAttention")

INTRODUCTION = """# Coverage

What is quantized in the smallest model of every timm family that holds attention (timm {timm}).
Of {families} families, the attention products are quantized in {products}; query and key can be merged (QKR) in {qkr}.
Written by `docs/generate_coverage.py`; `tests/convert/test_coverage.py` converts each of these models with `{ptq}` at
4 bits and with `{ofq}`, runs it, sends gradients through it, saves it and reloads it with equal outputs (the largest
models with 2 of their blocks, which are all alike).

A family is one module of `timm.models`. It holds attention if a module of one of its models calls
`scaled_dot_product_attention`, or multiplies two activations as matrices at least twice, or is an attention class that
multiplies query with key element by element. Gates (squeeze-and-excitation, CBAM, ECA, global context, split
attention) are not attention.

*Backbone* says whether the model runs without a classifier (`--features`) and gives an embedding, and patch tokens
beside it (`--tokens`). *Layers* counts Linear and Conv2d layers with quantized weights and inputs; *left in float*
counts what keeps float weights or products, with the reason. Images are square, in pixels.
"""
HEADER = ("family", "model", "image", "attention", "products quantized", "QKR", "backbone", "layers", "left in float")


@dataclass(frozen=True)
class Subject:
    """The model that stands for a family.

    Attributes:
        family: Module of ``timm.models``.
        architecture: Its smallest model that holds attention, by the number of parameters.
        img_size: Height and width of the images, in pixels; None is the model's own.
        depth: Number of blocks; None is the model's own.
    """

    family: str
    architecture: str
    img_size: int | None = None
    depth: int | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """The model with random weights, none of them left at a constant start value such as 0."""
        torch.manual_seed(seed)
        cfg = get_pretrained_cfg(self.architecture)
        kwargs = {name: value for name in ("img_size", "depth") if (value := getattr(self, name)) is not None}
        classes = 0 if cfg is not None and cfg.num_classes == 0 else 10
        model = build_architecture(self.architecture, num_classes=classes, model_kwargs=kwargs, pretrained_cfg=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model

    def images(self, model: nn.Module, count: int, seed: int = 0) -> Tensor:
        """Noise, (count, 3, H, W)."""
        return torch.randn(count, *input_size(model), generator=torch.Generator().manual_seed(seed))


def subjects() -> list[Subject]:
    """The stored choice of models, in order of the families."""
    stored = json.loads(MODELS.read_text(encoding="utf-8"))
    return [Subject(family, **choice) for family, choice in stored.items()]


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(3, H, W)."""
    return tuple(model.pretrained_cfg["input_size"])


# The page


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        products: Blocks with quantized products, by class.
        merged: Blocks with merged query and key.
        cells: What the table shows.
    """

    products: dict[str, int]
    merged: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What is known of one model before anything of it is quantized.

    Attributes:
        plans: By recipe.
        classes: Of every module, by its name.
        image: Height and width of the images, in pixels.
        backbone: What it gives without a classifier, in words.
    """

    plans: dict[str, Plan]
    classes: dict[str, str]
    image: int
    backbone: str


@cache
def converted(subject: Subject) -> Converted:
    """The plan of every recipe for one model."""
    model = subject.build()
    return Converted(
        plans={name: make_plan(model, recipe, input_size(model)) for name, recipe in RECIPES.items()},
        classes={name: type(module).__name__ for name, module in model.named_modules()},
        image=input_size(model)[-1],
        backbone=backbone(model),
    )


def backbone(model: nn.Module) -> str:
    """What ``model`` gives without its classifier, which is left out: whether embeddings, and patch tokens."""
    images = torch.zeros(1, *input_size(model))
    try:
        with torch.no_grad():
            leave_out_classifier(model, where="the model")
            check_output(model(images), images)
    except ModelError as error:
        return f"no: {error.message.removeprefix('the model: ')}"
    try:
        with torch.no_grad():
            embedding, _ = with_tokens(model, images)
            check_output(embedding, images)
    except ModelError:
        return "yes, without tokens"
    return "yes"


def row(subject: Subject) -> Row:
    """The line of one family."""
    made = converted(subject)
    plan, classes = made.plans[POST_TRAINING], made.classes
    products = Counter(classes[name] for name, module in plan.modules.items() if module.kind == "attention")
    elementwise = Counter(name for name in classes.values() if name in ELEMENTWISE)
    in_float = [left.type for left in plan.left_float if left.reason.startswith(PRODUCTS)]
    left = Counter(f"{left.type}: {left.reason.removeprefix(PRODUCTS)}" for left in plan.left_float)
    left += Counter({f"{name}: it multiplies element by element": count for name, count in elementwise.items()})
    kinds = Counter(module.kind for module in plan.modules.values())
    merged = sum(module.kind == "qkr" for module in made.plans[OFQ].modules.values())
    cells = (
        subject.family,
        f"`{subject.architecture}`",
        str(made.image),
        ", ".join(sorted({*products, *in_float, *elementwise})),
        _counted(products) or "none",
        _merging(made.plans[OFQ], merged),
        made.backbone,
        f"{kinds['linear']} Linear, {kinds['conv2d']} Conv2d",
        _counted(left, "; ") or "nothing",
    )
    return Row(dict(products), merged, cells)


def _merging(plan: Plan, merged: int) -> str:
    reasons = Counter(left.reason.removeprefix(QKR) for left in plan.left_float if left.reason.startswith(QKR))
    not_merged = [f"not in {count}: {reason}" for reason, count in reasons.items()]
    return "; ".join([f"in {merged} blocks" if merged else "no", *not_merged])


def _counted(counts: Counter[str], separator: str = ", ") -> str:
    return separator.join(f"{count} {name}" for name, count in counts.items())


def page() -> str:
    """The whole of ``docs/coverage.md``."""
    rows = [row(subject) for subject in subjects()]
    introduction = INTRODUCTION.format(
        timm=timm.__version__,
        families=len(rows),
        products=sum(bool(r.products) for r in rows),
        qkr=sum(bool(r.merged) for r in rows),
        ptq=POST_TRAINING,
        ofq=OFQ,
    )
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *(_line(r.cells) for r in rows)]
    return introduction + "\n" + "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


# Which models


def find_subjects() -> Iterator[Subject]:
    """The smallest model of every family that holds attention, at the smallest image size that it takes."""
    for family, names in families().items():
        print(family, file=sys.stderr)
        smallest = _smallest(names)
        if smallest is not None:
            yield Subject(family, smallest, _smallest_size(smallest))


def holds_attention(model: nn.Module, seen: Survey) -> bool:
    """Whether a module of ``model`` is attention, by the rule on the page."""
    return any(
        seen.products(name) >= 2
        or (form_of(module) is not None and name in seen.operands)
        or type(module).__name__ in ELEMENTWISE
        for name, module in model.named_modules()
    )


def _smallest(names: Iterable[str]) -> str | None:
    sized = []
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name)
        classes = frozenset(type(module) for module in model.modules())
        sized.append((sum(p.numel() for p in model.parameters()), name, classes))
    without: set[frozenset[type]] = set()
    for _, name, classes in sorted(sized, key=lambda entry: entry[:2]):
        if classes in without:  # the same classes as in a smaller model that holds none
            continue
        model = timm.create_model(name)
        if holds_attention(model, survey(model, input_size(model))):
            return name
        without.add(classes)
    return None


def _smallest_size(name: str) -> int | None:
    """The first of ``SIZES`` below the model's own at which it runs with every softmax over 4 keys or more."""
    own = get_pretrained_cfg(name).input_size[-1]
    for size in (size for size in SIZES if size < own):
        try:
            model = Subject("", name, size).build()
            seen = survey(model, input_size(model))
        except Exception:  # noqa: BLE001 - whatever a model raises at a size that it does not take
            continue
        keys = [shape[-1] for operands in seen.operands.values() for shape in operands["softmax"].single]
        if input_size(model)[-1] == size and min(keys, default=4) >= 4:
            return size
    return None


def store(found: Iterable[Subject]) -> None:
    """Write the choice of models."""
    rows = [f' "{s.family}": {json.dumps({"architecture": s.architecture, "img_size": s.img_size})}' for s in found]
    MODELS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def main() -> int:
    """What the script does when it is run."""
    parser = argparse.ArgumentParser(description="Write docs/coverage.md.")
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    parser.add_argument("--find", action="store_true", help="search the smallest models anew")
    options = parser.parse_args()
    if options.find:
        store(find_subjects())
    text = page()
    if options.check:
        current = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        print("up to date" if current == text else f"{PAGE.name} is out of date: run docs/generate_coverage.py")
        return int(current != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
