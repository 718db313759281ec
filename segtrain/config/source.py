"""YAML text to a tree whose every value knows its file and line, without YAML's dangerous parts.

The text is only parsed, never constructed: tags, merge keys, repeated keys and aliases that grow without
end are problems here, so nothing in a file can name Python code or fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode
from ruamel.yaml.reader import ReaderError

from segtrain.errors import ConfigError

MAX_BYTES = 200_000
MAX_VALUES = 100_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = (f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value")
_TRUE_FALSE = {"true": True, "false": False}


@dataclass(frozen=True)
class Place:
    """Where a value comes from: a file and its line (from 1), or an override on the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Node:
    """A value with its place: `value` is a dict of nodes, a list of nodes, or a scalar."""

    value: Any
    place: Place | None = None

    def plain(self) -> Any:
        """Return the value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    place: Place | None
    text: str

    def __str__(self) -> str:
        return self.text if self.place is None else f"{self.place}: {self.text}"


def node_from_plain(value: Any, place: Place | None = None) -> Node:
    """Wrap plain dicts, lists, tuples and scalars as nodes that share one place."""
    if isinstance(value, dict):
        return Node({key: node_from_plain(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([node_from_plain(child, place) for child in value], place)
    return Node(value, place)


def read_yaml(text: str, source: str, *, problems: list[Problem], numbered: bool = True) -> Node:
    """Parse YAML 1.2 text; what is wrong but can be read past is added to `problems`.

    Places carry lines when `numbered`: an override has only one.
    Raises ConfigError when the text is no YAML at all (its grammar is broken, it is too deep or too large).
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(text):,} characters; a configuration has at most {MAX_BYTES:,}")
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _ShallowComposer
    try:
        root = yaml.compose(text)
    except (MarkedYAMLError, ReaderError) as error:
        problem = _syntax(error, text)
        raise ConfigError(f"{Place(source, problem.line if numbered else None)}: {problem.text}") from None
    except YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    if root is None:
        return Node(None, Place(source, 1 if numbered else None))
    return _Reader(source, problems, numbered).read(root)


class _ShallowComposer(Composer):
    """ruamel's composer, which stops at MAX_DEPTH levels instead of at Python's recursion limit."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node and all in it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ComposerError(
                problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=self.parser.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@dataclass(frozen=True)
class _Syntax:
    line: int
    text: str


def _syntax(error: MarkedYAMLError | ReaderError, text: str) -> _Syntax:
    if isinstance(error, ReaderError):
        # ruamel's position is counted within its read-ahead; the character itself is exact.
        line = text.count("\n", 0, text.find(chr(error.character))) + 1
        return _Syntax(line, f"unprintable character U+{error.character:04X}; expected UTF-8 text")
    mark = error.problem_mark or error.context_mark
    problem = " ".join(str(error.problem or error.context).split())
    if "\\t" in problem:
        problem = "found a tab; indent with spaces"
    elif error.context and "document" in error.context:
        problem = "found a second document ('---'); expected one"
    elif error.context and error.context_mark is not None and error.problem:
        problem = f"{problem} ({error.context}, line {error.context_mark.line + 1})"
    return _Syntax(mark.line + 1 if mark is not None else 1, f"not valid YAML: {problem}")


@dataclass
class _Reader:
    """Walks the parsed nodes of one text; keeps the counts that bound the walk."""

    source: str
    problems: list[Problem]
    numbered: bool
    count: int = 0
    open: list[int] = field(default_factory=list)

    def read(self, node: YamlNode) -> Node:
        """Turn one parsed node, and all in it, into ours."""
        place = self._place(node)
        self.count += 1
        if self.count > MAX_VALUES:
            raise ConfigError(f"{place}: more than {MAX_VALUES:,} values once aliases (*name) are filled in")
        if id(node) in self.open:
            raise ConfigError(f"{place}: an alias (*name) contains itself")
        if len(self.open) >= MAX_DEPTH:
            raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH} levels")
        self.open.append(id(node))
        value = self._value(node, place)
        self.open.pop()
        return Node(value, place)

    def _place(self, node: YamlNode) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.numbered else None)

    def _value(self, node: YamlNode, place: Place) -> Any:
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        expected = f"{_TAG}map" if isinstance(node, MappingNode) else f"{_TAG}seq"
        if str(node.tag) != expected:
            self._refuse_tag(node, place)
        if isinstance(node, SequenceNode):
            return [self.read(child) for child in node.value]
        return dict(self._pairs(node.value))

    def _pairs(self, pairs: list[tuple[YamlNode, YamlNode]]) -> Iterator[tuple[Any, Node]]:
        first: dict[Any, Place] = {}
        for key_node, value_node in pairs:
            place = self._place(key_node)
            if not isinstance(key_node, ScalarNode):
                self.problems.append(Problem(place, "a list or mapping as a key; expected text or a number"))
                continue
            if str(key_node.tag) == f"{_TAG}merge":
                self.problems.append(Problem(place, "merge keys (<<) are not supported; use base: other.yaml"))
                continue
            key = self._scalar(key_node, place)
            if key in first:
                line = f"; first in line {first[key].line}" if self.numbered else ""
                self.problems.append(Problem(place, f"{key}: given twice{line}"))
                continue
            first[key] = place
            child = self.read(value_node)
            yield key, Node(child.value, place)

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        tag, text = str(node.tag), node.value
        if tag in _TEXT_TAGS:
            return text
        if tag == f"{_TAG}null":
            return None
        if tag == f"{_TAG}bool" and text.lower() in _TRUE_FALSE:
            return _TRUE_FALSE[text.lower()]
        try:
            if tag == f"{_TAG}int":
                return _integer(text)
            if tag == f"{_TAG}float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self.problems.append(Problem(place, f"cannot read {text[:40]!r} as a number"))
            return None
        self._refuse_tag(node, place)
        return text

    def _refuse_tag(self, node: YamlNode, place: Place) -> None:
        tag = str(node.tag).replace(_TAG, "!!")
        self.problems.append(Problem(place, f"the tag {tag} is not supported; write plain values"))


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    prefixed = digits.lstrip("+-")[:2] in ("0x", "0o", "0b")
    return int(digits, 0) if prefixed else int(digits)
