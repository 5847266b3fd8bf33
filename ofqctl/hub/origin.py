"""The float model that a run was made from: its repository on the hub, its licence, and how a command names it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ofqctl.artifact import RunConfig
from ofqctl.hub.figures import shown
from ofqctl.models import sources
from ofqctl.models.hub import hub_id, split_id

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_OF_TRAINING = ("drop_path_rate",)
_CHECKPOINT = re.compile(r"(?:OFQ )?checkpoint (.+)")
# The hub's identifiers among the licences that timm names; others are called `other` there, with their name.
_LICENCES = frozenset(
    ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "cc-by-4.0", "apple-amlr", "apple-ascl", "gemma", "other")
)


@dataclass(frozen=True)
class BaseModel:
    """The float model of a run.

    Attributes:
        repository: ``ORG/NAME`` on the hub, or None if it is not from there.
        argument: What a command names it by; paths of the machine are shortened.
        options: Options that go with it.
        licence: The licence of its weights, if its description names one.
    """

    repository: str | None
    argument: str
    options: tuple[str, ...] = ()
    licence: str | None = None

    @property
    def front_matter(self) -> dict[str, str]:
        """The keys of a card's front matter that say under which licence the weights are."""
        if self.licence is None:
            return {}
        known = self.licence.lower()
        return {"license": known} if known in _LICENCES else {"license": "other", "license_name": known}


def base_model(config: RunConfig) -> BaseModel:
    """The float model, from what the run says of its weights; what it does not say is not guessed."""
    source, cfg = config.source, config.pretrained_cfg
    options = tuple(_options(config))
    if (run := sources.run_in(source)) is not None:
        return _run(run, options)
    repository = hub_id(source) or (source if source.startswith("timm/") and cfg.get("hf_hub_id") else None)
    name = None if repository is None else split_id(repository)[0]
    if name is not None and _REPOSITORY.fullmatch(name):
        licence = cfg.get("license")
        said = licence if isinstance(licence, str) and licence != "unknown" else None
        return BaseModel(name, f"hf-hub:{repository}", options, said)
    if source.startswith("local-dir:"):
        return BaseModel(None, f"local-dir:{shown(source.removeprefix('local-dir:'))}", options)
    if match := _CHECKPOINT.fullmatch(source):
        return BaseModel(None, config.architecture, ("--checkpoint", shown(match[1]), *options))
    weights = ("--no-pretrained",) if source == sources.RANDOM else ()
    return BaseModel(None, config.architecture, (*weights, *options))


def _run(name: str, options: tuple[str, ...]) -> BaseModel:
    """An earlier run, whose own card says where its weights are from."""
    repository = hub_id(name)
    return BaseModel(None if repository is None else split_id(repository)[0], shown(name), options)


def _options(config: RunConfig) -> Iterator[str]:
    """The options that give the architecture its size."""
    if config.pretrained_cfg.get("num_classes", config.num_classes) != config.num_classes:
        yield from ("--num-classes", str(config.num_classes))
    arguments = {key: value for key, value in config.model_args.items() if key not in _OF_TRAINING}
    if "img_size" in arguments:
        yield from ("--img-size", str(arguments.pop("img_size")))
    if arguments:
        yield from ("--model-kwargs", *(f"{key}={json.dumps(value)}" for key, value in arguments.items()))
