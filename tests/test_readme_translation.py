"""The README and its translation stay in step: the same structure, code, measured numbers and links."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ENGLISH = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CHINESE = (REPOSITORY / "README.zh.md").read_text(encoding="utf-8")
LANGUAGE_LINKS = ("[中文](README.zh.md)", "[English](README.md)")
HAN = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
NO_PROSE = re.compile(r"# (?:\S+$|[.{]|yaml-language-server:)")  # a file's name, attributes, a value, a mode line
COMMENT = re.compile(r"(?:^|(?<=\s))#.*$")

Line = tuple[str, str]  # its kind and its text


def _kind(line: str) -> str:
    if not line.strip():
        return "blank"
    if re.match(r"#+ ", line):
        return "#" * (len(line) - len(line.lstrip("#")))
    if line.startswith("    "):
        return "code"
    return {"|": "table", "-": "item"}.get(line[0], "text")


def _lines(text: str) -> list[Line]:
    """Every line with its kind: a level of heading, code, table, item, text, blank; without the language links."""
    lines: list[Line] = []
    fenced = False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append(("code" if fenced or fence else _kind(line), line))
        fenced ^= fence
    return [(kind, line) for kind, line in lines if line not in LANGUAGE_LINKS]


def _blocks(text: str) -> list[str]:
    """The kinds in order, wrapped lines and rows as one: a paragraph or an item may be broken anywhere, or nowhere."""
    blocks: list[str] = []
    last = "blank"
    for kind, _ in _lines(text):
        goes_on = kind == last and kind != "item" and not kind.startswith("#")
        wrapped = (last, kind) == ("item", "text")
        if kind != "blank" and not goes_on and not wrapped:
            blocks.append(kind)
        last = "item" if wrapped else kind
    return blocks


def _of_kind(text: str, kind: str) -> list[str]:
    return [line for found, line in _lines(text) if found == kind]


def _sections(text: str) -> list[list[Line]]:
    sections: list[list[Line]] = [[]]
    for kind, line in _lines(text):
        if kind.startswith("#"):
            sections.append([])
        sections[-1].append((kind, line))
    return sections


def _prose(section: list[Line]) -> str:
    return "\n".join(line for kind, line in section if kind in ("text", "item"))


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"<(https?://[^>]+)>", text)


def _paired_sections() -> list[tuple[list[Line], list[Line]]]:
    return list(zip(_sections(ENGLISH), _sections(CHINESE), strict=True))


def test_headings_paragraphs_items_tables_and_code_come_in_the_same_order() -> None:
    assert _blocks(CHINESE) == _blocks(ENGLISH)


def test_code_is_the_same_but_for_comments_which_are_translated() -> None:
    ours, theirs = _of_kind(ENGLISH, "code"), _of_kind(CHINESE, "code")
    assert [COMMENT.sub("", line) for line in theirs] == [COMMENT.sub("", line) for line in ours]
    for english, chinese in zip(ours, theirs, strict=True):
        assert bool(COMMENT.search(chinese)) == bool(COMMENT.search(english)), chinese
        comment = COMMENT.search(english)
        if comment and not NO_PROSE.match(comment[0]):
            assert HAN.search(chinese), chinese
        else:
            assert chinese == english


def test_tables_have_the_same_cells_and_numbers() -> None:
    ours, theirs = _of_kind(ENGLISH, "table"), _of_kind(CHINESE, "table")
    numbers = [[NUMBER.findall(cell) for cell in row.split("|")] for row in ours]
    assert [[NUMBER.findall(cell) for cell in row.split("|")] for row in theirs] == numbers
    assert sum(len(cells) for row in numbers for cells in row) > 80


def test_each_section_names_the_same_settings_and_holds_the_numbers_of_the_original() -> None:
    for english, chinese in _paired_sections():
        ours, theirs = _prose(english), _prose(chinese)
        span = re.compile(r"`[^`]+`")
        assert Counter(span.findall(theirs)) == Counter(span.findall(ours)), chinese[0]
        # More digits are right: what English spells out, Chinese often writes in figures.
        assert not Counter(NUMBER.findall(ours)) - Counter(NUMBER.findall(theirs)), chinese[0]


def test_each_section_has_the_same_links() -> None:
    for english, chinese in _paired_sections():
        ours, theirs = (_links("\n".join(line for _, line in section)) for section in (english, chinese))
        assert sorted(theirs) == sorted(ours), chinese[0]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_every_relative_link_leads_to_a_file(text: str) -> None:
    links = [link for link in _links(text) if not link.startswith("http")]
    assert len(links) > 5
    assert [link for link in links if not (REPOSITORY / link).is_file()] == []


def test_each_leads_to_the_other_under_its_title() -> None:
    titles = [text.splitlines()[:4] for text in (ENGLISH, CHINESE)]
    assert titles == [["# segtrain", "", link, ""] for link in LANGUAGE_LINKS]
