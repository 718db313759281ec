"""The page that compares the libraries' losses is what a run of the checks says."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import segtrain
from segtrain.testing import PROPERTIES, libraries
from segtrain.testing.__main__ import main
from segtrain.testing.divergence import COMMAND, divergence_page, verdicts
from segtrain.testing.libraries import versions

PAGE = Path(segtrain.__file__).parent.parent / "docs" / "divergence.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_says_how_it_is_made_and_from_which_versions(page: str) -> None:
    assert COMMAND in page
    assert all(f"{library} " in page for library in versions())


def test_every_property_has_a_row_for_each_library_and_an_explanation(page: str) -> None:
    rows = verdicts(page)
    for prop in PROPERTIES:
        words = prop.name.replace("_", " ")
        assert sum(row.startswith(f"| {words} |") for row in rows) == len(versions()) + 1, words  # segtrain too
        assert f"- **{words}** ({prop.kind})." in page


def test_verdicts_are_the_rows_of_marks_and_nothing_measured() -> None:
    page = "| torch | A |\n|---|---|\n| some property | ✓ |\n| other | ✗ |\n| cross entropy | 2.4 |\n- ✗ text: 1\n"
    assert verdicts(page) == ["| some property | ✓ |", "| other | ✗ |"]


def test_without_one_of_the_libraries_the_page_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(libraries, "version", missing)
    assert main() == 2
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fresh_run_gives_the_verdicts_of_the_page(page: str) -> None:
    named = [f"{library} {number}" for library, number in versions().items()]
    missing = [name for name in named if name not in page]
    if missing:
        pytest.skip(f"the page was made with other versions than {', '.join(missing)}: {COMMAND}")
    assert verdicts(divergence_page()) == verdicts(page), f"the page is out of date: {COMMAND}"
