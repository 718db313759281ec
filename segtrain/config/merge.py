"""How two layers of a configuration become one: `base:` files under a child, overrides over both."""

from __future__ import annotations

from collections.abc import Sequence

from segtrain.config.source import Node, Place, Problem, read_yaml
from segtrain.errors import ConfigError

# A section that names its kind is replaced, not merged, when the kind changes: the keys of one kind mean
# nothing to another. The root's and the classes' names are only names.
KIND_KEYS = ("name", "scheme")

# Of these, the later layer's choice removes the earlier layer's: a child that says `steps` means
# "instead of the epochs of my base".
EXCLUSIVE: tuple[tuple[tuple[str, ...], frozenset[str], frozenset[str]], ...] = (
    (("train",), frozenset({"epochs"}), frozenset({"steps"})),
    (("loss", "ohem"), frozenset({"threshold", "min_kept"}), frozenset({"top_k"})),
)

Path = tuple[str | int, ...]


def merge(base: Node, child: Node, *, path: Path = ()) -> Node:
    """Lay `child` over `base`: mappings merge deeply, lists and scalars replace; inputs stay as they are."""
    if not isinstance(base.value, dict) or not isinstance(child.value, dict):
        return child
    if _kind_differs(base, child, path):
        return child
    merged = dict(base.value)
    for rival in _rivals(path, child):
        merged.pop(rival, None)
    for key, node in child.value.items():
        merged[key] = merge(merged[key], node, path=(*path, key)) if key in merged else node
    return Node(merged, child.place)


def _kind_differs(base: Node, child: Node, path: Path) -> bool:
    if not _has_kind(path):
        return False
    for key in KIND_KEYS:
        if key in base.value and key in child.value and base.value[key].value != child.value[key].value:
            return True
    return False


def _has_kind(path: Path) -> bool:
    return len(path) > 0 and path[:2] != ("data", "classes")


def _rivals(path: Path, child: Node) -> set[str]:
    rivals: set[str] = set()
    for section, ones, others in EXCLUSIVE:
        if path != section:
            continue
        given = {key for key, node in child.value.items() if node.value is not None}
        if given & ones and not given & others:
            rivals |= others
        if given & others and not given & ones:
            rivals |= ones
    return rivals


def apply_overrides(root: Node, overrides: Sequence[str], *, problems: list[Problem]) -> Node:
    """Set `key.path=value` for each override, in order; values are YAML, numbers in the path index lists.

    Overrides that change a section's kind (optimizer.name=sgd) come first, so that the keys of the new kind may
    stand in any order. What cannot be set is added to `problems`.
    """
    parsed = []
    for text in overrides:
        try:
            parsed.append(_parse(text, problems))
        except ConfigError as error:
            problems.append(Problem(None, str(error)))
    parsed.sort(key=lambda entry: not (entry[0][-1] in KIND_KEYS and _has_kind(entry[0][:-1])))
    chosen: dict[str, set[Path]] = {}
    for path, node in parsed:
        try:
            _set(root, path, node)
        except ConfigError as error:
            problems.append(Problem(node.place, str(error)))
            continue
        if node.value is not None:
            chosen.setdefault(str(path[-1]), set()).add(path[:-1])
    _refuse_rivals(chosen, problems)
    return root


def _refuse_rivals(chosen: dict[str, set[Path]], problems: list[Problem]) -> None:
    for section, ones, others in EXCLUSIVE:
        both = [[key for key in sorted(keys) if section in chosen.get(key, ())] for keys in (ones, others)]
        if all(both):
            text = f"{'.'.join(section)}: give either {both[0][0]} or {both[1][0]}, found overrides for both"
            problems.append(Problem(None, text))


def _parse(text: str, problems: list[Problem]) -> tuple[Path, Node]:
    key, equals, value = text.partition("=")
    segments = key.strip().split(".")
    if not equals:
        raise ConfigError(f"override {text!r}: expected key.path=value, such as train.epochs=5")
    if not all(segments):
        raise ConfigError(f"override {text!r}: empty part in the key {key.strip()!r}; expected key.path=value")
    place = Place(f"override {text}")
    path = tuple(int(part) if part.isdecimal() and part.isascii() else part for part in segments)
    return path, read_yaml(value, str(place), problems=problems, numbered=False)


def _set(root: Node, path: Path, node: Node) -> None:
    parent = root
    for depth, part in enumerate(path[:-1]):
        parent = _descend(parent, part, path[: depth + 1], place=node.place)
    last = path[-1]
    if isinstance(parent.value, list):
        parent.value[_index(parent, last, path)] = node
        return
    key = _key(parent, last)
    section = Node({key: node}, node.place)
    # The merge drops what the new value excludes; the value itself is set whole, a mapping too.
    parent.value = {**merge(parent, section, path=path[:-1]).value, key: node}


def _descend(parent: Node, part: str | int, path: Path, *, place: Place | None) -> Node:
    if isinstance(parent.value, list):
        child: Node = parent.value[_index(parent, part, path)]
    else:
        child = parent.value.setdefault(_key(parent, part), Node(None, place))
    if child.value is None:
        child.value, child.place = {}, place
    if not isinstance(child.value, dict | list):
        where = f" (set in {child.place})" if child.place is not None else ""
        raise ConfigError(
            f"{_dotted(path)} is the single value {child.value!r}{where} and has no keys inside; "
            f"give the whole section: {_dotted(path)}={{...}}"
        )
    return child


def _index(parent: Node, part: str | int, path: Path) -> int:
    size = len(parent.value)
    if isinstance(part, int) and part < size:
        return part
    range_text = f"0 to {size - 1}" if size else "none, for it is empty"
    raise ConfigError(
        f"{_dotted(path)}: {_dotted(path[:-1])} is a list; expected a position ({range_text}), found {part!r}"
    )


def _key(parent: Node, part: str | int) -> str | int:
    """A number in a path is a number key, unless the mapping has that key as text (a class named '1')."""
    return str(part) if isinstance(part, int) and part not in parent.value and str(part) in parent.value else part


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
