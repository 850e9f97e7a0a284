"""docs/cli.md, the man pages and completion come from the commands themselves."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from cni_plugin.cli import complete, manual
from cni_plugin.cli.root import weft
from cni_plugin.cli.tool import Tool

ROOT = Path(__file__).resolve().parents[3]


def test_the_document_is_what_the_commands_say() -> None:
    written = (ROOT / "docs/cli.md").read_text()
    assert written == manual.markdown(), "run: python -m cni_plugin.cli.manual >docs/cli.md"


def test_every_command_has_a_row_and_a_page(tmp_path: Path) -> None:
    text = manual.markdown()
    for path, command in manual.commands():
        if not isinstance(command, click.Group):
            assert f"| `{path}" in text
    manual.main([str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "weft.1",
        *(f"weft-{name}.1" for name in weft.every_command()),
    }
    page = (tmp_path / "weft-network.1").read_text()
    assert '.SH "WEFT NETWORK CREATE"' in page and "\\-\\-subnet" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_pages_are_valid_roff() -> None:
    for name, text in manual.pages().items():
        said = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-K", "utf8"], input=text, capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, ""), name


def completed(run, *words: str) -> list[str]:
    """The completions of the last word."""
    tool = Tool(config=str(run.config), make=lambda: run.service)
    *before, incomplete = words
    return [one.value for one in ShellComplete(weft, {"obj": tool}, "weft", "_X").get_completions(before, incomplete)]


@pytest.fixture
def names(run, monkeypatch):
    saved = {id(each): (each, each.type) for _, one in manual.commands() for each in one.params}
    complete.install(weft)
    monkeypatch.setattr(complete, "NETNS_FOLDER", str(run.folder / "netns"))
    for name in ("c1", "c2"):
        (run.folder / "netns" / name).mkdir(parents=True)
        run.container(name)
    for name in ("blue", "black", "green"):
        run.good("network", "create", name)
    run.good("attach", "blue", "c1")
    yield run
    for each, kind in saved.values():
        each.type = kind


def test_completion_of_names(names) -> None:
    assert completed(names, "attach", "bl") == ["black", "blue"]
    assert completed(names, "attach", "blue", "") == ["c1", "c2"]
    assert completed(names, "show", "") == ["c1"]
    assert completed(names, "detach", "") == ["black", "blue", "c1", "green"]
    assert completed(names, "network", "rm", "g") == ["green"]
    assert completed(names, "network", "create", "-d", "pt") == ["ptp"]
    assert completed(names, "network", "create", "-o", "mt") == ["mtu="]
    assert "mode=" in completed(names, "network", "create", "-d", "macvlan", "-o", "")
    # What cannot be read has no completions.
    names.service.records._attachments = "/dev/null/none"
    assert completed(names, "show", "x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(run, shell: str) -> None:
    assert "_WEFT_COMPLETE" in run.good("completion", shell)


@pytest.mark.parametrize("line", [own for _, own in manual.TYPED])
def test_what_users_of_other_tools_type_is_understood(line: str) -> None:
    """The parser takes each line; nothing is executed."""
    words = shlex.split(line)[1:]
    command: click.Command = weft
    context = click.Context(weft, info_name="weft")
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        if found is None:
            break
        command, context, words = found, click.Context(found, info_name=words[0], parent=context), words[1:]
    assert not isinstance(command, click.Group) or command.invoke_without_command
    context = click.Context(command, info_name=command.name, parent=context.parent, obj=Tool())
    command.parse_args(context, list(words))


def test_the_completions_are_those_of_the_command() -> None:
    for shell in manual.COMPLETIONS:
        assert "_WEFT_COMPLETE" in manual.completion(shell)
        assert manual.completion(shell).strip() == CliRunner().invoke(weft, ["completion", shell]).stdout.strip()
