"""What libraries import at once and rarely need is imported when it is needed, and all of it works."""

import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module

import pytest

from ofqctl import postponed


def in_new_process(code):
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_to_evaluate_neither_the_compiler_nor_what_logs_is_loaded():
    heavy = ("torch._dynamo", "sympy", "wandb", "tensorboard", "sklearn", "scipy", "pandas", "matplotlib", "onnx")
    code = f"import sys, ofqctl.jobs.evaluate; print(*({set(heavy)!r} & set(sys.modules)))"
    assert in_new_process(code) == []


def test_what_was_postponed_works_when_it_is_used():
    code = """
import sys
import ofqctl, torch, timm, torchvision
from timm.layers import disable_compiler

assert "torch._dynamo" not in sys.modules
assert type(torchvision.__spec__.loader).__module__ == "_frozen_importlib_external"
assert torch.compiler.disable.__module__ == "torch.compiler"

seen = []

@disable_compiler
def hidden(x):
    seen.append(torch.compiler.is_compiling())
    return x + 1

assert hidden(torch.ones(1)).item() == 2
compiled = torch.compile(lambda x: hidden(x * 2) * 3, backend="eager")
assert compiled(torch.ones(1)).item() == 9 and seen == [False, False], seen

from torchvision.ops import roi_align
pixels, boxes = torch.rand(1, 2, 8, 8), torch.tensor([[0, 1.0, 1.0, 6.0, 6.0]])
free = roi_align(pixels, boxes, (3, 3))
torch.use_deterministic_algorithms(True)
assert torch.equal(free, roi_align(pixels, boxes, (3, 3)))
from torchvision.ops.roi_align import is_compile_supported
from torch._dynamo.utils import is_compile_supported as real
assert is_compile_supported("cpu") == real("cpu") and is_compile_supported is not real
print("done")
"""
    assert in_new_process(code) == ["done"]


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """A library that imports a module which it rarely needs."""
    (tmp_path / "rare_module.py").write_text("answer = 42\ndef double(x): return 2 * x\n")
    (tmp_path / "own_library.py").write_text(
        "import sys\nimport rare_module\nfrom rare_module import double\n"
        "stood_in = type(sys.modules['rare_module']).__name__\n"
        "def ask(): return rare_module.answer\n"
    )

    @contextmanager
    def postponing():
        with postponed._standing_in("rare_module", "double"):
            yield

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(postponed._LIBRARIES, "own_library", postponing)
    yield
    for name in ("own_library", "rare_module"):
        sys.modules.pop(name, None)


def test_a_stand_in_is_found_only_while_the_library_is_loaded(libraries):
    import own_library

    assert own_library.stood_in == "_StandIn"
    assert "rare_module" not in sys.modules
    import rare_module

    assert type(rare_module).__name__ == "module"
    assert type(own_library.rare_module).__name__ == "_StandIn"


def test_a_stand_in_imports_the_module_at_its_first_use_and_hands_everything_on(libraries):
    import own_library

    assert own_library.ask() == 42
    assert own_library.double(4) == 8
    assert type(sys.modules["rare_module"]).__name__ == "module"
    with pytest.raises(AttributeError, match="nosuch"):
        _ = own_library.rare_module.nosuch


def test_looking_through_all_modules_does_not_load_one(libraries):
    import own_library

    assert not hasattr(own_library.rare_module, "__file__")
    assert "rare_module" not in sys.modules


def test_a_module_that_is_loaded_already_is_used_as_it_is(libraries):
    rare_module = import_module("rare_module")
    assert import_module("own_library").rare_module is rare_module
