"""Where figures come from: commit, machine, libraries."""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import ofqctl
from ofqctl.machine import cores, cpu
from ofqctl.packages import version_of
from ofqctl.studies.records import Machine

_ROOT = Path(ofqctl.__file__).parent.parent
_LIBRARIES = ("torch", "timm", "numpy", "onnxruntime", "openvino", "nncf", "torchao", "optimum-quanto")


@cache
def commit() -> str:
    """The commit of the program, with ``+`` if files differ from it; its version if it is not in a clone."""
    if not (_ROOT / ".git").exists():
        return ofqctl.__version__
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", "ofqctl", "recipes") else "")
    except (OSError, subprocess.CalledProcessError):
        return ofqctl.__version__


def _git(*words: str) -> str:
    ran = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@cache
def machine() -> Machine:
    """This machine."""
    return Machine(cpu=cpu(), cores=cores(), gpus=_gpus())


def _gpus() -> tuple[str, ...]:
    """Names of the GPUs that NVIDIA's driver knows."""
    if shutil.which("nvidia-smi") is None:
        return ()
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    return tuple(ran.stdout.splitlines()) if ran.returncode == 0 else ()


@cache
def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"ofqctl": ofqctl.__version__, "python": platform.python_version()}
    return found | {name: version for name in _LIBRARIES if (version := version_of(name)) is not None}
