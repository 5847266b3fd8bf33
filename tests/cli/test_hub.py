"""Runs that travel: sent to a hub and read back through its client and HTTP on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import load_file

from .conftest import QUICK, quantize_tiny
from .hub import STRANGER, TOKEN, Hub

NAME = "hf-hub:acme/vit"
LATENT = ("--set", "training.batch_size=64", "training.phases.0.epochs=1", "training.phases.0.warmup_epochs=0")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, and its client told to use it as HF_ENDPOINT tells it."""
    with Hub() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value, raising=name != "HF_HUB_DISABLE_XET")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def pushed(hub, ofqctl, run):
    """The hub, after the run was sent there."""
    ended = ofqctl("push", run, "acme/vit", "--json")
    assert ended.code == 0, ended.err
    return hub


def content(hub, name="acme/vit"):
    repository = hub.repositories[name]
    return repository.commits[repository.head]


def files_of(run):
    return {path.name: path.read_bytes() for path in Path(run).iterdir() if path.is_file()}


def test_a_run_that_was_pushed_and_read_back_has_the_same_bytes(hub, ofqctl, run, tmp_path):
    assert ofqctl("export", run, "--onnx", "--verify-images", 2).code == 0
    ended = ofqctl("push", run, "acme/vit", "--json")
    assert ended.code == 0, ended.err
    local = files_of(run)
    assert set(local) == {"config.json", "model.safetensors", "results.json", "recipe.yaml", "model.onnx"}
    there = content(hub)
    card = there.pop("README.md").decode()
    del there[".gitattributes"]
    assert there == local
    assert ended.json["card"] == card
    assert ended.json["created"] is True
    assert ended.json["private"] is False
    assert ended.json["url"] == f"{hub.url}/acme/vit"
    assert {file["name"]: file["bytes"] for file in ended.json["files"]} == (
        {name: len(data) for name, data in local.items()} | {"README.md": len(card.encode())}
    )
    assert ofqctl("inspect", NAME).code == 0
    back = files_of(next((tmp_path / "cache" / "models--acme--vit" / "snapshots").iterdir()))
    assert back == {name: data for name, data in local.items() if name != "model.onnx"}
    assert {token for _, path, token in hub.seen if path.startswith("/storage/")} == {None}


def test_every_command_reads_a_run_of_the_hub_as_it_reads_a_local_one(pushed, ofqctl, run, tmp_path):
    asked = {
        "evaluate": ("--data", "digits", "--limit", 64),
        "inspect": (),
        "analyze-oscillation": (),
        "compare": (),
    }
    for command, more in asked.items():
        told = [ofqctl(command, name, *more, "--json") for name in (run, NAME)]
        assert [ended.code for ended in told] == [0, 0], told[1].err
        local, there = (json.dumps(_without_speed(ended.json)) for ended in told)
        assert there == local.replace(str(run), NAME), command
    commit = pushed.repositories["acme/vit"].head
    assert f"note: {NAME} is commit {commit}" in ofqctl("inspect", NAME).err
    image = tmp_path / "image.png"
    _picture().save(image)
    assert NAME in ofqctl("predict", NAME, image).out
    timed = ofqctl("bench", "infer", NAME, "--against", "float", "--runs", 1, "--json")
    assert timed.code == 0, timed.err
    assert timed.json["files"]["model"]["file"] == NAME


def _without_speed(values):
    if isinstance(values, list):
        return [_without_speed(value) for value in values]
    left_out = ("images_per_second", "notes", "seconds")
    return (
        {k: _without_speed(v) for k, v in values.items() if k not in left_out} if isinstance(values, dict) else values
    )


def _picture():
    from PIL import Image

    return Image.new("RGB", (40, 40), (200, 30, 90))


def test_what_is_exported_from_the_hub_lands_in_a_folder_of_its_name(pushed, ofqctl, run, tmp_path):
    assert ofqctl("export", NAME, "--onnx", "--verify-images", 2).code == 0
    assert (tmp_path / "vit" / "model.onnx").is_file()
    assert ofqctl("export", NAME, "--safetensors").code == 0
    assert ofqctl("export", run, "--safetensors").code == 0
    ours, theirs = load_file(tmp_path / "run.safetensors"), load_file(tmp_path / "vit.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    snapshots = tmp_path / "cache" / "models--acme--vit" / "snapshots"
    assert not list(snapshots.rglob("*.onnx"))


def test_training_goes_on_from_a_run_of_the_hub_as_from_a_local_one(hub, ofqctl, tmp_path):
    steps = "training.steps_per_epoch=2"
    assert ofqctl(*quantize_tiny("--calib-data", "digits", "--recipe", "lsq", "--output", "start")).code == 0
    first = ("train", "start", "--data", "digits", *LATENT, steps, "training.distillation=null", "--output", "trained")
    ended = ofqctl(*first)
    assert ended.code == 0, ended.err
    assert ofqctl("push", "trained", "acme/vit", "--training-state").code == 0
    assert {"last.pt", "summary.csv"} <= set(content(hub))
    ended = ofqctl("evaluate", NAME, "--data", "digits", "--limit", 16)
    assert ended.code == 0
    assert not list((tmp_path / "cache").rglob("last.pt"))
    for name, output in (("trained", "one"), (NAME, "other")):
        ended = ofqctl("train", name, "--data", "digits", "--set", steps, "--output", output, "--json")
        assert ended.code == 0, ended.err
    assert ended.json["output"] == "other"
    one, other = (files_of(tmp_path / output)["model.safetensors"] for output in ("one", "other"))
    assert one == other


def test_a_run_on_the_hub_can_be_pushed_on(pushed, ofqctl, run):
    ended = ofqctl("push", NAME, "acme/copy", "--private", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["private"] is True
    first, second = content(pushed), content(pushed, "acme/copy")
    assert {name: data for name, data in first.items() if name != "README.md"} == (
        {name: data for name, data in second.items() if name != "README.md"}
    )


def test_a_revision_is_read_as_it_was(pushed, ofqctl, run):
    old = pushed.repositories["acme/vit"].head
    assert ofqctl(*quantize_tiny("--calib-data", "digits", "--seed", 3, "--output", run, "--overwrite")).code == 0
    assert ofqctl("push", run, "acme/vit", "--overwrite").code == 0
    before, now = (ofqctl("inspect", name, "--json").json for name in (f"{NAME}@{old}", NAME))
    assert before["results"]["seed"] == 0
    assert now["results"]["seed"] == 3
    ended = ofqctl("inspect", f"{NAME}@v9")
    assert ended.code == 1
    assert f"{NAME}@v9: the repository has no such revision" in ended.err


def test_a_repository_is_replaced_only_if_asked_and_only_if_it_holds_a_run(hub, ofqctl, run):
    hub.create("acme/vit", files_of(run) | {"model.onnx": b"", "last.pt": b"", "notes.txt": b"mine"})
    before = dict(content(hub))
    ended = ofqctl("push", run, "acme/vit")
    assert ended.code == 1
    assert "hf-hub:acme/vit: exists already and holds a run\nhint: --overwrite" in ended.err
    assert content(hub) == before
    ended = ofqctl("push", run, "acme/vit", "--overwrite", "--json")
    assert ended.json["removed"] == ["last.pt", "model.onnx"]
    assert set(content(hub)) == {*files_of(run), "README.md", "notes.txt"}
    for foreign in ({"README.md": b"mine"}, {"config.json": b'{"architecture": "vit"}', "model.safetensors": b""}):
        hub.create("acme/other", foreign)
        ended = ofqctl("push", run, "acme/other", "--overwrite")
        assert ended.code == 1
        assert "something that ofqctl did not write" in ended.err
    hub.create("acme/empty")
    assert ofqctl("push", run, "acme/empty").code == 0


def test_a_public_repository_is_not_taken_for_a_private_one(hub, ofqctl, run):
    hub.create("acme/vit")
    ended = ofqctl("push", run, "acme/vit", "--private")
    assert ended.code == 1
    assert "exists and is public" in ended.err
    assert "model.safetensors" not in content(hub)


def test_what_somebody_else_writes_meanwhile_is_not_lost(hub, ofqctl, run):
    hub.create("acme/vit")
    hub.meanwhile = lambda repository: repository.add({"README.md": b"mine"})
    ended = ofqctl("push", run, "acme/vit")
    assert ended.code == 1
    assert "somebody else has written it meanwhile" in ended.err
    assert content(hub) == {"README.md": b"mine"}


@pytest.mark.parametrize("token", [None, STRANGER, "hf_wrong"])
def test_who_may_not_is_told_to_sign_in(hub, ofqctl, run, monkeypatch, token):
    assert ofqctl("push", run, "acme/vit", "--private").code == 0
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "nowhere")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    for command in (("inspect", NAME), ("push", run, "acme/vit"), ("push", run, "acme/new")):
        ended = ofqctl(*command)
        assert ended.code == 1, command
        assert "hf auth login" in ended.err.splitlines()[-1], ended.err
    assert "acme/new" not in hub.repositories


def test_without_a_network_what_was_downloaded_is_used(pushed, ofqctl, run, monkeypatch):
    assert ofqctl("inspect", NAME).code == 0
    asked = len(pushed.seen)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert ofqctl("inspect", NAME).code == 0
    for command in (("inspect", "hf-hub:acme/unseen"), ("push", run, "acme/new")):
        ended = ofqctl(*command)
        assert ended.code == 1
        assert "HF_HUB_OFFLINE" in ended.err
    assert len(pushed.seen) == asked


def test_a_hub_that_does_not_answer_is_told_at_once(pushed, ofqctl, run, monkeypatch):
    assert ofqctl("inspect", NAME).code == 0
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert ofqctl("inspect", NAME).code == 0
    for command in (("inspect", "hf-hub:acme/unseen"), ("push", run, "acme/new")):
        ended = ofqctl(*command)
        assert ended.code == 1
        assert "onnection refused" in ended.err
        assert "hint: " in ended.err


def test_a_repository_that_holds_no_run(hub, ofqctl, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=8, embed_dim=48, depth=2)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
    timm.models.save_for_hf(model, tmp_path / "float", model_args=sizes, safe_serialization=True)
    hub.create("acme/float", files_of(tmp_path / "float"))
    hub.create("acme/notes", {"notes.txt": b"nothing"})
    assert ofqctl("evaluate", "hf-hub:acme/float", "--data", "digits", "--limit", 16).code == 0
    for name, told in (("acme/float", "holds no run of ofqctl"), ("acme/notes", "holds no run of ofqctl")):
        ended = ofqctl("inspect", f"hf-hub:{name}")
        assert ended.code == 1
        assert told in ended.err
    ended = ofqctl("evaluate", "hf-hub:acme/notes", "--data", "digits")
    assert ended.code == 1
    assert "holds no config.json, so it is neither a model of timm nor a run of ofqctl" in ended.err


def test_a_float_run_of_the_hub_is_quantized_like_a_local_one(hub, ofqctl, tmp_path):
    all_float = [f"{part}{kind}.bits=32" for part in ("", "first.", "last.") for kind in ("weights", "activations")]
    assert ofqctl(*quantize_tiny("--set", *all_float, "--output", "float")).code == 0
    assert ofqctl("push", "float", "acme/float").code == 0
    low = ("--recipe", "ptq/minmax", "--wbits", 4, "--abits", 4, *QUICK, "--calib-data", "digits", "--json")
    one, other = (ofqctl("quantize", n, *low, "--output", o) for n, o in (("float", "a"), ("hf-hub:acme/float", "b")))
    assert (one.code, other.code) == (0, 0), other.err
    assert files_of(tmp_path / "a")["model.safetensors"] == files_of(tmp_path / "b")["model.safetensors"]


def test_what_was_changed_on_the_hub_is_refused(pushed, ofqctl):
    files = content(pushed)
    config = json.loads(files["config.json"])
    config["data_config"]["crop_pct"] = 0.5
    pushed.create("acme/config", files | {"config.json": json.dumps(config).encode()})
    ended = ofqctl("inspect", "hf-hub:acme/config")
    assert ended.code == 1
    assert "hf-hub:acme/config/config.json: changed after it was written" in ended.err
    assert "hint: `hf download acme/config --local-dir DIR`, then `ofqctl inspect DIR --accept-config`" in ended.err
    ended = ofqctl("inspect", "hf-hub:acme/config", "--accept-config")
    assert ended.code == 1
    assert "this one lies on the hub" in ended.err
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    pushed.create("acme/weights", files | {"model.safetensors": bytes(weights)})
    ended = ofqctl("inspect", "hf-hub:acme/weights")
    assert ended.code == 1
    assert "model.safetensors: changed after it was written" in ended.err
    pushed.create("acme/none", {"config.json": files["config.json"]})
    ended = ofqctl("inspect", "hf-hub:acme/none")
    assert ended.code == 1
    assert "hf-hub:acme/none: holds no model.safetensors" in ended.err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_download_that_is_too_short_is_refused_and_one_that_broke_off_goes_on(pushed, ofqctl, tmp_path, name):
    pushed.truncated.add(name)
    ended = ofqctl("inspect", NAME)
    assert ended.code == 1
    assert "could not be downloaded" in ended.err
    pushed.truncated.clear()
    pushed.cut.add("model.safetensors")
    assert ofqctl("inspect", NAME).code == 0
    assert not pushed.cut


@pytest.mark.parametrize("name", ["vit", "acme/", "/vit", "acme/vit/x", "acme/v it", "hf-hub:acme/vit@main", ""])
def test_what_is_no_name_of_a_repository(hub, ofqctl, run, name):
    ended = ofqctl("push", run, name)
    assert ended.code == 1
    assert "ofqctl push RUN ORG/NAME" in ended.err
    assert not hub.seen


def test_only_whole_runs_are_sent(hub, ofqctl, run):
    (run / "note.onnx").write_bytes(b"no ONNX")
    (run / "letter.txt").write_text("mine")
    (run / "results.json").write_text((run / "results.json").read_text().replace('"seed": 0', '"seed": 1'))
    ended = ofqctl("push", run, "acme/vit", "--dry-run", "--json")
    assert ended.code == 0
    assert "results.json: changed after it was written" in ended.json["notes"][0]
    assert "note.onnx: truncated or not an ONNX file" in ended.json["notes"][1]
    assert {file["name"] for file in ended.json["files"]} == (
        {"config.json", "model.safetensors", "recipe.yaml", "README.md"}
    )
    assert ofqctl("push", run, "acme/vit", "--training-state").code == 1
    (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-1])
    assert ofqctl("push", run, "acme/vit").code == 1
    assert not hub.seen


def test_a_dry_run_shows_the_card_and_asks_nobody(hub, ofqctl, run):
    ended = ofqctl("push", run, "acme/vit", "--dry-run")
    assert ended.code == 0
    assert ended.out.startswith("---\nlibrary_name: ofqctl\n")
    assert "sent      nothing: --dry-run" in ended.out
    assert not hub.seen


@pytest.mark.slow
def test_the_environment_of_the_client_is_all_that_it_takes(run, tmp_path):
    with Hub() as hub:
        environment = os.environ | {
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"},
        }
        environment.pop("HF_HUB_CACHE", None)
        for command in (("push", str(run), "acme/vit"), ("evaluate", NAME, "--data", "digits", "--limit", "16")):
            words = [sys.executable, "-m", "ofqctl", *command]
            ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
    assert load_file(next((tmp_path / "home").rglob("model.safetensors"))).keys()
