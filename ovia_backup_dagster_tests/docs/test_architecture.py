"""The rules of the code: sizes and names, and that ARCHITECTURE.md describes the code as it is."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "ovia_backup_dagster"
TESTS = REPOSITORY / "ovia_backup_dagster_tests"
TEXT = (REPOSITORY / "ARCHITECTURE.md").read_text("utf-8")
MODULE_LINES, CLASS_LINES = 500, 250
CHANGES = 12


def _modules() -> Iterator[tuple[str, str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        yield str(path.relative_to(PACKAGE)), text, ast.parse(text)


def test_no_module_and_no_class_is_too_long_to_read() -> None:
    modules = list(_modules())
    long_modules = [name for name, text, _ in modules if text.count("\n") > MODULE_LINES]
    long_classes = [
        f"{name}: {node.name}"
        for name, _, tree in modules
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= CLASS_LINES
    ]

    assert len(modules) > 100
    assert (long_modules, long_classes) == ([], [])


def test_no_two_public_things_share_a_name() -> None:
    """Except ``main``, which each program has."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, _, tree in _modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)

    assert {name: where for name, where in places.items() if len(where) > 1 and name != "main"} == {}


def test_no_function_is_called_as_its_module() -> None:
    same = [
        name
        for name, _, tree in _modules()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == Path(name).stem != "main"
    ]

    assert same == []


def test_every_module_says_what_belongs_in_it() -> None:
    assert [name for name, _, tree in _modules() if not ast.get_docstring(tree)] == []


def test_no_helper_is_imported_from_a_test_module() -> None:
    """Helpers of several test modules belong in ``support/``, in the folder's own helper module or in a conftest."""
    imported = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in _imported(node)
        if name.startswith(TESTS.name) and any(part.startswith("test_") for part in name.split("."))
    ]

    assert imported == []


def _imported(node: ast.AST) -> list[str]:
    """The full names that a statement imports; empty if it is not an import."""
    match node:
        case ast.Import(names=names):
            return [name.name for name in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [f"{module}.{name.name}" for name in names]
        case _:
            return []


def _table(heading: str) -> list[list[str]]:
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_layers_are_the_contracts() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    picture = TEXT.split("```\n", 2)[1].splitlines()

    shown = [re.findall(r"\b([a-z_]+)(?:/|\.py)", line.split("  ", 1)[0]) for line in picture]
    assert [set(line) for line in shown if line] == [set(re.split(r" [:|] ", layer)) for layer in layers]


def test_every_package_is_described() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}

    assert {row[0].strip("`/") for row in _table("Rooms") if row[0].endswith("/`")} == rooms


def test_each_change_names_files_that_exist() -> None:
    changes = _table("Twelve changes, and the file to open first")
    named = [re.findall(r"`([\w./-]+\.\w+)`", row[1]) for row in changes]

    assert len(changes) == CHANGES
    assert all(named)
    folders = (PACKAGE, REPOSITORY)
    assert [path for paths in named for path in paths if not any((root / path).is_file() for root in folders)] == []


def test_every_named_path_exists() -> None:
    named = set(re.findall(r"`([\w-]+(?:/[\w.-]+)+/?)`", TEXT))

    assert named
    assert [path for path in named if not any((root / path).exists() for root in (PACKAGE, REPOSITORY))] == []
