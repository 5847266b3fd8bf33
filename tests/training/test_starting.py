"""Where training starts: at the very model that an earlier run holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ofqctl.artifact import digest, load_run
from ofqctl.data import DataSpec
from ofqctl.errors import ArtifactError, DataError, RecipeError
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.jobs.starting import open_start, recipe_of_run
from ofqctl.jobs.train import train
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.training import read_checkpoint_state

QUICK = ("calibration.images=8", "calibration.batch_size=8")
SHORT = ("training.batch_size=8", "training.phases.0.epochs=1", "training.phases.0.warmup_epochs=0")
NO_TEACHER = "training.distillation=null"


@pytest.fixture
def run_of(request_for, tmp_path):
    """Quantizes the tiny model with a recipe, into ``tmp_path / name``."""

    def make(recipe, *sets, name="quantized"):
        output = tmp_path / name
        model = request_for().model
        quantize(QuantizeRequest(model, load(recipe, [*QUICK, *sets]), output=output, device="cpu"))
        return output

    return make


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def nothing(*_):
    raise AssertionError("nothing is to be calibrated")


def started(run, recipe, images=nothing):
    """The quantized model that training would start with, and the notes."""
    start = open_start(ModelRequest(str(run)), None)
    _, notes = start.quantized(recipe, images, lambda *_: None, lambda model: model)
    return start.loaded.model.eval(), notes


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("ofq/vit_w2a2", ()),
        ("statsq", ("weights.bits=3",)),
        ("lsq", ()),
        ("ptq/mse", ("weights.bits=4", "activations.bits=4")),
        ("ptq/minmax", ("weights.bits=4", "weights.symmetric=false")),
    ],
)
def test_training_starts_with_the_codes_and_the_logits_of_a_quantized_run(run_of, images, recipe, sets):
    run = run_of(recipe, *sets)
    before = load_run(run).model
    model, notes = started(run, load(recipe, [*QUICK, *sets]))
    assert notes == [f"{run} keeps no latent weights: weights start in the middle of their bins"]
    check_same(before, model, images)


def check_same(before, model, images):
    """That a model with latent weights has the codes and the logits of a run."""
    codes = {name: site.encode_weight().codes for name, site in weight_sites(before)}
    for name, site in weight_sites(model):
        assert site.fixed_codes is None
        assert torch.equal(site.encode_weight().codes, codes[name]), name
    with torch.no_grad():
        assert torch.allclose(model(images), before(images), atol=1e-4)


RECONSTRUCTED = "ptq=[{stage: reconstruct, iterations: 3, views: 8, weight_rate: 0.1}]"


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("ofq/vit_w2a2", ()),
        ("lsq", ()),
        ("ptq/mse", ("weights.bits=3", "activations.bits=4")),
        ("denseshift/vit_w3a8", ("weights.decomposition=true",)),
    ],
)
def test_training_starts_with_the_latent_weights_that_reconstruction_has_trained(run_of, images, recipe, sets):
    sets = (*sets, RECONSTRUCTED)
    run = run_of(recipe, *sets)
    kept = load_file(run / "latents.safetensors")
    model, notes = started(run, load(recipe, [*QUICK, *sets]))
    assert notes == []
    check_same(load_run(run).model, model, images)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    (run / "latents.safetensors").unlink()
    middle, notes = started(run, load(recipe, [*QUICK, *sets]))
    assert len(notes) == 1
    check_same(load_run(run).model, middle, images)
    assert any(not torch.equal(middle.state_dict()[name], tensor) for name, tensor in kept.items())


def test_a_float_model_starts_with_what_the_recipes_stages_make_of_it(request_for, folder, tmp_path):
    from ofqctl.data import image_loader, open_data

    recipe, model, data = load("statsq", [*QUICK, RECONSTRUCTED]), request_for().model, DataSpec(str(folder))
    quantize(QuantizeRequest(model, recipe, output=tmp_path / "run", calibration=data, device="cpu"))
    torch.manual_seed(0)  # of the model's weights
    start = open_start(model, None)
    loader = image_loader(open_data(data), start.loaded.data_config, batch_size=8, limit=8)
    plan, notes = start.quantized(recipe, lambda: loader, lambda *_: None, lambda model: model)
    assert notes == []
    run = load_run(tmp_path / "run")
    assert plan == run.config.quantization_config.plan
    expected = {name: site.encode_weight().codes for name, site in weight_sites(run.model)}
    for name, site in weight_sites(start.loaded.model):
        assert torch.equal(site.encode_weight().codes, expected[name]), name


def test_latent_weights_are_the_start_of_other_widths_as_well(run_of, folder):
    run = run_of("statsq", RECONSTRUCTED)
    kept = load_file(run / "latents.safetensors")
    from ofqctl.data import image_loader, open_data

    start = open_start(ModelRequest(str(run)), None)
    loader = image_loader(open_data(DataSpec(str(folder))), start.loaded.data_config, batch_size=8, limit=8)
    start.quantized(load("statsq", [*QUICK, "weights.bits=4"]), lambda: loader, lambda *_: None, lambda model: model)
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(start.loaded.model.state_dict()[name], kept[name])


def test_latent_weights_that_are_damaged_or_of_other_codes_are_refused(run_of):
    run, other = run_of("statsq", RECONSTRUCTED), run_of("statsq", RECONSTRUCTED, "calibration.images=4", name="other")
    file = run / "latents.safetensors"
    own = file.read_bytes()
    file.write_bytes((other / file.name).read_bytes())
    with pytest.raises(ArtifactError, match=r"latents\.safetensors: not of this run's codes"):
        started(run, load("statsq", [*QUICK]))
    file.write_bytes(own[:-4])
    with pytest.raises(ArtifactError, match=r"latents\.safetensors: truncated"):
        started(run, load("statsq", [*QUICK]))
    tensors = load_file(other / file.name)
    tensors["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"weights_sha256": digest((run / "model.safetensors").read_bytes())})
    with pytest.raises(ArtifactError, match=r"blocks\.0\.mlp\.fc1\.weight has 1 values that are NaN or infinite"):
        started(run, load("statsq", [*QUICK]))


def test_latent_weights_go_when_the_run_is_replaced_by_one_that_keeps_none(run_of, request_for):
    run = run_of("statsq", RECONSTRUCTED)
    model = request_for().model
    again = QuantizeRequest(model, load("statsq", [*QUICK]), output=run, overwrite=True, device="cpu")
    quantize(again)
    assert not (run / "latents.safetensors").exists()


def test_training_starts_with_the_latent_weights_of_an_earlier_training(request_for):
    request = request_for()
    train(request)
    model, notes = started(request.output, request.recipe)
    assert notes == []
    state = read_checkpoint_state(request.output).model
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_training_starts_with_averaged_weights_where_there_are_some(request_for):
    request = replace(request_for(), recipe=load("statsq", [*QUICK, *SHORT, "training.ema=0.5"]))
    train(request)
    model, _ = started(request.output, request.recipe)
    assert torch.equal(model.norm.weight, read_checkpoint_state(request.output).ema["module.norm.weight"])


def test_a_quantized_run_is_trained_on(run_of, request_for):
    bits = ("weights.bits=4", "activations.bits=4")  # at 2, the even softmax of random weights is code 0 everywhere
    run = run_of("ofq/vit_w2a2", *bits)
    recipe = load("ofq/vit_w2a2", [*QUICK, *SHORT, NO_TEACHER, *bits, "training.phases.1.epochs=1"])
    result = train(replace(request_for(), model=ModelRequest(str(run)), recipe=recipe))
    assert result.source == f"run {run}"
    assert not any("quantizers" in note for note in result.notes)
    again = replace(request_for("again"), model=ModelRequest(result.output), recipe=recipe)
    assert train(again).training.epochs[-1].loss < result.training.epochs[-1].loss


def test_a_training_from_a_run_resumes_like_any_other(run_of, request_for):
    recipe = load("ofq/vit_w2a2", [*QUICK, *SHORT, NO_TEACHER, "training.phases.1.epochs=1"])
    request = replace(request_for("whole"), model=ModelRequest(str(run_of("ofq/vit_w2a2"))), recipe=recipe)
    train(request)

    def stop(row, _total):
        if row["step"] == 3:
            raise MemoryError

    other = replace(request, output=request.output.with_name("stopped"), checkpoint_every=1, resume="auto")
    with pytest.raises(MemoryError):
        train(other, on_step=stop)
    train(other)
    weights = [(r.output / "model.safetensors").read_bytes() for r in (request, other)]
    assert weights[0] == weights[1]


def test_quantizers_of_another_grid_start_anew_and_are_named(run_of, request_for, folder):
    run = run_of("statsq")
    before = load_run(run).model
    recipe = load("statsq", [*QUICK, *SHORT, NO_TEACHER, "weights.bits=4"])
    result = train(replace(request_for(), model=ModelRequest(str(run)), recipe=recipe))
    assert any(
        "8 of 28 quantizers differ from those of the run and get new start values: blocks.0" in n for n in result.notes
    )
    start = open_start(ModelRequest(str(run)), None)
    data = DataSpec(str(folder))
    from ofqctl.data import image_loader, open_data

    loader = image_loader(open_data(data), start.loaded.data_config, batch_size=8, limit=8)
    plan, _ = start.quantized(recipe, lambda: loader, lambda *_: None, lambda model: model)
    model = start.loaded.model
    assert plan.modules["blocks.0.mlp.fc1"].weight.bits == 4
    assert torch.equal(model.blocks[0].mlp.fc1.weight, before.blocks[0].mlp.fc1.weight)  # the values, as floats
    assert torch.equal(model.blocks[0].mlp.fc1.input.step, before.blocks[0].mlp.fc1.input.step)


def test_activations_relative_to_their_rows_start_anew(run_of, images):
    run = run_of("statsq")
    _, notes = started(run, load("statsq", [*QUICK, "activations.dynamic=true"]), lambda: [(images, None)])
    assert any("quantizers differ from those of the run and get new start values: blocks.0.attn.q" in n for n in notes)


def test_projections_are_merged_on_the_way_but_never_taken_apart(run_of, request_for):
    apart = run_of("statsq")
    merging = load("ofq/vit_w2a2", [*QUICK, *SHORT, NO_TEACHER, "training.phases.1.epochs=1"])
    request = replace(request_for("merged"), model=ModelRequest(str(apart)), recipe=merging)
    assert any("attn" in note for note in train(request).notes)
    back = replace(
        request_for("back"),
        model=ModelRequest(str(request.output)),
        recipe=load("statsq", [*QUICK, *SHORT, NO_TEACHER]),
    )
    with pytest.raises(RecipeError, match=r"keeps them separate, but query and key of blocks\.0\.attn are merged"):
        train(back)
    biased = load("ofq/vit_w2a2", [*QUICK, *SHORT, NO_TEACHER, "attention.query_bias=false"])
    with pytest.raises(RecipeError, match="has query_bias False"):
        train(replace(back, recipe=biased))


def test_the_teacher_of_a_quantized_run_must_be_named(run_of, request_for, folder):
    run = run_of("statsq")
    request = replace(request_for(), model=ModelRequest(str(run)), recipe=load("statsq", [*QUICK, *SHORT]))
    with pytest.raises(RecipeError, match="is quantized") as caught:
        train(request)
    assert "random initialization" in caught.value.hint
    teacher = request_for("float", "demo/digits_float")
    train(teacher)
    named = load("statsq", [*QUICK, *SHORT, f"training.distillation.teacher={teacher.output}"])
    train(replace(request, recipe=named))


def test_a_run_trains_on_as_its_own_recipe_says(request_for, run_of):
    assert recipe_of_run(run_of("statsq")).name == "statsq"
    with pytest.raises(RecipeError, match="its recipe 'ptq/mse' does not say how to train it"):
        recipe_of_run(run_of("ptq/mse", name="ptq"))
    with pytest.raises(RecipeError, match="not a run directory"):
        recipe_of_run(request_for().output)


def test_a_run_is_not_replaced_by_the_training_that_starts_from_it(run_of, request_for):
    run = run_of("statsq")
    request = replace(request_for(), model=ModelRequest(str(run)), output=run, overwrite=True)
    with pytest.raises(ArtifactError, match="starts from this run"):
        train(request)


def test_images_of_other_classes_than_the_run_are_refused(request_for, tmp_path):
    request = request_for()
    train(request)

    def folder_of(*names):
        root = tmp_path / "-".join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            for number in range(8):
                pixels = np.full((36, 36, 3), number, dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        return DataSpec(str(root))

    onward = replace(request_for("onward", sets=[NO_TEACHER]), model=ModelRequest(str(request.output)))
    with pytest.raises(DataError, match="2 folders do not fit a model with 3 classes"):
        train(replace(onward, data=folder_of("cat", "dog")))
    with pytest.raises(DataError, match="its classes are not those of the model"):
        train(replace(onward, data=folder_of("cat", "dog", "owl")))
    with pytest.raises(DataError, match="its classes are not those of the model"):
        train(replace(onward, val_data=folder_of("ant", "bee", "fly")))


def test_unlabelled_images_are_refused(request_for, folder):
    with pytest.raises(DataError, match="have no labels"):
        train(replace(request_for(), data=DataSpec(str(folder / "class0"))))


def test_stochastic_depth_is_that_of_the_recipe_not_of_the_run(request_for):
    request = request_for("float", "demo/digits_float", ["training.drop_path=0.2"])
    train(request)
    model = open_start(ModelRequest(str(request.output)), 0.0).loaded.model
    assert type(model.blocks[1].drop_path1).__name__ == "Identity"
    assert (
        type(open_start(ModelRequest(str(request.output)), 0.1).loaded.model.blocks[1].drop_path1).__name__
        == "DropPath"
    )
