"""The shape of the code: rooms import only from rooms before their own, and every file says what it owns."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import segtrain

PACKAGE = Path(segtrain.__file__).parent
REPOSITORY = PACKAGE.parent
ROOMS = (
    ("errors",),
    ("console",),
    ("files", "machine", "sealed"),
    ("config",),
    ("distributed",),
    ("kernels",),
    ("data",),
    ("models",),
    ("losses",),
    ("metrics",),
    ("drawing",),
    ("optim",),
    ("tracking",),
    ("engine",),
    ("review",),
    ("study", "report", "benchmark"),
    ("testing",),
    ("export",),
    ("cli",),
)
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)
CODE = [
    *sorted(PACKAGE.rglob("*.py")),
    *sorted((REPOSITORY / "tools").glob("*.py")),
    *sorted(Path(__file__).parent.rglob("*.py")),
]


def _name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: imports are absolute"
            names = [node.module or ""]
            if node.module == "segtrain":
                names = [f"segtrain.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names)


def _imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in _imports(path):
        parts = name.split(".")
        if parts[0] == "segtrain" and len(parts) > 1 and not parts[1].startswith("_"):
            yield line, parts[1]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_imports_only_from_rooms_before_its_own(path: Path) -> None:
    room = _room(path)
    assert room in RANKS, f"{room} has no place in the order of rooms: give it one in ROOMS"
    for line, imported in _imported_rooms(path):
        allowed = RANKS[imported] < RANKS[room] or imported == room
        assert allowed, f"{_name(path)}:{line}: {room} imports {imported}, which comes after it"


def test_kernels_import_nothing_of_ours_but_errors() -> None:
    for path in (path for path in FILES if _room(path) == "kernels"):
        assert {room for _, room in _imported_rooms(path)} <= {"errors", "kernels"}, _name(path)


def test_albumentations_is_imported_by_one_module_alone() -> None:
    users = {_name(path) for path in FILES if any(name.split(".")[0] == "albumentations" for _, name in _imports(path))}
    assert users <= {"segtrain/data/transforms.py"}


def test_the_schema_needs_no_torch() -> None:
    config = [path for path in FILES if _room(path) == "config"]
    assert config
    assert not [
        name for path in config for _, name in _imports(path) if name.split(".")[0] in ("torch", "numpy", "cv2")
    ]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tools").glob("*.py")), ids=_name)
def test_a_door_holds_nothing_but_the_call_of_its_command(path: Path) -> None:
    assert {name for _, name in _imports(path)} == {"sys", "segtrain.cli.main"}
    assert f'main(["{path.stem}", *sys.argv[1:]])' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_a_file_opens_with_what_it_owns(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{_name(path)} has no docstring"
    assert docstring.partition("\n\n")[0].rstrip().endswith("."), f"{_name(path)}: the first sentence has no end"
