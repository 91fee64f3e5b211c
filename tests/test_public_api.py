"""The public names: lazy, complete, typed, and independent of the analyses."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import FunctionType

import pytest

import ss_lens

PACKAGE = Path(ss_lens.__file__).parent
README_NAMES = {
    "load_model", "load_dataset", "capture", "calibrate", "steer", "generate", "sweep_angles",
    "Calibration", "RotateBy", "RotateTo", "RotateToIfAligned", "SetAngle", "Add", "Ablate",
    "Site", "Plane", "ContrastiveDataset", "Activations", "CaptureSpec", "Store", "UserError",
}  # fmt: skip


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def imports_of(path: Path) -> set[str]:
    """Top-level names of the packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'transformer_lens', 'numpy', 'pandas', 'datasets'}"
    assert run_python(f"import sys, ss_lens; print({heavy} & set(sys.modules))") == "set()"


def test_an_embedded_dataset_needs_no_torch() -> None:
    code = "import sys, ss_lens; ss_lens.load_dataset('refusal'); print('torch' in sys.modules)"
    assert run_python(code) == "False"


@pytest.mark.parametrize("name", ss_lens.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(ss_lens, name)
    assert callable(value)
    assert value.__doc__
    assert name in dir(ss_lens)


def test_the_names_of_the_design_are_public() -> None:
    assert set(ss_lens.__all__) >= README_NAMES
    assert len(set(ss_lens.__all__)) == len(ss_lens.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="No ss_lens attribute steeer"):
        ss_lens.steeer  # noqa: B018
    assert not hasattr(ss_lens, "HookedTransformer")


def test_a_name_stays_what_it_is_when_every_module_has_been_imported() -> None:
    importlib.import_module("ss_lens.experiments.main_run")
    from ss_lens import capture

    assert isinstance(capture, FunctionType)
    assert ss_lens.capture is capture
    rooms = {info.name for info in pkgutil.iter_modules([str(PACKAGE)])}
    assert not rooms & {*ss_lens.__all__}


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files("ss_lens").joinpath("py.typed").is_file()


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_never_imports_the_analyses_or_the_tests(path: Path) -> None:
    assert not imports_of(path) & {"analyses", "tests", "conftest", "hypothesis", "beartype"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_opens_with_a_docstring(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    assert docstring.split("\n\n")[0].endswith(".")


def test_geometry_knows_no_models() -> None:
    found = set().union(*map(imports_of, (PACKAGE / "geometry").glob("*.py")))
    assert found <= {
        "__future__", "cmath", "math", "dataclasses", "torch", "jaxtyping", "ss_lens", "typing",
        "abc", "collections", "contextlib", "functools", "numpy",
    }  # fmt: skip


def test_no_room_holds_more_than_twelve_modules() -> None:
    for room in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 12, f"{room.name}: {sorted(path.stem for path in modules)}"


def test_no_module_stays_outside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {
        "__init__.py", "__init__.pyi", "py.typed",
    }  # fmt: skip


def test_every_module_imports_alone() -> None:
    names = [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "ss_lens.")]
    assert len(names) > 20
    for name in names:
        importlib.import_module(name)
