import pytest

from ofqctl import packages
from ofqctl.jobs import doctor
from ofqctl.registry import ENTRY_POINTS


def findings():
    return {finding.missing: finding for finding in doctor.examine().findings}


def test_versions_are_those_that_are_imported():
    import onnxruntime
    import timm

    versions = doctor.examine().versions
    assert (versions["timm"], versions["onnxruntime"]) == (timm.__version__, onnxruntime.__version__)


@pytest.mark.parametrize("name", sorted(packages.OPTIONAL))
def test_a_missing_package_is_named_with_what_needs_it_and_how_to_install_it(monkeypatch, name):
    there = packages.version_of
    monkeypatch.setattr(doctor, "version_of", lambda asked: None if asked == name else there(asked) or "1")
    found = findings()
    assert found[name].means == f"not for {packages.OPTIONAL[name].purpose}"
    assert found[name].remedy == packages.OPTIONAL[name].install
    assert not set(packages.OPTIONAL) - {name} & found.keys()


def test_what_the_machine_lacks_is_told_with_what_it_means(monkeypatch):
    monkeypatch.setattr(doctor, "has_vnni", lambda: False)
    monkeypatch.setattr(doctor, "free_shared_memory", lambda: 64 * 10**6)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    found = findings()
    assert "OpenVINO's 8-bit weights saturate" in found["VNNI"].means
    assert "64 MB are free" in found["shared memory"].means
    assert "--workers 0" in found["shared memory"].remedy
    assert found["a C++ compiler"].remedy.endswith("or set CXX")
    assert "unset" in found["threads that sleep while they wait"].remedy


def test_a_machine_that_has_everything_has_no_findings(monkeypatch):
    monkeypatch.setattr(doctor, "has_vnni", lambda: True)
    monkeypatch.setattr(doctor, "free_shared_memory", lambda: None)
    monkeypatch.setattr(doctor, "version_of", lambda _name: "1")
    monkeypatch.setattr(doctor, "_devices", lambda: ["cpu", "cuda:0 a GPU"])
    monkeypatch.setattr(doctor, "_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert findings() == {}


def test_methods_of_a_package_that_cannot_be_imported_are_told(monkeypatch):
    class Entry:
        name, value = "theirs", "nowhere.at_all"

        def load(self):
            raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()] if group == ENTRY_POINTS else [])
    found = findings()
    assert "methods of 'theirs' (nowhere.at_all): cannot be imported" in found["methods of another package"].means
