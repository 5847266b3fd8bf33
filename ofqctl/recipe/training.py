"""How a model is trained: the part of a recipe that ``train`` reads."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ofqctl.recipe.methods import REMEDIES, TERMS
from ofqctl.recipe.registered import WithKeys
from ofqctl.registry import Frozen

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


class Optimizer(Frozen):
    """timm's optimizer; biases, norms and the quantizers' own parameters get no weight decay.

    Attributes:
        name: As ``timm.optim.create_optimizer_v2`` calls it.
        lr: Peak learning rate of weights, at the recipe's batch size.
        weight_decay: Weight decay of matrices and convolutions.
        clip_grad: Largest norm of all gradients together, or None.
    """

    name: str = "adamw"
    lr: float = Field(default=5e-4, gt=0.0)
    weight_decay: NotNegative = 0.05
    clip_grad: float | None = Field(default=None, gt=0.0)


class Phase(Frozen):
    """A part of training with one schedule; each registered remedy has a key of its name as well.

    Attributes:
        name: Name in tables and logs.
        epochs: Number of passes over the training images.
        lr: Peak learning rate; None takes the optimizer's.
        min_lr: Learning rate at the end of the cosine.
        schedule: ``cosine`` from the peak to ``min_lr``, step by step, or ``constant``.
        warmup_steps: Number of optimizer steps of linear warm-up, part of the phase.
        warmup_epochs: Number of epochs of warm-up; both add up.
        warmup_lr: Learning rate at the start of the warm-up.
        warmup_prefix: Whether the cosine starts after the warm-up, at the peak; otherwise it starts with the phase, and
            is already below the peak when the warm-up ends. The length of the phase is the same.
        trainable: Shell-style patterns of the parameters that are trained; the running statistics of a BatchNorm are
            not updated if none of its parameters matches.
        quantized: What is quantized during training; the rest is in float. The evaluated and written model is always
            quantized as planned.
        optimizer: ``carried``: keeps its state, such as Adam's moments and step count, for parameters that an earlier
            phase trained; ``fresh``: starts without state.
    """

    name: str = "train"
    epochs: int = Field(default=1, ge=1)
    lr: float | None = Field(default=None, gt=0.0)
    min_lr: NotNegative = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    warmup_epochs: int = Field(default=0, ge=0)
    warmup_lr: NotNegative = 1e-6
    warmup_prefix: bool = False
    trainable: tuple[str, ...] = ("*",)
    quantized: Literal["all", "weights", "activations", "none"] = "all"
    optimizer: Literal["carried", "fresh"] = "carried"

    @property
    def remedies(self) -> dict[str, Frozen]:
        """Settings of the phase's remedies by name; those that hold codes come first."""
        names = sorted(REMEDIES.methods(), key=lambda name: "holds_codes" not in REMEDIES[name].traits)
        found = ((name, getattr(self, name, None)) for name in names)
        return {name: settings for name, settings in found if settings is not None}

    @property
    def holding(self) -> list[str]:
        """Names of the remedies that decide which codes may change."""
        return [name for name in self.remedies if "holds_codes" in REMEDIES[name].traits]

    @model_validator(mode="after")
    def _one_remedy_holds_codes(self) -> Self:
        if len(self.holding) > 1:
            raise ValueError(f"{' and '.join(self.holding)} each decide which codes are held; choose one")
        return self

    @model_validator(mode="after")
    def _weights_are_quantized(self) -> Self:
        asking = next((name for name in self.remedies if "quantized_weights" in REMEDIES[name].traits), None)
        if asking is not None and self.quantized in ("activations", "none"):
            raise ValueError(f"{asking} acts on quantized weights, which 'quantized: {self.quantized}' leaves in float")
        return self


AnyPhase = Annotated[Phase, WithKeys(REMEDIES)]


class Augmentation(Frozen):
    """timm's training transforms and mixing.

    Attributes:
        scale: Share of the image's area that a random crop takes, smallest and largest.
        ratio: Its aspect ratio, smallest and largest.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength, or None; timm leaves it out beside most policies of ``auto_augment``.
        auto_augment: timm's policy, such as ``rand-m9-mstd0.5-inc1``, or None.
        random_erase: Probability of erasing a rectangle.
        mixup: Alpha of mixup, 0 for none.
        cutmix: Alpha of cutmix, 0 for none.
        label_smoothing: Smoothing of the hard labels.
        repeats: Number of copies of each image in a batch (repeated augmentation), 0 or 1 for none.
        crops: Number of crops of each image in a forward pass, decoded once; each counts as an image of the batch.
        crop_pct: Share of the image that evaluation keeps; None keeps the model's own.
    """

    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: Fraction = 0.5
    color_jitter: NotNegative | None = None
    auto_augment: str | None = None
    random_erase: Fraction = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    label_smoothing: Fraction = 0.0
    repeats: int = Field(default=0, ge=0)
    crops: int = Field(default=1, ge=1)
    crop_pct: float | None = Field(default=None, gt=0.0, le=1.0)


class Features(Frozen):
    """Training the student's modules to reproduce the outputs of the teacher's.

    Attributes:
        target: Pattern of module names, in student and teacher; ``*`` does not match a dot. None: the blocks, which are
            the modules that the teacher's attentions lie in.
        weight: Weight of the mean squared error, relative to the variance of the teacher's output.
    """

    target: str | None = None
    weight: NotNegative = 1.0


class Terms(Frozen):
    """Terms of the objective beside those of ``distillation``: each registered one has a key of its name."""


AnyTerms = Annotated[Terms, WithKeys(TERMS)]


class Distillation(Frozen):
    """Knowledge distillation from a float teacher; with ``hard`` and ``soft`` of 0 no labels and classes are needed.

    Attributes:
        teacher: ``self`` (the float model the training starts from), or the name of a model or run.
        hard: Weight of the cross entropy with the labels.
        soft: Weight of the cross entropy with the teacher's probabilities.
        temperature: Temperature of the teacher's and the student's softmax.
        features: Learning from the outputs of the teacher's modules as well, or None.
    """

    teacher: str = "self"
    hard: NotNegative = 1.0
    soft: NotNegative = 1.0
    temperature: float = Field(default=1.0, gt=0.0)
    features: Features | None = None


class Tracking(Frozen):
    """The oscillation tracker.

    Attributes:
        momentum: Weight of the latest optimizer step in the frequency (Nagel et al. 2022).
        threshold: Frequency above which a weight oscillates.
    """

    momentum: float = Field(default=0.01, gt=0.0, lt=1.0)
    threshold: float = Field(default=0.005, gt=0.0)


class Training(Frozen):
    """How to train.

    Attributes:
        batch_size: Number of images in one optimizer step, over all processes.
        steps_per_epoch: Number of optimizer steps in an epoch; None takes as many as there are whole batches of images.
        optimizer: The optimizer.
        phases: Phases, one after the other.
        augmentation: Augmentation of the training images.
        distillation: Learning from a teacher; None learns from the labels alone.
        terms: Further terms of the objective, or other settings for those of ``distillation``.
        drop_path: Rate of stochastic depth; None keeps the architecture's own.
        ema: Decay of the averaged weights that are evaluated, or None.
        tracking: The oscillation tracker, or None.
    """

    batch_size: int = Field(default=64, ge=1)
    steps_per_epoch: int | None = Field(default=None, ge=1)
    optimizer: Optimizer = Optimizer()
    phases: tuple[AnyPhase, ...] = Field(default_factory=lambda: (Phase(),), validate_default=True)
    augmentation: Augmentation = Augmentation()
    distillation: Distillation | None = None
    terms: AnyTerms = Field(default_factory=Terms, validate_default=True)
    drop_path: Fraction | None = None
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    tracking: Tracking | None = None

    @property
    def objective(self) -> dict[str, Frozen]:
        """Settings of the terms of the objective, by name; terms of weight 0 are left out."""
        return {name: settings for name, settings in self._every_term().items() if getattr(settings, "weight", 1.0)}

    def _every_term(self) -> dict[str, Frozen]:
        wanted = self.distillation
        values: dict[str, Any] = {"labels": {"smoothing": self.augmentation.label_smoothing}}
        if wanted is not None:
            values["labels"]["weight"] = wanted.hard
            values["answers"] = {"weight": wanted.soft, "temperature": wanted.temperature}
            values |= {"features": wanted.features.model_dump()} if wanted.features else {}
        own = {name: getattr(self.terms, name, None) for name in TERMS.methods()}
        every = {name: TERMS[name].settings.model_validate(settings) for name, settings in values.items()}
        return every | {name: settings for name, settings in own.items() if settings is not None}

    def scaled(self, factor: float) -> "Training":
        """The same with every peak learning rate multiplied by ``factor``."""
        optimizer = self.optimizer.model_copy(update={"lr": self.optimizer.lr * factor})
        phases = tuple(p.model_copy(update={"lr": p.lr and p.lr * factor}) for p in self.phases)
        return self.model_copy(update={"optimizer": optimizer, "phases": phases})

    def shortened(self, epochs: int) -> "Training":
        """The same with fewer epochs in all: each phase has its share, at least one, and warms up in proportion.

        Args:
            epochs: Number of epochs of all phases together, no fewer than there are phases.
        """
        every = sum(phase.epochs for phase in self.phases)
        shares = [phase.epochs * epochs / every for phase in self.phases]
        counts = [1] * len(shares)
        for _ in range(epochs - len(shares)):
            counts[max(range(len(shares)), key=lambda at: shares[at] - counts[at])] += 1
        phases = tuple(
            phase.model_copy(
                update={"epochs": count, "warmup_epochs": round(phase.warmup_epochs * count / phase.epochs)}
            )
            for phase, count in zip(self.phases, counts, strict=True)
        )
        return self.model_copy(update={"phases": phases})

    @model_validator(mode="after")
    def _minimizes_something(self) -> Self:
        if not self.objective:
            raise ValueError(f"nothing is minimized: {' and '.join(self._every_term())} have a weight of 0")
        return self

    @model_validator(mode="after")
    def _rates_fall(self) -> Self:
        for phase in self.phases:
            peak = phase.lr or self.optimizer.lr
            if phase.schedule == "cosine" and phase.min_lr > peak:
                raise ValueError(
                    f"phase '{phase.name}' ends at min_lr {phase.min_lr:g}, above its peak of {peak:g}; "
                    "lower min_lr, or set schedule: constant"
                )
        return self

    @model_validator(mode="after")
    def _has_the_teacher_it_needs(self) -> Self:
        alone = [] if self.distillation else [n for n in self.objective if "needs_teacher" in TERMS[n].traits]
        if alone:
            raise ValueError(f"terms.{alone[0]} learns from a teacher; `distillation: {{teacher: self}}` names one")
        return self

    @model_validator(mode="after")
    def _averaged_weights_hold_no_codes(self) -> Self:
        holding = next((name for phase in self.phases for name in phase.holding), None)
        if self.ema is not None and holding is not None:
            raise ValueError(f"ema averages weights, which does not keep the codes that {holding} freezes; choose one")
        return self
