"""The authors' checkpoint files against their own outputs, loss and gradients."""

import pytest
import timm
import torch
from torch.nn import functional as F

from ofqctl.convert.ofq_checkpoint import load_ofq, recipe_for, translate
from ofqctl.errors import ArtifactError
from ofqctl.models import read_torch_file

FILES = ["ofq_w2a2_qkr_a", "ofq_w3a3_b"]
# a shift of all keys adds the same to every logit of a query: these gradients are 0 but for rounding
VANISHING = ("products.k.after", "products.qkx.after")


@pytest.fixture(params=FILES)
def imported(request, shared):
    state = read_torch_file(shared / "reference" / f"{request.param}.pth.tar")["state_dict"]
    io = read_torch_file(shared / "reference" / f"{request.param}.io.pt")
    config = io["config"]
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        img_size=config["img"],
        patch_size=config["patch"],
        num_classes=config["classes"],
    )
    recipe = recipe_for(state, wbits=config["w"], abits=config["a"])
    load_ofq(model, state, recipe, (3, config["img"], config["img"]))
    return model, io, state


def test_logits_are_those_of_the_authors(imported):
    model, io, _ = imported
    with torch.no_grad():
        logits = model.eval()(io["input"])
    assert (logits - io["logits"]).abs().max() <= 1e-4 * io["logits"].abs().max()


def test_loss_and_every_gradient_are_those_of_the_authors(imported):
    model, io, _ = imported
    model.set_distilled_training(True)
    target = torch.arange(4) % io["config"]["classes"]
    loss = sum(F.cross_entropy(logits, target) for logits in model.train()(io["input"]))
    loss.backward()
    assert abs(loss.item() - io["train_loss"].item()) <= 1e-5
    ours = dict(model.named_parameters())
    theirs = translate(io["grads"], {n: p.shape for n, p in ours.items()})
    assert theirs.keys() == ours.keys()
    for name, expected in theirs.items():
        error = (ours[name].grad - expected).norm()
        if name.endswith(VANISHING):
            assert error <= 1e-6
        else:
            assert error <= 2e-4 * expected.norm(), name


def test_a_checkpoint_for_other_sizes_names_what_does_not_fit(imported):
    _, io, state = imported
    other = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, num_classes=7, depth=1)
    config = io["config"]
    with pytest.raises(ArtifactError, match="does not fit the model") as caught:
        load_ofq(other, state, recipe_for(state, wbits=config["w"], abits=config["a"]), (3, 32, 32))
    assert "more" in caught.value.message


def test_a_float_checkpoint_is_not_taken_for_one():
    with pytest.raises(ArtifactError, match="no OFQ quantizers"):
        recipe_for({"head.weight": torch.zeros(2, 2)}, wbits=2, abits=2)
