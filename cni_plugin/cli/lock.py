"""``weft lock``: run a program while this host holds a lock, as "consul lock".

The lock is the key PREFIX/.lock, held by a session that is renewed as long as this process lives. Its
flags are those of Consul's client library, so that both lock the same.
Source: https://developer.hashicorp.com/consul/commands/lock; consul/api/lock.go.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping

import click

from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with
from cni_plugin.cli.output import warn
from discovery.consul.client import ApiClient, ApiError, ApiReply, Unreachable, api_path, read_reply
from discovery.consul.durations import parse_duration
from weft import processes
from weft.errors import WeftError

_FLAGS = 0x2DDCCBC058A50C18
_TTL = 15
_RENEWAL = _TTL / 3  # seconds
_PAUSE = 1.0
_GRACE = 5.0  # between SIGTERM and SIGKILL
_NOT_FOUND = 404


@click.command(cls=GoCommand)
@click.argument("prefix")
@click.argument("child", metavar="PROGRAM...", nargs=-1)
@click.option("-child-exit-code", is_flag=True, help="Exit with 2 if PROGRAM fails.")
@click.option("-monitor-retry", type=click.IntRange(0), default=3, show_default=True, help="Retries of a lost agent.")
@click.option("-n", "holders", type=click.IntRange(1), default=1, help="Compatibility: only 1 is supported.")
@click.option("-name", metavar="NAME", default="", help="The session's name.")
@click.option("-pass-stdin", is_flag=True, help="PROGRAM reads this command's standard input.")
@click.option("-shell/-no-shell", default=True, show_default=True, help="Run PROGRAM in a shell.")
@click.option("-timeout", metavar="DURATION", default="0s", help="How long to wait for the lock; 0s: forever.")
@click.option("-try", "attempt", metavar="DURATION", default="0s", help="The same.")
@click.option("-verbose", is_flag=True, help="Say what happens.")
@api_command
def lock(
    client: ApiClient,
    prefix: str,
    child: tuple[str, ...],
    child_exit_code: bool,
    monitor_retry: int,
    holders: int,
    name: str,
    pass_stdin: bool,
    shell: bool,
    timeout: str,
    attempt: str,
    verbose: bool,
) -> None:
    """Run a program while this host holds a lock; it is ended if the lock is lost.

    \b
    Example:
      weft lock backup ./backup.sh
      weft lock -timeout=10s service/web/leader ./serve
    """
    if not child:
        fail("Key prefix and child command must be specified")
    if holders != 1:
        fail("weft's locks have one holder: -n must be 1")
    patience = max(_seconds("timeout", timeout), _seconds("try", attempt))
    key = f"{prefix.strip('/')}/.lock"
    say: Callable[[str], object] = (lambda text: click.echo(text, err=True)) if verbose else (lambda text: None)
    argv = ["/bin/sh", "-c", " ".join(child)] if shell else list(child)
    try:
        with _session(client, name or f"Consul lock for '{' '.join(child)}' at '{prefix}'") as session:
            say(f"Attempting lock acquisition of {key}")
            if not _acquire(client, key, session, patience):
                fail("Lock acquisition failed: timeout")
            try:
                say("Lock acquired, running the program")
                status, is_lost = _run(client, key, session, argv, monitor_retry, pass_stdin)
            finally:
                _release(client, key, session)
    except WeftError as error:
        fail_with("Lock acquisition failed", error)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None
    if is_lost:
        fail("Lock lost, the program was ended")
    say(f"The program has ended with {status}")
    raise click.exceptions.Exit((2 if child_exit_code else 1) if status else 0)


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        fail(f'invalid value "{text}" for flag -{option}: must be like 10s')


@contextlib.contextmanager
def _session(client: ApiClient, name: str) -> Iterator[str]:
    """A session, destroyed at the end. Raises Unreachable, ApiError."""
    made = client.put("/v1/session/create", {"Name": name, "TTL": f"{_TTL}s"}).json
    session = str(made.get("ID")) if isinstance(made, dict) else ""
    try:
        yield session
    finally:
        with contextlib.suppress(WeftError):
            client.put(api_path("session", "destroy", session))


def _acquire(client: ApiClient, key: str, session: str, patience: float) -> bool:
    """Wait for the lock, at most ``patience`` seconds if that is not 0. Raises Unreachable, ApiError."""
    end = time.monotonic() + patience
    while True:
        asked = [("acquire", session), ("flags", str(_FLAGS))]
        if client.put_bytes(api_path("kv", key), session.encode(), asked).json is True:
            return True
        left = end - time.monotonic() if patience else _RENEWAL
        if left <= 0:
            return False
        client.put(api_path("session", "renew", session))
        reply = _key(client, key, 0)
        if _holder(reply):
            _key(client, key, reply.index, min(left, _RENEWAL))
        else:
            time.sleep(min(left, _PAUSE))  # the delay after a holder's session has ended


def _key(client: ApiClient, key: str, index: int, wait: float = 0.0) -> ApiReply:
    asked = [("index", str(index)), ("wait", f"{round(wait * 1000)}ms")] if index else []
    connection = client.send(api_path("kv", key), asked)
    try:
        return read_reply(connection, client.address)
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        return ApiReply(None, 0)
    finally:
        connection.close()


def _holder(reply: ApiReply) -> str:
    """The session that holds a key, "" if none does."""
    found = reply.json[0] if isinstance(reply.json, list) and reply.json else None
    return str(found.get("Session") or "") if isinstance(found, Mapping) else ""


def _run(
    client: ApiClient, key: str, session: str, argv: list[str], retries: int, pass_stdin: bool
) -> tuple[int, bool]:
    """The program's exit status, and whether the lock was lost meanwhile; then the program is ended."""
    try:
        process = processes.begin(argv, {**os.environ, "CONSUL_LOCK_HELD": "true"}, stdin=pass_stdin)
    except OSError as error:
        fail(f"Failed to start the program: {argv[0]}: {error.strerror}")
    descriptor = os.pidfd_open(process)
    # A terminal signals the program itself; what is sent to this process alone is passed on.
    before = signal.signal(signal.SIGTERM, lambda number, _: os.kill(process, number))
    try:
        failures, is_lost = 0, False
        while not select.select([descriptor], [], [], _RENEWAL)[0]:
            try:
                client.put(api_path("session", "renew", session))
                is_lost = _holder(_key(client, key, 0)) != session
                failures = 0
            except Unreachable as error:
                failures += 1
                warn(error.message)
                is_lost = failures > retries
            except ApiError:
                is_lost = True  # the session has ended
            if is_lost:
                _end(process, descriptor)
                break
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), is_lost
    except KeyboardInterrupt:
        _end(process, descriptor)
        os.waitpid(process, 0)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(descriptor)


def _end(process: int, descriptor: int) -> None:
    os.kill(process, signal.SIGTERM)
    if not select.select([descriptor], [], [], _GRACE)[0]:
        os.kill(process, signal.SIGKILL)


def _release(client: ApiClient, key: str, session: str) -> None:
    """Release the lock, and delete its key if nobody else has it meanwhile."""
    with contextlib.suppress(WeftError):
        client.put_bytes(api_path("kv", key), b"", [("release", session), ("flags", str(_FLAGS))])
        reply = _key(client, key, 0)
        found = reply.json[0] if isinstance(reply.json, list) and reply.json else {}
        if isinstance(found, Mapping) and found and not _holder(reply):
            client.delete(api_path("kv", key), [("cas", str(found.get("ModifyIndex")))])
