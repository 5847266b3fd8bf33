import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError

from ofqctl.data import DataSpec, open_data
from ofqctl.errors import DataError


def test_a_hub_that_cannot_be_reached_is_an_error_with_a_way_out(monkeypatch):
    for error in (ConnectionError("name or service not known"), HTTPError("name or service not known")):

        def unreachable(*_args, _error=error, **_options):
            raise _error

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
        with pytest.raises(DataError, match="cannot be reached: name or service not known") as caught:
            open_data(DataSpec("hfds/someone/flowers"))
        assert "--local-dir" in caught.value.hint


def test_offline_mode_without_a_downloaded_copy_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError, match="`datasets` cannot read it"):
        open_data(DataSpec("hfds/someone/flowers"))


def test_a_name_the_hub_would_refuse_is_an_error_without_asking_it(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="the hub has no dataset"):
        open_data(DataSpec("hfds/not a name!"))
