"""The command as a whole: help, exit statuses, and one line for each error."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cni_plugin.cli import output, problems
from cni_plugin.cli.root import GROUPS, Weft, weft
from weft import __version__, errors

ROOT = Path(__file__).resolve().parents[3]


def commands(group: click.Group = weft, path: tuple[str, ...] = ()):
    found = group.every_command() if isinstance(group, Weft) else group.commands
    for name, command in found.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif name not in ("agent", "docker"):  # daemons: they have no result
            yield (*path, name), command


PRINTS_OTHERS = ("lock", "watch")
"""What they print is a program's, or always JSON."""
OFFLINE = (("snapshot", "inspect"), ("validate",))
"""They read the files that they are given, and ask nobody."""


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
def test_every_command_has_json_an_example_and_help(run, path, command) -> None:
    text = run.good(*path, "--help")
    assert "--json" in text or path[0] in PRINTS_OTHERS
    assert any(option in text for option in ("--config-dir", "-http-addr", "-server")) or path in OFFLINE
    assert re.search(rf"Example:\n(.*\n)*.*weft {' '.join(path[:2])}", text), text
    assert "Traceback" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_overview_shows_every_command_once(run) -> None:
    listed = [name for _, members in GROUPS for name in members]
    assert sorted(listed) == sorted(weft.every_command())
    text = run.good()
    assert all(f"  {name} " in text for name in listed)
    whole = run.good("--help")
    assert all(meaning.split(":")[0] in " ".join(whole.split()) for _, meaning in problems.MEANINGS)


def test_a_command_imports_no_other_command() -> None:
    loaded = "import sys; from cni_plugin.cli.root import weft; weft.get_command(None, 'ps'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    others = {"agents", "cluster", "doctor", "engine", "install", "network", "services", "trace"}
    assert "cni_plugin.cli.listing" in modules
    assert not {f"cni_plugin.cli.{name}" for name in others} & {*modules}
    assert "aiohttp" not in modules and "pyroute2" not in modules


def test_usage_errors_are_one_line_and_a_hint(run) -> None:
    for arguments in (("bogus",), ("ps", "--bogus"), ("attach", "blue"), ("network", "rm")):
        said = run(*arguments)
        assert said.code == 2
        first, second = said.err.splitlines()
        assert first.startswith("weft: ") and second.startswith("hint: see weft")


def test_a_wrong_word_is_answered_with_a_similar_one(run) -> None:
    assert "Did you mean 'network'?" in run("netwrok").err
    assert "Did you mean 'inspect'?" in run("network", "inspct").err
    assert "Choose from: bash, zsh, fish" in run("completion").err


def test_completion_is_a_script_for_weft(run) -> None:
    for shell in ("zsh", "fish"):
        assert "_WEFT_COMPLETE" in run.good("completion", shell)
    assert run("completion", "tcsh").code == 2


def test_an_error_that_is_its_own_cause_has_a_status() -> None:
    error = errors.Conflict("x")
    error.__cause__ = error
    assert problems.status(error) == 4


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownContainer("x"), 3),
        (errors.NamespaceProblem("x"), 3),
        (errors.Missing("x"), 3),
        (errors.Conflict("x"), 4),
        (errors.Exists("x"), 4),
        (errors.PoolExhausted("x"), 4),
        (errors.Busy("x"), 5),
        (errors.WeftError("x", code=errors.NOT_AVAILABLE), 5),
        (errors.KernelRefused("x", hint="this needs CAP_NET_ADMIN in the network namespace"), 6),
        (errors.KernelRefused("x"), 1),
        (errors.BadOption("x"), 2),
        (errors.EnvironmentProblem("x"), 2),
    ],
)
def test_each_kind_of_failure_has_its_status(error, status) -> None:
    assert problems.status(error) == status


def test_eacces_has_its_own_exit_status() -> None:
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as cause:
            raise errors.StateDamaged("cannot write") from cause
    except errors.StateDamaged as error:
        assert problems.status(error) == 6


def test_an_internal_error_is_a_line_and_not_a_traceback(run, monkeypatch) -> None:
    def broken() -> list[object]:
        raise ValueError("what\nnow")

    monkeypatch.setattr(run.service.records, "all", broken)
    said = run("ps")
    assert (said.code, said.err.splitlines()[0]) == (1, "weft: internal error: ValueError: what now")
    monkeypatch.setenv("WEFT_DEBUG", "1")
    assert "Traceback" in run("ps").err


def test_an_interrupt_prints_no_traceback(run, monkeypatch) -> None:
    def interrupted() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.service.records, "all", interrupted)
    said = run("ps")
    assert (said.code, said.err.strip()) == (130, "weft: interrupted")


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; sys.argv=['weft']; from cni_plugin.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "x"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_as_dev_null(closed: str, tmp_path: Path) -> None:
    """Nothing that is opened later has its number, and what was done is not said to have failed."""
    code = (
        "import os, sys; sys.argv=['weft', 'completion', 'bash']; from cni_plugin.cli import _open_streams, main\n"
        f"_open_streams(); first = open({str(tmp_path / 'file')!r}, 'w').fileno()\n"
        "assert first > 2 and all(map(os.get_inheritable, range(3))); main()"
    )
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=">" not in closed).returncode == 0


def test_columns_are_aligned(capsys) -> None:
    output.table(("A", "B"), [("long cell", "x"), ("\x1b[2J", "y")])
    assert capsys.readouterr().out == "A           B\nlong cell   x\n\\x1b[2J     y\n"


def test_nothing_unprintable_is_printed() -> None:
    assert output.printable("a\x07b\udc80c\u202ed") == "a\\x07b\\udc80c\\u202ed"
    assert output.printable("grün") == "grün"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (7200, "2h"), (200000, "2d"), (-5, "0s")]
)
def test_ages(seconds, text) -> None:
    assert output.age(seconds) == text


def test_a_line_without_a_colour_has_no_escapes(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(output, "has_colours", lambda stream: True)
    output.say("left /etc/weft")
    assert capsys.readouterr().out == "left /etc/weft\n"


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file, under NO_COLOR and on a terminal without colours the output is the same plain text."""

    def shown(terminal: str, no_color: str, *, tty: bool) -> bytes:
        main, other = os.openpty()
        reader, writer = os.pipe()
        environment = {**os.environ, "TERM": terminal, "NO_COLOR": no_color, "WEFT_CNI_CONFIG": "/nonexistent"}
        process = subprocess.Popen(
            [sys.executable, "-c", "from cni_plugin.cli import main; main()", "network", "inspect", "blue"],
            env=environment,
            stderr=other if tty else writer,
        )
        process.wait()
        os.close(other)
        os.close(writer)
        found = os.read(main if tty else reader, 4096)
        os.close(main)
        os.close(reader)
        return found

    assert b"\x1b[" in shown("xterm", "", tty=True)
    for terminal, no_color, tty in (("xterm", "1", True), ("dumb", "", True), ("xterm", "", False)):
        found = shown(terminal, no_color, tty=tty)
        assert b"weft: network blue not found" in found and b"\x1b" not in found


def test_version_names_the_parts(run) -> None:
    found = run("version", "--json").json
    assert [one["part"] for one in found["parts"]] == ["weft", "agent", "engine", "driver for Docker"]
    assert found["parts"][0]["version"] == __version__ and "1.1.0" in found["cni"]
    assert run.good("version").splitlines()[0].split() == ["PART", "VERSION", "RUNNING"]
