"""How many epochs of a recipe fit into a time budget."""

import math

from ofqctl.errors import RecipeError
from ofqctl.progress import Progress
from ofqctl.ptq import Clock
from ofqctl.recipe import Recipe
from ofqctl.training import Checkpoint, Engine, seconds_per_step

STAGES = 0.5  # share of the time that stages ahead of training may take
_EVALUATION = 1 / 3  # time of evaluating an image, of that of training on it, which goes backwards as well


def paced(trial: Engine, clock: Clock, validated: int, progress: Progress) -> Recipe:
    """The recipe with as many of its epochs as fit into the time that is left.

    Args:
        trial: An engine of a copy of the model, to measure steps with.
        clock: The time.
        validated: Number of images that are measured after every epoch.
        progress: Called to report what was found.

    Raises:
        RecipeError: There is not enough time for an epoch of each phase.
    """
    settings = trial.settings
    planned, fewest = sum(phase.epochs for phase in settings.phases), len(settings.phases)
    progress("measure steps", 0, None)
    step = seconds_per_step(trial)
    epoch = step * (trial.batches.steps_per_epoch + _EVALUATION * validated / settings.batch_size)
    left = clock.left
    assert left is not None
    epoch, left = trial.processes.gather((epoch, left))[0]  # one process decides
    epochs = min(planned, int(left / epoch))
    if epochs < fewest:
        phases = "one epoch takes" if fewest == 1 else f"{fewest} epochs, one for each phase, take"
        raise RecipeError(
            f"--time-budget: {phases} about {math.ceil(fewest * epoch)} s, and {left:.0f} s are left of it",
            hint=f"{math.ceil(clock.spent + fewest * epoch)} s or more, or fewer steps an epoch "
            "(--set training.steps_per_epoch=N)",
        )
    progress(f"{epochs} of {planned} epochs fit into the time, about {epoch:.0f} s each", 0, None)
    return trial.recipe.model_copy(update={"training": settings.shortened(epochs)})


def as_begun(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with the numbers of epochs that were found to fit when the training began."""
    assert recipe.training is not None
    epochs = sum(phase["epochs"] for phase in checkpoint.recipe["training"]["phases"])
    return recipe.model_copy(update={"training": recipe.training.shortened(epochs)})
