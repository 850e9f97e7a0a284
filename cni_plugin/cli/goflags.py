"""Commands with options in the syntax of Go's flag package, as in Consul: ``-name=x``, ``-name x``,
``--name``.

Options come before arguments, a boolean may be ``-name=false``, and usage errors exit with 1.
Source: https://pkg.go.dev/flag; https://developer.hashicorp.com/consul/commands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

import click

from cni_plugin.cli.output import printable
from cni_plugin.cli.problems import FAILED
from discovery.consul.client import ApiClient, default_address, parse_address
from weft.errors import WeftError

Command = TypeVar("Command", bound=Callable[..., object])

_LATE = re.compile(r"unexpected extra arguments? \((?:[^-)]\S* )*(-[^ )]+)")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class WrongFlag(ValueError):
    """An unknown option or an invalid value."""


class GoCommand(click.Command):
    """A command with Go's option syntax. Declare options with one dash: ``click.option("-node", …)``."""

    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # shell completion
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, self._normalize(ctx, args))
        except (WrongFlag, click.UsageError) as error:
            message = error.format_message().rstrip(".") if isinstance(error, click.UsageError) else str(error)
            late = "" if ctx.allow_interspersed_args else _LATE.search(message)
            fail(message, hint=f"options go before arguments: {late[1]}" if late else f"see {ctx.command_path} -help")

    def _normalize(self, ctx: click.Context, args: list[str]) -> list[str]:
        return normalize(args, self.get_params(ctx), anywhere=ctx.allow_interspersed_args)


def normalize(arguments: Sequence[str], parameters: Sequence[click.Parameter], *, anywhere: bool = False) -> list[str]:
    """The arguments in click's syntax, options first. Raises WrongFlag, with Go's messages.

    ``anywhere``: options may follow arguments.
    """
    options = {name.lstrip("-"): one for one in parameters if isinstance(one, click.Option) for name in one.opts}
    found: list[str] = []
    plain: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "-" or not word.startswith("-"):
            plain.append(word)
            if anywhere:
                continue
            break
        if word == "--":
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise WrongFlag(f"bad flag syntax: {word}")
        option = options.get(name)
        if option is None:
            raise WrongFlag(f"flag provided but not defined: -{name}")
        if option.is_flag:
            if value in _TRUE or not equals:
                found.append(option.opts[0])
            elif value in _FALSE:
                found += option.secondary_opts[:1]  # of -shell/-no-shell, which is true unless it is refused
            else:
                raise WrongFlag(f'invalid boolean value "{value}" for -{name}: parse error')
        elif equals or rest:
            found += [option.opts[0], value if equals else rest.pop(0)]
        else:
            raise WrongFlag(f"flag needs an argument: -{name}")
    return [*found, "--", *plain, *rest]


def fail(line: str, status: int = FAILED, hint: str = "") -> NoReturn:
    """Print a message on standard error and exit."""
    click.echo(printable(line), err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)
    raise click.exceptions.Exit(status)


def fail_with(prefix: str, error: WeftError) -> NoReturn:
    """Exit with an error's message after a prefix that Consul prints."""
    fail(f"{prefix}: {error.message}", hint=error.hint)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Parse KEY=VALUE options; exits on an invalid one."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            fail(f'Missing "=" value in argument: {text}')
        found[key] = value
    return found


_OPTIONS = (
    click.option("-http-addr", metavar="ADDRESS", help="The agent. Default: $WEFT_HTTP_ADDR, $CONSUL_HTTP_ADDR, "
                 "the Unix socket of this namespace's agent; not as root: 127.0.0.1:8500."),
    click.option("-token", metavar="TOKEN", help="ACL token. Default: $WEFT_HTTP_TOKEN, $CONSUL_HTTP_TOKEN."),
    click.option("-token-file", metavar="FILE", help="File with the ACL token."),
    click.option("-ca-file", metavar="FILE", help="CA file for TLS. Default: $CONSUL_CACERT."),
    click.option("-client-cert", metavar="FILE", help="Client certificate. Default: $CONSUL_CLIENT_CERT."),
    click.option("-client-key", metavar="FILE", help="Its key. Default: $CONSUL_CLIENT_KEY."),
    click.option("-datacenter", metavar="NAME", help="The datacenter to query."),
    click.option("-stale", is_flag=True, help="Allow stale reads from any server."),
)  # fmt: skip


def api_command(command: Command) -> Command:
    """Add the options for the agent's HTTP API; the command gets a ``client``."""

    def run(
        *arguments: object,
        http_addr: str | None,
        token: str | None,
        token_file: str | None,
        ca_file: str | None,
        client_cert: str | None,
        client_key: str | None,
        datacenter: str | None,
        stale: bool,
        **rest: object,
    ) -> object:
        try:
            files = _TlsFiles(ca_file, client_cert, client_key)
            client = _client(http_addr, _token(token, token_file), files, datacenter, stale)
        except WeftError as error:
            fail_with("Error connecting to Consul agent", error)
        try:
            return command(*arguments, client=client, **rest)
        finally:
            client.close()

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Callable[..., object] = run
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[return-value]


class _TlsFiles(NamedTuple):
    ca: str | None
    certificate: str | None
    key: str | None


def _client(address: str | None, token: str, files: _TlsFiles, datacenter: str | None, stale: bool) -> ApiClient:
    """Raises BadAddress."""
    environ = os.environ
    text = address or environ.get("WEFT_HTTP_ADDR") or environ.get("CONSUL_HTTP_ADDR")
    tls = environ.get("CONSUL_HTTP_SSL") in _TRUE
    return ApiClient(
        parse_address(text, tls=tls) if text else default_address(),
        token=token,
        parameters=[*([("dc", datacenter)] if datacenter else []), *([("stale", "")] if stale else [])],
        ca_file=files.ca or environ.get("CONSUL_CACERT", ""),
        certificate=files.certificate or environ.get("CONSUL_CLIENT_CERT", ""),
        key_file=files.key or environ.get("CONSUL_CLIENT_KEY", ""),
        verify=environ.get("CONSUL_HTTP_SSL_VERIFY") not in _FALSE,
    )


def _token(given: str | None, file: str | None) -> str:
    if given:
        return given
    path = file or os.environ.get("CONSUL_HTTP_TOKEN_FILE", "")
    if not path:
        return os.environ.get("WEFT_HTTP_TOKEN") or os.environ.get("CONSUL_HTTP_TOKEN", "")
    try:
        with open(path, encoding="utf-8") as text:
            return text.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"Error loading token file: {error}")
