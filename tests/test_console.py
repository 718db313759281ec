"""The terminal: prose is folded, what can be copied stays whole, and an error of the user's is shown alone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from segtrain.console import held, say
from segtrain.errors import DataError


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(file=io.StringIO(), force_terminal=request.param, color_system=None, width=70)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", ["warning", "note"])
def test_prose_is_folded_between_words_at_80_columns(console: Console, kind: str) -> None:
    path = "/data/" + "x" * 90
    text = f"{kind}: " + "class weights differ by more than-twenty-times " * 5 + path
    say(console, text, style="yellow")
    lines = written(console).splitlines()
    assert max(len(line) for line in lines[:-1]) <= 80
    assert min(len(line) for line in lines[:-2]) > 80 - len("more-than-twenty-times")
    assert lines[-1] == f"  {path}"
    assert " ".join(" ".join(lines).split()) == text


def test_lines_that_stand_apart_in_a_warning_stay_apart(console: Console) -> None:
    say(console, "warning: two files:\n  a.png\n  b.png")
    assert written(console) == "warning: two files:\n  a.png\n  b.png\n"


def test_a_note_among_other_lines_is_folded_too(console: Console) -> None:
    table = "class  " + "x" * 90
    say(console, f"{table}\nnote: {'word ' * 20}\n{table}")
    lines = written(console).splitlines()
    assert lines[0] == lines[-1] == table
    assert [line.split()[0] for line in lines[1:-1]] == ["note:", "word"]


def test_what_can_be_copied_is_never_folded(console: Console) -> None:
    command = "  python tools/predict.py " + "runs/a " * 20 + "[bold]"
    say(console, command)
    assert written(console) == f"{command}\n"


def test_what_is_held_back_comes_out_whole_and_in_order(console: Console) -> None:
    say(console, "before")
    with held(console):
        say(console, "during", style="yellow")
        assert written(console) == "before\n"
    say(console, "after")
    assert written(console) == "before\nduring\nafter\n"


def say_and_fail(console: Console, error: Exception) -> None:
    with held(console):
        say(console, "all that came before")
        raise error


def test_an_error_of_the_user_is_shown_alone_and_one_of_ours_with_all_that_came_before(console: Console) -> None:
    with pytest.raises(DataError):
        say_and_fail(console, DataError("no image"))
    assert written(console) == ""
    with pytest.raises(ZeroDivisionError):
        say_and_fail(console, ZeroDivisionError())
    assert written(console) == "all that came before\n"
