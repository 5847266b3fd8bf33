"""Check that a dataset on the Hugging Face hub can be reached."""

from ofqctl.data.sources.failures import first_line, http_error
from ofqctl.errors import DataError

_TIMEOUT = 10.0


def check_hub(name: str) -> None:
    """Ask the hub for a dataset, so that a missing network is reported within seconds and not after many retries.

    In offline mode (HF_HUB_OFFLINE=1) nothing is asked: earlier downloads are used.

    Raises:
        DataError: The hub cannot be reached, or has no such readable dataset.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=_TIMEOUT)
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise DataError(
            f"hfds/{name}: the hub has no dataset '{name}' that may be read without signing in",
            hint="check the name; a gated or private dataset needs `hf auth login`",
        ) from error
    except (OSError, http_error()) as error:
        raise DataError(
            f"hfds/{name}: the Hugging Face hub cannot be reached: {first_line(error)}",
            hint=f"`hf download --repo-type dataset {name} --local-dir DIR` on a machine with a network, "
            "then --data DIR; HF_HUB_OFFLINE=1 uses an earlier download",
        ) from error
