"""The objective is the sum of the terms that a recipe asks for, registered ones of other packages included."""

import pytest
import torch
from pydantic import Field
from torch.nn import functional as F

from ofqctl.data import Batch
from ofqctl.distill import TERMS, Teacher, Term
from ofqctl.errors import RecipeError
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.training import Training
from ofqctl.registry import Frozen
from ofqctl.training.objective import Objective

CONFIG = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}


class Confidence(Frozen):
    weight: float = Field(default=1.0)


@pytest.fixture
def confidence():
    """A term registered outside: the mean entropy of the predictions, stronger as training goes on."""

    @TERMS.register("confidence", Confidence)
    class ConfidenceTerm(Term):
        def __init__(self, model, teacher, settings):
            self.weight = settings.weight

        def loss(self, seen):
            logs = seen.heads[0].log_softmax(1)
            return -self.weight * seen.progress * (logs.exp() * logs).sum(1).mean()

    yield ConfidenceTerm
    del TERMS._methods["confidence"]


def batch_of(images):
    labels = torch.arange(len(images)) % 10
    return Batch(images, labels, torch.arange(len(images)))


def value(model, training, images, teacher=None, progress=0.5):
    loss, _ = Objective(model, training, teacher, amp=False)(model, batch_of(images), 0, progress)
    return loss.item()


def test_without_a_teacher_the_labels_are_learned(tiny_vit, images):
    wanted = F.cross_entropy(tiny_vit(images), torch.arange(4) % 10).item()
    assert value(tiny_vit, Training(), images) == pytest.approx(wanted, rel=1e-6)


def test_distillation_is_labels_and_answers_at_its_weights_and_temperature(tiny_vit, images):
    teacher = Teacher(tiny_vit, CONFIG, CONFIG, "itself")
    training = Training(distillation={"hard": 0.25, "soft": 2.0, "temperature": 3.0})
    logits = tiny_vit(images).detach()
    soft = -((logits / 3).softmax(1) * (logits / 3).log_softmax(1)).sum(1).mean() * 9
    wanted = 0.25 * F.cross_entropy(logits, torch.arange(4) % 10) + 2.0 * soft
    assert value(tiny_vit, training, images, teacher) == pytest.approx(wanted.item(), rel=1e-5)


def test_a_registered_term_is_added_where_a_recipe_names_it(tiny_vit, images, confidence):
    recipe = load("statsq", ["training.distillation=null", "training.terms={confidence: {weight: 3}}"])
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe
    logs = tiny_vit(images).detach().log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1).mean().item()
    added = value(tiny_vit, recipe.training, images) - value(tiny_vit, Training(), images)
    assert added == pytest.approx(3 * 0.5 * entropy, rel=1e-4)
    with pytest.raises(RecipeError, match=r"training.terms.confidenze: unknown key; did you mean 'confidence'"):
        load("statsq", ["training.terms={confidenze: {}}"])


def test_a_term_named_beside_distillation_has_its_own_settings_in_place_of_those(tiny_vit, images):
    teacher = Teacher(tiny_vit, CONFIG, CONFIG, "itself")
    terms = {"labels": {"weight": 3.0}, "answers": {"weight": 0.0}}
    wanted = 3 * value(tiny_vit, Training(), images)
    assert value(tiny_vit, Training(distillation={}, terms=terms), images, teacher) == pytest.approx(wanted)


def test_a_term_that_needs_a_teacher_is_refused_without_one():
    with pytest.raises(RecipeError, match=r"terms.answers learns from a teacher"):
        load("statsq", ["training.distillation=null", "training.terms={answers: {}}"])
