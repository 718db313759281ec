"""Broken and hostile files: one clear error each, nothing executed, no memory filled."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.config import load_config
from segtrain.errors import ConfigError

Write = Callable[..., str]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: is empty"),
        ("# only a comment\n", "x.yaml: is empty"),
        ("- a\n- b\n", "x.yaml:1: found a list at the top; expected a mapping"),
        ("\n\njust words\n", "x.yaml:3: found a single value at the top"),
        ("data:\n\troot: x\n", "x.yaml:2: not valid YAML: found a tab; indent with spaces"),
        ("data: [1, 2\ntrain: 3\n", "x.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML: found a second document"),
        ("a: *unknown\n", "x.yaml:1: not valid YAML: found undefined alias 'unknown'"),
        ("a: 1\nb: \x01\n", "x.yaml:2: unprintable character U+0001"),
        ("a: &x [*x]\n", "x.yaml:1: an alias (*name) contains itself"),
        ("[" * 5000, "x.yaml:1: not valid YAML: nested deeper than 50 levels"),
        ("a: " + "[" * 60 + "]" * 60, "x.yaml:1: not valid YAML: nested deeper than 50 levels"),
        ("a: " + "9" * 5000, "x.yaml:1: cannot read '9999"),
        ("seed: !!python/object/apply:os.system ['touch gone']\n", "x.yaml:1: the tag !!python/object/apply:os.system"),
        ("seed: !env HOME\n", "x.yaml:1: the tag !env is not supported"),
        ("? [a, b]\n: 1\n", "x.yaml:1: a list or mapping as a key"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "x.yaml:3: merge keys (<<) are not supported"),
        ("seed: 1\nmodel: {arch: a, arch: b}\n", "x.yaml:2: arch: given twice; first in line 2"),
    ],
)
def test_a_broken_file_is_told_with_its_line(training_file: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(training_file(text, name="x.yaml"))
    assert message in str(error.value)
    assert not Path("gone").exists()


def test_an_alias_bomb_is_stopped_early(training_file: Write) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path = training_file("\n".join(["a0: &a0 [x, x]", *levels]) + "\n")
    started = time.monotonic()
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load_config(path)
    assert time.monotonic() - started < 20


def test_aliases_as_such_are_fine(training_file: Write) -> None:
    path = training_file(more="evaluate: {tile: {size: &size [8, 8]}}\nmodel: {params: {again: *size}}\n")
    assert load_config(path).model.params == {"again": (8, 8)}


def test_bytes_that_are_no_utf_8_are_told_with_their_line(training_file: Write) -> None:
    path = training_file()
    Path(path).write_bytes(b"seed: 1\nname: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"experiment\.yaml:2: byte 0xe9 is not UTF-8"):
        load_config(path)


def test_a_byte_order_mark_and_windows_line_ends_are_fine(training_file: Write) -> None:
    path = training_file()
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path).train.epochs == 3


def test_a_folder_and_a_missing_file_are_told_apart(training_file: Write) -> None:
    path = training_file()
    with pytest.raises(ConfigError, match=r"experiment\.yml: no such file; did you mean '.*experiment\.yaml'\?"):
        load_config("experiment.yml")
    with pytest.raises(ConfigError, match="is a folder; expected a YAML file"):
        load_config(Path(path).resolve().parent)


def test_a_missing_file_is_looked_for_in_configs_too_and_settings_of_tools_are_no_training_files(
    training_file: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(training_file()).resolve()
    work = tmp_path / "work"
    (work / "configs").mkdir(parents=True)
    monkeypatch.chdir(work)
    (work / ".hidden.yaml").touch()
    with pytest.raises(ConfigError, match=r"^elsewhere\.yaml: no such file$"):
        load_config("elsewhere.yaml")
    path.rename(work / "configs" / "quickstart.yaml")
    with pytest.raises(ConfigError, match=r"quickstrt\.yaml: no such file; did you mean 'configs/quickstart\.yaml'\?"):
        load_config("quickstrt.yaml")
    with pytest.raises(ConfigError, match=r"other\.yaml: no such file; there are: configs/quickstart\.yaml$"):
        load_config("other.yaml")


def test_a_file_of_megabytes_is_refused_unread(training_file: Write) -> None:
    with pytest.raises(ConfigError, match="a configuration has at most"):
        load_config(training_file("a: " + "x" * 2_000_000))
