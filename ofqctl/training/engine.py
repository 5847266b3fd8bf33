"""The training loop: phases of epochs of optimizer steps, starting from any position."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ofqctl.convert import operands
from ofqctl.data import Batch
from ofqctl.devices import suited_threads
from ofqctl.distill import Teacher
from ofqctl.documents import fitting
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.models import embeds
from ofqctl.oscillation import MOVED, OscillationTracker
from ofqctl.quantizers import Quantizer, without
from ofqctl.randomness import random_state, restore_random
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.training import Phase, Training
from ofqctl.remedies import Remedy, check_remedies, prepare_remedies, remedies_of
from ofqctl.training.batches import SameBatch, TrainingBatches
from ofqctl.training.interruption import Interrupted, Signals
from ofqctl.training.objective import Objective
from ofqctl.training.optimization import (
    frozen_batch_norms,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    select_trainable,
    switched_off,
)
from ofqctl.training.processes import Processes
from ofqctl.training.state import Checkpoint, Meter, Position

Row = dict[str, Any]

_LOOKS = 10  # optimizer steps between updates of the share of oscillating weights


@dataclass
class Hooks:
    """Functions that the engine calls; all are optional.

    Attributes:
        step: Called after every optimizer step, with figures of the epoch so far and the loss of the step,
            ``step_loss``.
        epoch: Called after every epoch on the first process, with its row of the summary.
        validate: Computes figures of a model on the validation images; called on all processes, which share the images.
        save: Writes a checkpoint; called on the first process.
    """

    step: Callable[[Row], None] = lambda _row: None
    epoch: Callable[[Row], None] = lambda _row: None
    validate: Callable[[nn.Module], Row] = lambda _model: {}
    save: Callable[[Checkpoint], None] = lambda _checkpoint: None


@dataclass
class Engine:
    """Trains one model as a recipe says.

    Attributes:
        model: The converted and calibrated model, on the device of ``processes``.
        plan: The plan that the model was quantized by.
        recipe: The recipe, with a ``training`` part.
        batches: Training images.
        teacher: For distillation, or None.
        processes: The processes that train together.
        hooks: Functions to call.
        amp: Autocast to bfloat16.
        checkpoint_every: Optimizer steps between checkpoints within an epoch; 0 saves after epochs only.
        request: The request, recorded in every checkpoint.
        data: Identity of the training images, recorded in every checkpoint; see `ImageData.identity`.
    """

    model: nn.Module
    plan: Plan
    recipe: Recipe
    batches: TrainingBatches | SameBatch
    teacher: Teacher | None
    processes: Processes
    hooks: Hooks = field(default_factory=Hooks)
    amp: bool = False
    checkpoint_every: int = 0
    request: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.recipe.training is not None
        self.settings: Training = self.recipe.training
        for phase in self.settings.phases:
            check_remedies(phase, self.model, amp=self.amp)
        for phase in self.settings.phases:
            prepare_remedies(phase, self.model)
        if self.settings.tracking is not None and not any(module.weight for module in self.plan.modules.values()):
            raise RecipeError("training.tracking: follows the codes of quantized weights, and this recipe has none")
        self.position, self.meter = Position(), Meter()
        self.history: list[Row] = []
        self.ema = None if self.settings.ema is None else ModelEmaV3(self.model, decay=self.settings.ema)
        tracking = self.settings.tracking
        self.tracker = None
        if tracking is not None:
            self.tracker = OscillationTracker(self.model, tracking.momentum, threshold=tracking.threshold)
        self._called = self.model
        self.planned_steps = self.batches.steps_per_epoch * sum(phase.epochs for phase in self.settings.phases)
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored = False  # whether the state of the optimizer comes from a file
        self._frozen_norms: list[nn.Module] = []
        self._switched_off: list[Quantizer] = []
        self._oscillating: Row = {}
        self._ranks = self.batches.labelled and not embeds(self.model)
        self._objective = Objective(self.model, self.settings, self.teacher, amp=self.amp)
        self._resumed: Checkpoint | None = None
        self._signals = Signals()
        for name in self.plan.modules:
            for quantizer in operands(self.model.get_submodule(name)).values():
                quantizer.passes = self.batches.share.passes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore ``checkpoint``, to continue exactly from there.

        Raises:
            ArtifactError: It is not that of the model.
        """
        with fitting("last.pt: its state does not fit the model"):
            self.position, self.meter = Position(**checkpoint.position), Meter(**checkpoint.meter)
            self.history = checkpoint.history
            self.batches.skipped = dict(checkpoint.skipped)
            self.model.load_state_dict(checkpoint.model)
            self.model.to(self.processes.device)  # frozen codes were loaded to the device of the state
            if self.ema is not None and checkpoint.ema is not None:
                self.ema.load_state_dict(checkpoint.ema)
                self.ema.to(self.processes.device)
            if self.tracker is not None and checkpoint.tracker is not None:
                self.tracker.load_state_dict(checkpoint.tracker)
        self._resumed = checkpoint

    @property
    def trained(self) -> nn.Module:
        """The model to evaluate and keep: the averaged one, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def fit(self) -> list[Row]:
        """Train to the end.

        Returns:
            One row for each epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM was received; the state is saved.
            ModelError: The loss is not finite; the message names the first layer.
        """
        with self._signals.caught(), suited_threads(self.model):
            for _ in self.steps():
                pass
        return self.history

    def steps(self) -> Iterator[Row]:
        """Train, and yield the figures of every optimizer step after it was made; `fit` takes all of them.

        Raises:
            ModelError: The loss is not finite; the message names the first layer.
        """
        if self._resumed is None:
            self._save(None, [])
        while self.position.phase < len(self.settings.phases):
            yield from self._run_phase(self.settings.phases[self.position.phase])
            self.position.phase += 1
            self.position.epoch = self.position.phase_step = 0
            self._save(self._optimizer, [])

    def _run_phase(self, phase: Phase) -> Iterator[Row]:
        if self._optimizer is None or phase.optimizer == "fresh":
            self._optimizer = make_optimizer(self.model, self.settings)
        optimizer = self._optimizer
        select_trainable(self.model, phase)
        self._frozen_norms = frozen_batch_norms(self.model, phase)
        self._switched_off = switched_off(self.model, self.plan, phase)
        self._called = self.processes.wrap(self.model)
        schedule = make_schedule(optimizer, self.settings, phase, self.batches.steps_per_epoch)
        remedies = remedies_of(phase, self.model, phase.epochs * self.batches.steps_per_epoch)
        self._begin(phase, optimizer, remedies)
        try:
            while self.position.epoch < phase.epochs:
                yield from self._run_epoch(phase, optimizer, schedule, remedies)
        finally:
            for remedy in remedies:
                remedy.close()

    def _begin(self, phase: Phase, optimizer: torch.optim.Optimizer, remedies: list[Remedy]) -> None:
        """Begin the phase, or continue with the checkpoint's state of it or of the previous phase's optimizer."""
        checkpoint, self._resumed = self._resumed, None
        begun = checkpoint is not None and checkpoint.position["phase_step"] > 0
        with fitting("last.pt: its state does not fit the phase"):
            if checkpoint is not None and checkpoint.optimizer and (begun or phase.optimizer == "carried"):
                restore_optimizer(optimizer, checkpoint.optimizer, self.model)
                self._restored = True
            for remedy in remedies:
                remedy.begin(optimizer)
            if checkpoint is None:
                return
            if begun:
                for remedy, state in zip(remedies, checkpoint.remedies, strict=True):
                    remedy.load_state_dict(state)
            if self.processes.rank < len(checkpoint.random):
                restore_random(checkpoint.random[self.processes.rank])

    def _run_epoch(self, phase: Phase, optimizer: Any, schedule: Any, remedies: list[Remedy]) -> Iterator[Row]:
        position = self.position
        batches = self.batches.epoch(position.total_epochs, position.step)
        micro = self.batches.share.micro_batches
        while step := list(islice(batches, micro)):
            started = time.perf_counter()
            schedule.step_update(position.phase_step)
            loss = self._step(step, optimizer, remedies)
            position.step += 1
            position.phase_step += 1
            position.total_steps += 1
            self.meter.seconds += time.perf_counter() - started
            if position.total_steps % _LOOKS == 0:
                self._oscillating = self._oscillation()
            figures = self._figures(phase, optimizer) | {"step_loss": loss} | self._oscillating
            self.hooks.step(figures)
            self._maybe_save(optimizer, remedies)
            yield figures
        self.processes.share_buffers(self.trained)
        row = self._figures(phase, optimizer) | self._oscillation() | self.hooks.validate(self.trained)
        self.history.append(row)
        position.epoch += 1
        position.total_epochs += 1
        position.step = 0
        self.meter = Meter()
        self._gather_skipped()
        if self.processes.first:
            self.hooks.epoch(row)
        self._save(optimizer, remedies)

    def _step(self, step: list[Batch], optimizer: Any, remedies: list[Remedy]) -> float:
        """Take one optimizer step over its micro-batches; return the mean loss over processes and micro-batches."""
        self._called.train()
        for norm in self._frozen_norms:
            norm.training = False  # not of its children: activations or dropout inside stay in training mode
        compute = partial(self._gradients, step, remedies)
        for remedy in remedies:
            compute = partial(remedy.gradients, compute)
        seen = compute()
        for remedy in remedies:
            remedy.before_step()
        if self.settings.optimizer.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_grad)
        take = partial(self._move, optimizer)
        for remedy in remedies:
            take = partial(remedy.step, take)
        take()
        for remedy in reversed(remedies):
            remedy.after_step()
        if self.ema is not None:
            self.ema.update(self.model, step=self.position.total_steps)
        if self.tracker is not None:
            self.tracker.update()
        loss_sum, right, images_seen = self.processes.total(seen).tolist()
        loss_mean: float = loss_sum / self.processes.world
        self.meter.loss += loss_mean
        self.meter.correct += int(right)
        self.meter.images += int(images_seen)
        self.meter.steps += 1
        return loss_mean

    def _move(self, optimizer: Any) -> None:
        """Let the optimizer move the weights."""
        try:
            optimizer.step()
        except KeyError as error:
            if not self._restored:
                raise
            raise ArtifactError(f"last.pt: the optimizer's state of a parameter lacks {error}") from error

    def _gradients(self, step: list[Batch], remedies: list[Remedy]) -> Tensor:
        """Compute the gradients of an optimizer step; return the sums of losses, correct predictions and images."""
        self.model.zero_grad()
        seen = torch.zeros(3, dtype=torch.float64)
        progress = self.position.total_steps / self.planned_steps
        with without(self._switched_off):
            for number, batch in enumerate(batch.to(self.processes.device) for batch in step):
                with self.processes.exchanging(self._called, number == len(step) - 1):
                    loss, correct = self._objective(self._called, batch, self.position.total_steps, progress)
                    wanted = loss
                    for remedy in remedies:
                        wanted = remedy.objective(wanted)
                    (wanted / len(step)).backward()  # type: ignore[no-untyped-call]
                seen += torch.tensor([loss.item() / len(step), correct, len(batch)], dtype=torch.float64)
        for penalty in (remedy.penalty() for remedy in remedies):
            if penalty is not None:
                penalty.backward()  # type: ignore[no-untyped-call]
        return seen

    def _figures(self, phase: Phase, optimizer: Any) -> Row:
        meter = self.meter
        return {
            "phase": phase.name,
            "epoch": self.position.total_epochs + 1,
            "step": self.position.total_steps,
            "lr": optimizer.param_groups[0]["lr"],
            "loss": meter.loss / max(1, meter.steps),
            **({"train_top1": 100.0 * meter.correct / max(1, meter.images)} if self._ranks else {}),
            "images_per_second": meter.images / max(meter.seconds, 1e-9),
            "seconds": meter.seconds,
        }

    def _oscillation(self) -> Row:
        if self.tracker is None or self.settings.tracking is None:
            return {}
        total = self.tracker.summary(self.settings.tracking.threshold)["total"]
        return {key: total[key] for key in ("oscillating", "flips_per_step", *MOVED) if key in total}

    def _maybe_save(self, optimizer: Any, remedies: list[Remedy]) -> None:
        asked = max(self.processes.gather(self._signals.came))
        due = self.checkpoint_every and self.position.total_steps % self.checkpoint_every == 0
        if asked or due:
            self._save(optimizer, remedies)
        if asked:
            raise Interrupted(asked)

    def _gather_skipped(self) -> None:
        """Let every process know the images that any of them skipped."""
        for skipped in self.processes.gather(self.batches.skipped):
            self.batches.skipped.update(skipped)

    def _save(self, optimizer: Any, remedies: list[Remedy]) -> None:
        self._gather_skipped()
        states = self.processes.gather(random_state())
        if not self.processes.first:
            return
        checkpoint = Checkpoint(
            recipe=self.recipe.model_dump(mode="json"),
            plan=self.plan.model_dump(mode="json"),
            position=asdict(self.position),
            meter=asdict(self.meter),
            history=self.history,
            model=self.model.state_dict(),
            optimizer={} if optimizer is None else optimizer.state_dict(),
            ema=None if self.ema is None else self.ema.state_dict(),
            tracker=None if self.tracker is None else self.tracker.state_dict(),
            remedies=[remedy.state_dict() for remedy in remedies],
            random=states,
            request=self.request,
            data=self.data,
            skipped=self.batches.skipped,
        )
        self.hooks.save(checkpoint)
