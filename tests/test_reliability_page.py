"""docs/reliability.md names tests that exist, for every kind of failure, and says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from segtrain.config.schema import TrainConfig
from segtrain.engine.changes import FIXED, UNCHANGEABLE
from segtrain.engine.signals import HANDLED

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "reliability.md"
TEXTS = (".py", ".md", ".yaml")
OPEN_TO_ALL = re.compile(r"bind_all|tensorboard[^\n]*--host")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of the rows of the table of failures."""
    table = PAGE.read_text(encoding="utf-8").partition("## The table")[2].partition("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_promise_is_kept_by_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    found = TEST.findall(row[2])
    assert found
    assert TEST.sub("", row[2]).strip(", ") == "", "something else than tests"
    for path, name in found:
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_the_table_has_many_rows() -> None:
    assert len(rows()) >= 20


def test_the_page_lists_what_a_run_keeps() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for key in (*FIXED, *UNCHANGEABLE):
        head, _, rest = key.partition(".")
        assert f"`{head}`" in text or f"`{head}.{rest}`" in text, key
        if head in ("data", "train", "optimizer"):
            assert f"`{rest}`" in text or f"`{key}`" in text, key


def test_the_page_tells_the_codes_and_the_keys() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for number in HANDLED:
        assert re.search(rf"^\| {number.name} \|.*\| {128 + number} \|$", text, re.MULTILINE)
    for key in re.findall(r"`train\.(\w+)[`:=]", text):
        assert key in TrainConfig.model_fields, key


def test_tensorboard_is_never_told_to_listen_to_all_and_a_tunnel_is_shown() -> None:
    folders = ("segtrain", "tools", "configs", "docs")
    texts = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.suffix in TEXTS]
    texts += [REPOSITORY / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md")]
    assert len(texts) > 100
    for path in texts:
        assert not OPEN_TO_ALL.search(path.read_text(encoding="utf-8")), path
    for name in ("README.md", "README.zh.md"):
        assert "ssh -L 6006:localhost:6006" in (REPOSITORY / name).read_text(encoding="utf-8")
