"""Load timm models, with their data config, by name, hub id, local directory or checkpoint."""

from ofqctl.models.building import build_architecture
from ofqctl.models.checkpoints import read_checkpoint, read_torch_file
from ofqctl.models.given import given_model, shapes_of, why_not_built_again
from ofqctl.models.loading import LoadedModel, ModelRequest, load_model
from ofqctl.models.names import families, matching, resolve_name
from ofqctl.models.outputs import embeds, gives, with_tokens

__all__ = [
    "LoadedModel",
    "ModelRequest",
    "build_architecture",
    "embeds",
    "families",
    "given_model",
    "gives",
    "load_model",
    "matching",
    "read_checkpoint",
    "read_torch_file",
    "resolve_name",
    "shapes_of",
    "why_not_built_again",
    "with_tokens",
]
