"""The origin of a model: timm's registry, the Hugging Face hub or a local directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import get_pretrained_cfg, is_model, load_model_config_from_hf, split_model_name_tag

from ofqctl.documents import parse_json, read_text, short
from ofqctl.errors import ModelError
from ofqctl.models.checkpoints import SUFFIXES
from ofqctl.models.hub import check_reachable, downloading
from ofqctl.models.names import resolve_name, unknown_architecture

_PREFERRED_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@dataclass(frozen=True)
class Origin:
    """A model that was found, before it is built.

    Attributes:
        timm_name: Name for ``timm.create_model``.
        architecture: timm's entrypoint, without tag.
        label: Source of the pretrained weights, for messages: ``timm/...``, ``hf-hub:...``.
        hub_id: Repository that the weights are downloaded from, ``org/name`` or ``org/name@revision``.
        directory: The local directory that contains the weights.
        has_weights: Whether pretrained weights exist at all.
        model_args: Arguments of the architecture that its config.json names.
        notes: How the name was completed, one sentence each.
    """

    timm_name: str
    architecture: str
    label: str
    hub_id: str | None = None
    directory: Path | None = None
    has_weights: bool = True
    model_args: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_origin(name: str) -> Origin:
    """The origin of a timm name, short name, ``hf-hub:org/name`` or ``local-dir:PATH``.

    Raises:
        ModelError: The name is unknown or ambiguous, or its config.json is missing, corrupt or unreachable.
    """
    source, separator, location = name.partition(":")
    if not separator:
        return _registered(name)
    if source in ("hf-hub", "hf_hub") and location:
        return _on_hub(location)
    if source == "local-dir" and location:
        return _in_directory(Path(location).expanduser().resolve())
    raise ModelError(
        f"model '{name}': unknown source; allowed: a timm name, hf-hub:ORG/NAME, local-dir:PATH",
        hint="`ofqctl models 'PATTERN'` lists the timm names",
    )


def find_weights(directory: Path) -> Path:
    """The weight file of a local directory: ``model.safetensors`` first, then timm's other names, then any.

    Raises:
        ModelError: There is none, or there are several and none has a usual name.
    """
    preferred = [path for name in _PREFERRED_FILES if (path := directory / name).is_file()]
    others = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if preferred or len(others) == 1:
        return (preferred or others)[0]
    if others:
        found = ", ".join(path.name for path in others)
        raise ModelError(
            f"model 'local-dir:{directory}': several weight files ({found}); "
            f"allowed: one, or one called {_PREFERRED_FILES[0]}",
            hint="choose one with `--checkpoint FILE`",
        )
    raise ModelError(
        f"model 'local-dir:{directory}': no weights; allowed: {', '.join(_PREFERRED_FILES)} "
        f"or one other file that ends in {', '.join(SUFFIXES)}",
        hint="`--no-pretrained` builds it with random weights",
    )


def _registered(name: str) -> Origin:
    timm_name = resolve_name(name)
    cfg = get_pretrained_cfg(timm_name)
    hub_id = cfg.hf_hub_id if cfg else None
    return Origin(
        timm_name=timm_name,
        architecture=split_model_name_tag(timm_name)[0],
        label=hub_id or f"timm/{timm_name}",
        hub_id=hub_id,
        has_weights=bool(cfg and cfg.has_weights),
        notes=() if timm_name == name else (f"'{name}' completed to '{timm_name}'",),
    )


def _on_hub(hub_id: str) -> Origin:
    where = f"model 'hf-hub:{hub_id}'"
    with downloading(where, "its config.json"):
        check_reachable(hub_id)
        try:
            _, architecture, model_args = load_model_config_from_hf(hub_id)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise ModelError(
                f"{where}: holds no config.json, so it is neither a model of timm nor a run of ofqctl",
                hint="a file of weights on the hub: `hf download`, then ARCHITECTURE --checkpoint FILE",
            ) from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ModelError(
                f"{where}: its config.json is not timm's: {type(error).__name__} {error}",
                hint=f"`hf download {hub_id}`, then ARCHITECTURE --checkpoint FILE: "
                "ViT, DeiT, DINOv2 and Swin of the transformers library are read",
            ) from error
    _check_architecture(where, architecture)
    name = f"hf-hub:{hub_id}"
    return Origin(name, architecture, label=name, hub_id=hub_id, model_args=model_args or {})


def _in_directory(directory: Path) -> Origin:
    name = f"local-dir:{directory}"
    config = _read_config(directory)
    architecture = config.get("architecture")
    if architecture is None and "model_type" in config:
        raise ModelError(
            f"model '{name}', config.json: is of the transformers library ({config['model_type']}), "
            "and does not say which architecture of timm it is",
            hint=f"name the architecture: `vit_base_patch16_224 --checkpoint {directory / _PREFERRED_FILES[0]}"
            f"{_classes_of(config)}`; ViT, DeiT, DINOv2 and Swin are read",
        )
    _check_architecture(f"model '{name}', config.json", architecture)
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise ModelError(f"model '{name}', config.json: {key} is {short(config[key])}; allowed: an object")
    return Origin(name, str(architecture), label=name, directory=directory, model_args=config.get("model_args") or {})


def _classes_of(config: Mapping[str, Any]) -> str:
    """The option that gives a model as many classes as a config.json of the transformers library names."""
    labels = config.get("id2label")
    return f" --num-classes {len(labels)}" if isinstance(labels, dict) else ""


def _read_config(directory: Path) -> dict[str, Any]:
    """The config.json of ``directory``, a JSON object."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelError(f"model 'local-dir:{directory}': no such directory")
    if not path.is_file():
        raise ModelError(
            f"model 'local-dir:{directory}': no config.json in it",
            hint="timm.models.save_for_hf writes such a directory; a bare weight file goes to `--checkpoint`",
        )
    where = f"model 'local-dir:{directory}': config.json"
    config = parse_json(read_text(path, ModelError), where, ModelError)
    if not isinstance(config, dict):
        raise ModelError(
            f"model 'local-dir:{directory}': config.json contains a {type(config).__name__}, not an object"
        )
    return config


def _check_architecture(where: str, architecture: object) -> None:
    if not isinstance(architecture, str):
        raise ModelError(f"{where}: 'architecture' is {architecture!r}; allowed: the name of a timm model")
    if not is_model(architecture):
        raise unknown_architecture(where, architecture)
