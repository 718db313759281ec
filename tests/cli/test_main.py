"""The command line shell: exit codes, one line for each error, quick help, pipes that close early."""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec

import pytest

import segtrain
from segtrain.cli import main as shell
from segtrain.cli.main import COMMANDS, main
from segtrain.errors import ConfigError, DataError

HEAVY = ("torch", "albumentations", "matplotlib", "cv2", "pydantic", "ruamel", "rich", "numpy")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a command `probe` in the table, which does what the given function does."""

    def install(action: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("segtrain.cli.probe", "Probe the shell.")
        module.add_arguments = _probe_arguments  # type: ignore[attr-defined]
        module.run = action  # type: ignore[attr-defined]
        monkeypatch.setitem(COMMANDS, "probe", "probe the shell")
        monkeypatch.setitem(sys.modules, "segtrain.cli.probe", module)

    return install


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--split")
    parser.add_argument("--workers", type=int)


def _raiser(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def raise_it(_: argparse.Namespace) -> int:
        raise error

    return raise_it


def test_every_command_of_the_table_has_its_module() -> None:
    assert [name for name in COMMANDS if find_spec(f"segtrain.cli.{name.replace('-', '_')}") is None] == []


def test_version_and_help_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"segtrain {segtrain.__version__}\n"
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)


def test_the_help_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_wrong_setting_is_told_before_torch_is_imported() -> None:
    code = (
        "import sys; from segtrain.cli.main import main; print(main(['train', 'nowhere.yaml']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


def test_no_command_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "doctor, probe; did you mean 'train'?"),
        (["xyzzy"], "unknown command 'xyzzy'; commands: train, evaluate"),
        (["--verson"], "unknown argument --verson; did you mean '--version'? (see: segtrain --help)"),
        (["probe"], "the following arguments are required: config (see"),
        (["probe", "a.yaml", "--lr", "3"], "--lr 3; settings are given as key=value, such as train.epochs=5 (see"),
        (["probe", "a.yaml", "--spilt", "val"], "did you mean '--split'? (see: segtrain probe --help)"),
        (
            ["probe", "a.yaml", "--workers", "two"],
            "argument --workers: invalid int value: 'two' (see: segtrain probe --help)",
        ),
        (["probe", "a.yaml", "--work", "2"], "did you mean '--workers'?"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command(lambda _: 0)
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1
    assert message in told.err


def test_options_and_overrides_may_stand_in_any_order(command: Callable[..., None]) -> None:
    seen: list[argparse.Namespace] = []
    command(lambda args: seen.append(args) or 7)
    assert main(["probe", "a.yaml", "x=1", "--split", "val", "y=-2"]) == 7
    assert seen[0].config == "a.yaml"
    assert seen[0].overrides == ["x=1", "y=-2"]
    assert seen[0].split == "val"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("a.yaml:3: wrong"), 2, "error: a.yaml:3: wrong\n"),
        (DataError("two\nlines"), 2, "error: two\nlines\n"),
        (OSError(28, "No space left on device", "runs/x.pt"), 2, "error: No space left on device: runs/x.pt\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: No such file or directory: a.txt\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C\n"),
    ],
)
def test_errors_become_lines_and_exit_codes(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    command(_raiser(error))
    assert main(["probe", "a.yaml"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("ours"),
        OSError("odd"),
        OSError(5, "Input/output error", "a.txt"),
        FileNotFoundError(2, "No such file or directory"),
        BrokenPipeError(32, "Broken pipe"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=repr,
)
def test_our_own_mistakes_keep_their_traceback(command: Callable[..., None], error: Exception) -> None:
    command(_raiser(error))
    with pytest.raises(type(error)):
        main(["probe", "a.yaml"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import segtrain.cli.main as m, segtrain.cli.schema as s, sys\n"
        "def run(args):\n"
        "    while True: sys.stdout.write('line' * 1000)\n"
        "s.run = run\n"
        "sys.exit(m.main(['schema']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == shell.EXIT_BROKEN_PIPE


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\nfrom segtrain.cli.main import main\n{statement}\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_help_and_version_import_nothing_heavy() -> None:
    assert not _modules_after("main(['--help']); main(['--version'])") & set(HEAVY)


def test_help_of_each_command_imports_nothing_heavy() -> None:
    commands = [name for name in COMMANDS if find_spec(f"segtrain.cli.{name.replace('-', '_')}") is not None]
    assert not _modules_after(f"[main([name, '--help']) for name in {commands}]") & set(HEAVY)


def test_the_list_of_commands_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.partition("commands:")[2].splitlines()) <= 80
