"""The start of training and quantization: a float model, or an earlier run."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ofqctl.artifact import Run, read_latents
from ofqctl.convert import apply_plan, describe, make_plan, notes_on_sizes, operands, replace_modules, weight_site
from ofqctl.data import ImageLoader
from ofqctl.devices import suited_threads
from ofqctl.errors import ModelError, RecipeError
from ofqctl.evaluation import find_run
from ofqctl.files import located
from ofqctl.hub.pulling import TRAINING
from ofqctl.models import LoadedModel, ModelRequest, build_architecture, load_model, sources
from ofqctl.models.outputs import leave_out_classifier
from ofqctl.progress import Progress
from ofqctl.ptq import Clock, calibrate, on_disk, quantize_post_training
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.plan import computes_alike
from ofqctl.training import FILE, read_checkpoint_state


@dataclass(frozen=True)
class Start:
    """The model that training starts from.

    Attributes:
        loaded: The float model; for a quantized run only the architecture, into which its tensors are loaded later.
        run: The run that training starts from, or None.
    """

    loaded: LoadedModel
    run: Run | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the run; None for a float model."""
        plan = None if self.run is None else self.run.config.quantization_config.plan
        return plan if plan is not None and plan.modules else None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of one image, (3, H, W)."""
        channels, height, width = self.loaded.data_config["input_size"]
        return channels, height, width

    @property
    def origin(self) -> str:
        """Source of the float weights."""
        return self.loaded.source if self.run is None else self.run.config.source

    def quantized(
        self,
        recipe: Recipe,
        images: Callable[[], ImageLoader],
        progress: Progress,
        prepare: Callable[[nn.Module], object],
        *,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> tuple[Plan, list[str]]:
        """Quantize the model in place as ``recipe`` says; a float model with its stages of post-training quantization.

        Quantizers that the run also has, with the same grid, keep their values; the others start from the weights and
        from training images, after those.

        Args:
            recipe: The recipe to follow.
            images: Opens the calibration images; called only if something must be calibrated.
            progress: Called to report the progress of calibration.
            prepare: Moves the model to the device to compute on.
            seed: Seed of everything random in the stages.
            clock: Time budget of the stages.

        Returns:
            The plan, and notes on what could not be carried over.

        Raises:
            RecipeError: The run has merged query and key, and the recipe has not, or merges them differently.
        """
        model, previous, size = self.loaded.model, self.plan or Plan(modules={}), self.input_size
        if recipe.ptq and self.plan is None:
            prepare(model)
            seen = on_disk((batch for batch, _ in images()), next(model.parameters()).device)
            with seen as stored, suited_threads(model):
                task = quantize_post_training(model, recipe, size, stored, progress=progress, clock=clock, seed=seed)
            return describe(model, task.plan), task.notes
        plan = make_plan(model, recipe, size)
        _check_merged(previous, plan, recipe, self.loaded.source)
        notes = notes_on_sizes(model, recipe)
        plan, kept = _carried_over(previous, plan)
        replace_modules(model, plan.replaced)
        state = None
        if self.run is not None and self.plan is not None:
            if self.run.download is not None:
                find_run(self.run.exact_name, TRAINING)  # downloads what it keeps for training, if it was sent along
            state = kept_state(self.run)
            if state is None:
                state = _computed_state(self.run, kept)
                notes.append(f"{self.run.name} keeps no latent weights: weights start in the middle of their bins")
        if state is not None:  # projections that are only merged now must be loaded before
            _fill(model, state, lacks=[f"{name}.qkv." for name in _merged(previous)])
        apply_plan(model, plan)
        fresh = {name: prefix for name, prefix in _quantizers(model, plan) if name not in kept}
        if state is not None:
            known = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(fresh.values()))}
            merged = [f"{name}.products." for name in _merged(plan) - _merged(previous)]
            _fill(model, known, lacks=[*fresh.values(), *merged])
        prepare(model)
        if fresh:
            wanted = recipe.calibration.images
            progress("calibrate", 0, wanted)
            batches = (batch for batch, _ in images())
            calibrate(model, plan, batches, keep=kept, on_batch=lambda done: progress("calibrate", done, wanted))
        notes += _notes(list(fresh), len(kept)) if self.plan is not None else []
        return describe(model, plan), notes


def check_model(recipe: Recipe, loaded: LoadedModel) -> None:
    """Make sure that a recipe is for an architecture.

    Raises:
        RecipeError: It is for another.
    """
    if recipe.model is not None and not fnmatchcase(loaded.architecture, recipe.model):
        raise RecipeError(
            f"recipe '{recipe.name}': is for {recipe.model}, not for {loaded.architecture}",
            hint="--set model=null takes it for any model",
        )


def open_start(request: ModelRequest, drop_path: float | None) -> Start:
    """Open a float model by name, or the model of a run.

    Args:
        request: The model to open.
        drop_path: Rate of stochastic depth; None keeps the architecture's own.

    Raises:
        OfqctlError: There is no such model, or the run is damaged.
    """
    depth = {} if drop_path is None else {"drop_path_rate": drop_path}
    found = find_run(request.name)
    if found is None:
        return Start(load_model(replace(request, kwargs={**depth, **request.kwargs})))
    run = found.load()
    config, plan = run.config, run.config.quantization_config.plan
    if request.features and config.num_classes:
        if plan.modules:
            raise ModelError(
                f"model '{request.name}': is a quantized run with a classifier, and training goes on with all of it",
                hint=f"--features with its float model: {config.source}",
            )
        leave_out_classifier(run.model, where=request.name)
        config = config.model_copy(update={"num_classes": 0, "label_names": None})
    kwargs, pretrained_cfg = config.model_args | depth, config.pretrained_cfg | {"label_names": config.label_names}
    model = build_architecture(
        config.architecture, num_classes=config.num_classes, model_kwargs=kwargs, pretrained_cfg=pretrained_cfg
    )
    loaded = LoadedModel(
        model=model,
        architecture=config.architecture,
        num_classes=config.num_classes,
        model_kwargs=kwargs,
        pretrained_cfg=pretrained_cfg,
        data_config=config.data_config,
        source=sources.of_run(run.exact_name),
        notes=[],
    )
    if not plan.modules:
        model.load_state_dict(run.model.state_dict())
    return Start(loaded, run)


def open_float(request: ModelRequest) -> LoadedModel:
    """Open a float model by name, or the model of a run at 32 bits.

    Raises:
        ModelError: It is a quantized run.
        OfqctlError: There is no such model, or the run is damaged.
    """
    start = open_start(request, None)
    if start.run is None:
        return start.loaded
    if start.plan is not None:
        raise ModelError(
            f"model '{start.run.name}': is a run directory with an already quantized model",
            hint=f"`ofqctl evaluate {start.run.name} --data DATA` measures it; this command starts from a float model",
        )
    return start.loaded


def recipe_of_run(name: str) -> Recipe:
    """The recipe of a run, by its path or its name on the hub.

    Raises:
        RecipeError: There is no such run, or its recipe does not say how to train.
    """
    found = find_run(name)
    if found is None:
        raise RecipeError(f"{name}: not a run directory, so it has no recipe for training", hint="--recipe NAME")
    recipe = found.config().quantization_config.recipe
    if recipe.training is None:
        raise RecipeError(
            f"{name}: its recipe '{recipe.name}' does not say how to train it", hint="--recipe NAME uses another"
        )
    return recipe


def kept_state(run: Run) -> Mapping[str, Tensor] | None:
    """The state of a run's model with the latent weights that it keeps; None if it keeps none.

    A training keeps them, averaged ones if these are what the run holds, and so does post-training quantization with a
    stage that has trained them.

    Raises:
        ArtifactError: What it keeps is damaged, or of other codes.
    """
    if run.directory.is_file() or not located(run.directory, FILE).is_file():
        return read_latents(run)
    checkpoint = read_checkpoint_state(run.directory)
    if checkpoint.ema is None:
        return checkpoint.model
    return {name.removeprefix("module."): tensor for name, tensor in checkpoint.ema.items()}


def _computed_state(run: Run, kept: Collection[str]) -> Mapping[str, Tensor]:
    """The tensors of a run, with latent weights that are computed from its codes.

    Args:
        run: The run, whose model is changed.
        kept: Names of the quantizers that keep their values, whose weights must be encoded as the same codes.
    """
    for name in run.config.quantization_config.plan.modules:
        site = weight_site(run.model.get_submodule(name))
        if site is not None and site.fixed_codes is not None:
            site.release_codes(for_this_quantizer=f"{name}.weight" in kept)
    return run.model.state_dict()


def _check_merged(previous: Plan, plan: Plan, recipe: Recipe, source: str) -> None:
    """Check that the recipe keeps merged queries and keys merged, with the same bias term."""
    for name, module in previous.modules.items():
        now = plan.modules.get(name)
        if module.kind == "qkr" and (now is None or now.kind != "qkr" or now.query_bias != module.query_bias):
            seen = "keeps them separate" if now is None or now.kind != "qkr" else f"has query_bias {now.query_bias}"
            raise RecipeError(
                f"recipe '{recipe.name}': {seen}, but query and key of {name} are merged in {source}, with query_bias "
                f"{module.query_bias}; a merged product cannot be separated",
                hint=f"--set attention.qkr=true attention.query_bias={str(module.query_bias).lower()}",
            )


def _carried_over(previous: Plan, plan: Plan) -> tuple[Plan, frozenset[str]]:
    """``plan`` with what ``previous`` replaced and the quantizers that are also there, and the names of these."""
    kept: set[str] = set()
    modules = dict(plan.modules)
    for name in plan.modules.keys() & previous.modules.keys():
        module, old = plan.modules[name], previous.modules[name]
        weight, inputs = module.weight, dict(module.operands)
        if old.weight is not None and weight is not None and computes_alike(old.weight, weight):
            weight = old.weight
            kept.add(f"{name}.weight")
        for operand in inputs.keys() & old.operands.keys():
            if computes_alike(old.operands[operand], inputs[operand]):
                inputs[operand] = old.operands[operand]
                kept.add(f"{name}.{operand}")
        modules[name] = module.model_copy(update={"weight": weight, "operands": inputs})
    return plan.model_copy(update={"modules": modules, "replaced": previous.replaced}), frozenset(kept)


def _quantizers(model: nn.Module, plan: Plan) -> Iterator[tuple[str, str]]:
    """Name of every quantizer in the plan, such as ``head.weight``, and the prefix of its tensors' names."""
    prefixes = {module: f"{name}." for name, module in model.named_modules() if isinstance(module, Quantizer)}
    for name in plan.modules:
        module = model.get_submodule(name)
        site = weight_site(module)
        if site is not None and site.weight_quantizer is not None:
            yield f"{name}.weight", prefixes[site.weight_quantizer]
        yield from ((f"{name}.{operand}", prefixes[quantizer]) for operand, quantizer in operands(module).items())


def _merged(plan: Plan) -> set[str]:
    """Names of the blocks whose query and key are merged."""
    return {name for name, module in plan.modules.items() if module.kind == "qkr"}


def _fill(model: nn.Module, state: Mapping[str, Tensor], *, lacks: list[str]) -> None:
    """Load the run's tensors into the model; only tensors whose names start with one of ``lacks`` may be missing."""
    missing = model.load_state_dict(dict(state), strict=False).missing_keys
    left = [name for name in missing if not name.startswith(tuple(lacks))]
    assert not left, f"not in the run: {left}"


def _notes(fresh: list[str], kept: int) -> list[str]:
    if not fresh:
        return []
    some = f"{', '.join(fresh[:3])}{', ...' if len(fresh) > 3 else ''}"
    return [
        f"{len(fresh)} of {len(fresh) + kept} quantizers differ from those of the run and get new start values: {some}"
    ]
