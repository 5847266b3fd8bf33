"""Latent weights beside a run's codes, for a training to go on from: what the codes were rounded from."""

import copy

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ofqctl.artifact.config import FORMAT_VERSION, METADATA_KEY
from ofqctl.artifact.run import Run
from ofqctl.artifact.tensors import fault_of, replaced_by_codes
from ofqctl.documents import UNSUITABLE
from ofqctl.errors import ArtifactError
from ofqctl.files import LATENTS, located
from ofqctl.layers import weight_sites

_OF = "weights_sha256"  # key of the metadata: the digest of the codes' file


def latent_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that packed codes replace, by their names in the state dict, on the CPU."""
    state = model.state_dict()
    names = {name for weight, site in weight_sites(model) for name in replaced_by_codes(weight, site)}
    return {name: state[name].detach().cpu().clone().contiguous() for name in sorted(names & state.keys())}


def latents_file(model: nn.Module, sha256: str) -> bytes:
    """The content of ``latents.safetensors``.

    Args:
        model: The quantized model, with latent weights.
        sha256: Digest of ``model.safetensors``.
    """
    return safetensors.torch.save(latent_tensors(model), metadata={METADATA_KEY: str(FORMAT_VERSION), _OF: sha256})


def read_latents(run: Run) -> dict[str, Tensor] | None:
    """The state of a run's model with the latent weights beside its codes; None if there are none.

    Raises:
        ArtifactError: The file is damaged, or belongs to other codes.
    """
    path = located(run.directory, LATENTS)
    if run.directory.is_file() or not path.is_file():
        return None
    gone = f"remove {path.name}, and training starts from the middle of the bins"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, SafetensorError, *UNSUITABLE) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file: {error}", hint=gone) from error
    if metadata.get(_OF) != run.config.quantization_config.sha256:
        raise ArtifactError(f"{path}: not of this run's codes, which were written at another time", hint=gone)
    model = copy.deepcopy(run.model)
    for _, site in weight_sites(model):
        if site.fixed_codes is not None:
            site.release_codes(for_this_quantizer=True)
    wanted, optional = latent_tensors(model), {name for name, _ in model.named_buffers()}
    faults = [f"{name}: missing" for name in wanted.keys() - tensors.keys() - optional]
    faults += [f"{name}: unknown" for name in tensors if name not in wanted]
    found = (fault_of(name, tensor, wanted[name]) for name, tensor in tensors.items() if name in wanted)
    faults += [fault for fault in found if fault]
    if faults:
        raise ArtifactError("\n  ".join([f"{path}: its tensors do not match the run:", *faults[:8]]), hint=gone)
    return {name: t for name, t in model.state_dict().items() if name not in wanted} | tensors
