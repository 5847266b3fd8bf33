"""Calibration: what it sets, and what it refuses."""

import copy

import pytest
import timm
import torch

from ofqctl.convert import convert, operands
from ofqctl.convert.ofq_checkpoint import translate
from ofqctl.errors import ModelError
from ofqctl.models import read_torch_file
from ofqctl.ptq import calibrate
from ofqctl.quantizers.base import by_group
from ofqctl.recipe import Override
from ofqctl.recipe.catalogue import load, names
from ofqctl.recipe.schema import Activations, Attention, Layer

SIZE = (3, 32, 32)
IN_TURN = ("ofq/", "statsq", "lsq", "bench/imagenette_ofq", "bench/oscillation/", "demo/digits_ofq")


@pytest.mark.parametrize("name", ["ofq_starts_w2a2_qkr", "ofq_starts_w3a3"])
def test_learned_steps_start_where_those_of_the_authors_start(shared, name):
    theirs = read_torch_file(shared / "reference" / f"{name}.pt")
    bits, qkr, query_bias = (theirs["config"].pop(key) for key in ("bits", "qkr", "query_key_bias"))
    model = timm.create_model("vit_tiny_patch16_224", **theirs["config"])
    model.load_state_dict(theirs["float_state"])
    own = (f"weights.bits={bits}", f"activations.bits={bits}")
    recipe = load("ofq/vit_w2a2", [*own, f"attention.qkr={qkr}", f"attention.query_bias={query_bias}"])
    calibrate(model, convert(model, recipe, tuple(theirs["input"].shape[1:])), [theirs["input"]])
    ours = steps_of(model)
    expected = translate(theirs["starts"], {name: step.shape for name, step in ours.items()})
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        logits = model(theirs["input"])
    assert (logits - theirs["logits"]).abs().max() <= 1e-5 * theirs["logits"].abs().max()


@pytest.mark.parametrize("name", [name for name in names() if name.startswith(IN_TURN)])
def test_a_learned_step_starts_behind_quantized_layers_in_every_recipe_as_published(lively_vit, images, name):
    plan = convert(lively_vit, load(name, ["model=null"]), SIZE)
    calibrate(lively_vit, plan, [images])
    check_in_turn(lively_vit, plan, images)


def test_all_images_in_one_batch_take_one_forward_pass(lively_vit, images):
    plan = convert(lively_vit, load("ofq/vit_w2a2"), SIZE)
    passes, told = [], []
    lively_vit.register_forward_pre_hook(lambda *_: passes.append(1))
    assert calibrate(lively_vit, plan, [images], on_batch=told.append) == 4
    assert len(passes) == 1
    assert told == [4]


@pytest.mark.parametrize("recipe", ["ofq/vit_w2a2", "lsq"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_steps_that_start_in_turn_do_not_depend_on_how_images_are_split(lively_vit, images, recipe, size):
    plan = convert(lively_vit, load(recipe), SIZE)
    calibrate(lively_vit, plan, [images])
    at_once = steps_of(lively_vit)
    for batches in (images.split(size), (batch for batch in images.split(size))):
        told = []
        assert calibrate(lively_vit, plan, batches, on_batch=told.append) == 4
        torch.testing.assert_close(steps_of(lively_vit), at_once, rtol=1e-5, atol=0)
        assert told == sorted(told)
        assert told[-1] == 4


@pytest.mark.parametrize("size", [2, 4])
def test_in_a_mixed_model_steps_in_turn_start_behind_all_that_start_from_float_activations(lively_vit, images, size):
    uniform, least_error = {"method": "uniform", "bits": 4}, {"method": "lsq", "bits": 2, "start": "mse"}
    recipe = load("statsq").model_copy(
        update={
            "first": Layer(activations=Activations(**uniform)),
            "last": Layer(activations=Activations(**uniform)),
            "layers": (Override(target="blocks.1.mlp.fc1", activations=Activations(**least_error)),),
        }
    )
    in_float = recipe.model_copy(update={"activations": Activations(bits=32), "attention": Attention(products=False)})
    reference = copy.deepcopy(lively_vit)
    calibrate(reference, convert(reference, in_float, SIZE), [images])
    plan = convert(lively_vit, recipe, SIZE)
    calibrate(lively_vit, plan, images.split(size))
    for name in ("patch_embed.proj.input.step", "blocks.1.mlp.fc1.input.step", "head.input.step"):
        torch.testing.assert_close(steps_of(lively_vit)[name], steps_of(reference)[name])
    check_in_turn(lively_vit, plan, images)


def test_quantizers_that_are_kept_go_on_as_they_are_and_others_start_behind_them(lively_vit, images):
    plan = convert(lively_vit, load("statsq"), SIZE)
    calibrate(lively_vit, plan, [images])
    kept = lively_vit.blocks[0].attn.proj.input
    with torch.no_grad():
        kept.step.mul_(3.0)
        kept.before.fill_(0.1)
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    calibrate(lively_vit, plan, [images], keep={"blocks.0.attn.proj.input"})
    torch.testing.assert_close(dict(kept.state_dict()), before, rtol=0, atol=0)
    check_in_turn(lively_vit, plan, images, keep={"blocks.0.attn.proj.input"})


@pytest.mark.parametrize("size", [2, 4])
def test_a_quantizer_of_a_block_that_is_called_twice_starts_at_its_first_call(lively_vit, images, size):
    lively_vit.blocks[1] = lively_vit.blocks[0]
    plan = convert(lively_vit, load("ofq/vit_w2a2"), SIZE)
    calibrate(lively_vit, plan, images.split(size))
    check_in_turn(lively_vit, plan, images)


def test_a_quantizer_that_the_model_never_calls_is_named(lively_vit, images):
    plan = convert(lively_vit, load("statsq"), SIZE)
    lively_vit.forward = lively_vit.forward_features
    for batches in ([images], images.split(2)):
        with pytest.raises(ModelError, match=r"head\.input: calibration saw no finite values"):
            calibrate(lively_vit, plan, batches)


def steps_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(".step")}


def check_in_turn(model, plan, images, keep=()):
    """Each step fits the input that the calibrated model itself gives its quantizer, at its first call."""
    inputs = {}

    def see(quantizer, args):
        inputs.setdefault(quantizer, args[0])

    for name in plan.modules:
        for quantizer in operands(model.get_submodule(name)).values():
            quantizer.register_forward_pre_hook(see)
    with torch.no_grad():
        model(images)
    kept = {operands(model.get_submodule(name.rpartition(".")[0]))[name.rpartition(".")[2]] for name in keep}
    checked = [q for q in inputs if q.plan.method == "lsq" and q.plan.start == "mean" and q not in kept]
    assert checked
    for quantizer in checked:
        magnitude = by_group(inputs[quantizer].abs(), quantizer.step.shape).mean(dim=1).view_as(quantizer.step)
        expected = (2.0 if quantizer.range.signed else 4.0) * magnitude / quantizer.range.high**0.5
        anything = expected > 0  # at 2 bits a whole row of the softmax can be code 0, and nothing comes out of it
        torch.testing.assert_close(quantizer.step.detach()[anything], expected[anything], rtol=1e-5, atol=0)


def test_batches_give_the_same_ranges_as_all_images_at_once(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    calibrate(tiny_vit, plan, [images])
    at_once = {n: b.clone() for n, b in tiny_vit.state_dict().items() if n.endswith((".step", ".offset"))}
    calibrate(tiny_vit, plan, images.split(1))
    assert all(torch.equal(tiny_vit.state_dict()[n], b) for n, b in at_once.items())


def test_activations_are_observed_in_float_with_quantized_weights(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax", ["weights.bits=2", "activations.bits=2"]), SIZE)
    seen = {}
    tiny_vit.blocks[0].mlp.fc1.input.register_forward_hook(lambda _m, args, out: seen.update(same=out is args[0]))
    calibrate(tiny_vit, plan, [images])
    assert seen["same"]
    assert not any(q.observing for n in plan.modules for q in operands(tiny_vit.get_submodule(n)).values())


def test_weights_that_are_not_finite_are_named(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    tiny_vit.blocks[1].mlp.fc2.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.fc2: 1 of its weights"):
        calibrate(tiny_vit, plan, [images])


@pytest.mark.parametrize(
    ("recipe", "seen"), [("ptq/minmax", "values that are not finite"), ("statsq", "no finite values")]
)
def test_activations_that_are_not_finite_are_named(tiny_vit, images, recipe, seen):
    plan = convert(tiny_vit, load(recipe), SIZE)
    tiny_vit.norm.weight.data.fill_(float("inf"))
    with pytest.raises(ModelError, match=rf"head\.input: calibration saw {seen}"):
        calibrate(tiny_vit, plan, [images])


@pytest.mark.parametrize("recipe", ["ptq/minmax", "statsq"])
def test_an_interrupted_calibration_leaves_a_model_that_computes(tiny_vit, images, recipe):
    plan = convert(tiny_vit, load(recipe), SIZE)

    def interrupt(_images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny_vit, plan, images.split(2), on_batch=interrupt)
    quantizers = [q for name in plan.modules for q in operands(tiny_vit.get_submodule(name)).values()]
    assert not any(q.observing or q._forward_pre_hooks or "forward" in vars(q) for q in quantizers)
