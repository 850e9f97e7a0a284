"""The root command: groups of subcommands, overview, and exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, complain, printable, say
from cni_plugin.cli.problems import FAILED, MEANINGS, USAGE
from cni_plugin.cli.problems import status as exit_status
from cni_plugin.cli.tool import Tool
from weft import __version__
from weft.errors import WeftError

_MODULES = {
    **{name: name for name in ("cluster", "docker", "doctor", "engine", "node", "services", "status", "trace")},
    "agent": "agent_command",
    **dict.fromkeys(("up", "down"), "agents"),
    **dict.fromkeys(("apply", "diff", "export"), "applying"),
    **dict.fromkeys(("attach", "detach", "plan"), "attaching"),
    **dict.fromkeys(("catalog", "members"), "catalog"),
    **dict.fromkeys(("event", "info", "leave", "maint", "monitor", "reload", "snapshot", "validate"), "consul_agent"),
    "kv": "kv",
    "lock": "lock",
    "watch": "watch",
    **dict.fromkeys(("events", "logs"), "happening"),
    "version": "version",
    **dict.fromkeys(("gc", "ipam"), "keeping"),
    **dict.fromkeys(("check", "ps", "show"), "listing"),
    **dict.fromkeys(("install", "uninstall"), "install"),
    "dns-lookup": "lookup",
    "network": "network_more",
}
"""The module of each command, imported when the command is used: all of them take 0.2 s of CPU time."""

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Networks", ("network", "ipam")),
    ("Attachments", ("ps", "show", "check")),
    ("Attach without a container runtime", ("plan", "attach", "detach")),
    ("From files", ("apply", "diff", "export")),
    ("Services", ("services", "catalog", "members", "dns-lookup")),
    (
        "Keys and the agent, as in Consul",
        ("kv", "event", "watch", "lock", "maint", "snapshot", "info", "monitor", "reload", "leave", "validate"),
    ),
    ("Many hosts", ("cluster", "node")),
    ("Diagnostics", ("status", "doctor", "trace", "events", "logs", "gc")),
    ("Install and run", ("install", "uninstall", "up", "down", "agent", "engine", "docker", "version", "completion")),
)

_FIRST_STEPS = (
    ("weft network create blue", "create a network"),
    ("ip netns add c1", "create a network namespace"),
    ("weft attach blue c1", "attach it, and print its address"),
    ("weft ps", "list attachments"),
    ("weft detach blue c1", "detach it"),
)


class Weft(click.Group):
    """Lists its commands in groups, and reports every error in one line with an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_MODULES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            return self.command_named(cmd_name)
        found = super().get_command(ctx, cmd_name)
        if found is None:
            self.every_command()  # click suggests one of those that are imported
        return found

    def command_named(self, name: str) -> click.Command:
        """The command of this group; raises KeyError for an unknown name."""
        if name not in self.commands:
            module = import_module(f"cni_plugin.cli.{_MODULES[name]}")
            self.add_command(getattr(module, name.replace("-", "_")), name)
        return self.commands[name]

    def every_command(self) -> dict[str, click.Command]:
        """All commands by name."""
        return {name: self.command_named(name) for name in sorted({*self.commands, *_MODULES})}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(name, self.command_named(name).get_short_help_str(80)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            formatter.write_dl([(str(number), meaning) for number, meaning in MEANINGS])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: object,
    ) -> object:
        if any(name.endswith("_COMPLETE") for name in os.environ):
            from cni_plugin.cli import complete  # asks for names of everything, which no command needs

            complete.install(self)
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        sys.exit(_run(lambda: super(Weft, self).main(args, prog_name, complete_var, standalone_mode=False, **extra)))


def _run(work: Callable[[], object]) -> int:
    """Run the command; its exit status. An error is one line on standard error, with a hint if there is
    one.
    """
    try:
        answer = work()
        sys.stdout.flush()
        return answer if isinstance(answer, int) else 0
    except WeftError as error:
        return _failed(error.message, error.hint, exit_status(error), error)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "weft"
        text = " ".join(error.format_message().split()).rstrip(".")
        return _failed(text, f"see {command} --help", USAGE, error)
    except click.ClickException as error:
        return _failed(error.format_message(), "", FAILED, error)
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", "", 130, None)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has exited
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- flushed at exit
            return FAILED
        return _failed(_describe(error), _TRACE, FAILED, error)
    except Exception as error:
        return _failed(f"internal error: {_describe(error)}", _TRACE, FAILED, error)


_TRACE = "set WEFT_DEBUG=1 for a traceback"


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) else f"{type(error).__name__}{': ' if text else ''}{text}"


def _failed(message: str, hint: str, number: int, error: Exception | None) -> int:
    if error is not None and os.environ.get("WEFT_DEBUG"):
        import traceback

        click.echo("".join(traceback.format_exception(error)), err=True)
    complain(message, colour="red")
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)
    return number


@click.group(cls=Weft, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="weft", message="%(prog)s %(version)s")
@click.pass_context
def weft(context: click.Context) -> None:
    """Manage container networks and services.

    Container runtimes call weft's CNI plugins; this command is for operators. Every command has --help
    with an example, and those that print a result have --json. The commands of Consul (services, catalog,
    members, kv …) take options as its own do: -name=x, and their usage errors exit with status 1.
    A symbolic link named consul to this command provides them as well.
    """
    tool = context.ensure_object(Tool)
    context.call_on_close(tool.close)
    if context.invoked_subcommand is None:
        _overview()


def _overview() -> None:
    say("weft: container networks and services")
    for title, names in GROUPS:
        say()
        say(title, bold=True)
        for name in names:
            say(f"  {name.ljust(12)}{weft.command_named(name).get_short_help_str(80)}")
    say()
    say("Getting started")
    for line, meaning in _FIRST_STEPS:
        say(f"  {line.ljust(28)}{meaning}")
    say()
    say("See weft COMMAND --help for a command, weft --help for exit statuses.")


@weft.command()
@common
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str, json_output: bool) -> None:
    """Print a shell completion script.

    \b
    Example:
      source <(weft completion bash)
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click has no completion for {shell}")
    script = kind(weft, {}, "weft", "_WEFT_COMPLETE").source()
    if json_output:
        as_json({"shell": shell, "script": script})
    else:
        click.echo(script)
