"""The house: who stands higher may import who stands lower, never the other way; and importing costs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_nlp

PACKAGE = Path(lit_nlp.__file__).parent

# From the top to the ground. Those who share a floor don't know of each other.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"parser"},
    {"audit", "callbacks", "serve", "export"},
    {"explain"},
    {"modules"},
    {"metrics"},
    {"data"},
    {
        "tokenization",
        "pretrained",
        "checkpoints",
        "packages",
        "files",
        "errors",
        "architecture",
        "generation",
        "scratch",
    }
    | {"objectives", "targets"},
]
# DESIGN.md: data and modules know nothing of each other but the batch.
STRANGERS = [("modules", "data"), ("metrics", "data")]


def imports_of(source: str, path: Path) -> set[str]:
    """Return the modules of lit_nlp that a file imports, anywhere in it, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = path.parts[: len(path.parts) - node.level] if node.level else ()
            origin = ".".join([*(("lit_nlp", *base) if node.level else ()), *([node.module] if node.module else [])])
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] == "lit_nlp"}


def floor_of(part: str) -> int:
    (floor,) = (number for number, parts in enumerate(FLOORS) if part in parts)
    return floor


def parts_of(names: set[str]) -> set[str]:
    """Return the files and folders right under lit_nlp that dotted names lead to."""
    known = set().union(*FLOORS)
    return {part for name in names for part in name.split(".")[1:2] if part in known}


def violations(source: str, path: Path) -> list[str]:
    """Tell each import that leads upwards, or to a stranger; `path` is relative to the package."""
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        return []
    return [
        f"{path} imports {other}"
        for other in sorted(parts_of(imports_of(source, path)) - {own})
        if (floor_of(other) < floor_of(own))
        or (floor_of(other) == floor_of(own) < len(FLOORS) - 1)
        or ((own, other) in STRANGERS)
    ]


def test_nobody_imports_upwards() -> None:
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    assert len(files) > 20
    assert [each for path in files for each in violations((PACKAGE / path).read_text(), path)] == []


def test_every_part_has_a_floor() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert parts - {"__init__"} <= set().union(*FLOORS)


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("data/base.py", "from lit_nlp.modules.base import X", ["data/base.py imports modules"]),
        ("modules/base.py", "def f():\n    import lit_nlp.data.base", ["modules/base.py imports data"]),
        ("modules/base.py", "from ..data import base", ["modules/base.py imports data"]),
        ("explain/words.py", "from lit_nlp import cli", ["explain/words.py imports cli"]),
        ("callbacks/x.py", "from lit_nlp import serve", ["callbacks/x.py imports serve"]),
        ("errors.py", "from lit_nlp.data import labels", ["errors.py imports data"]),
        ("callbacks/x.py", "from lit_nlp.data.base import Split\nimport torch", []),
        ("modules/base.py", "from .rng import rng_state\nfrom lit_nlp.errors import UserError", []),
    ],
)
def test_an_import_upwards_would_be_found(path: str, source: str, told: list[str]) -> None:
    assert violations(source, Path(path)) == told


def loaded_by(program: str) -> set[str]:
    """Return the top-level packages that are loaded after a program, in a process of its own."""
    report = "\nimport sys; print(' '.join({name.partition('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_importing_lit_nlp_loads_nothing_else() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(PACKAGE.parent)!r})
before = set(sys.modules)
import lit_nlp; lit_nlp.__version__; dir(lit_nlp)
print(*set(sys.modules) - before)
"""
    # Without what site-packages load at the start, such as the finder of an editable installation.
    run = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["lit_nlp"]


def test_data_and_modules_come_without_what_explains_and_serves() -> None:
    classes = [name for name in lit_nlp.__all__ if name.endswith("Module")]
    loaded = loaded_by(f"from lit_nlp import {', '.join(classes)}")
    assert "torch" in loaded
    assert loaded & {"captum", "litserve"} == set()


def test_every_public_name_can_be_imported() -> None:
    assert sorted(lit_nlp.__all__) == sorted(set(dir(lit_nlp)) & set(lit_nlp.__all__))
    for name in lit_nlp.__all__:
        assert getattr(lit_nlp, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'lit_nlp' has no attribute 'SentimentModul'"):
        lit_nlp.SentimentModul  # noqa: B018
