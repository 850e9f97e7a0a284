"""``weft kv``: keys and values, with Consul's options, output and exit statuses.

Source: https://developer.hashicorp.com/consul/commands/kv.
"""

from __future__ import annotations

import base64
import binascii
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

import click

from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with
from cni_plugin.cli.output import as_json, say, table
from discovery.consul.client import ApiClient, ApiError, api_path, list_of_objects
from weft.errors import WeftError

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON.")
_NOT_FOUND = 404
_IN_USE = "Error! Did not {} {}: CAS failed"
Pair = Mapping[str, object]


@click.group()
def kv() -> None:
    """Get, set and delete keys, as "consul kv"."""


@kv.command(cls=GoCommand)
@click.argument("key", metavar="[KEY_OR_PREFIX]", required=False, default="")
@click.option("-base64", "encoded", is_flag=True, help="Print the value in base64.")
@click.option("-detailed", is_flag=True, help="Also print indexes, flags and the session that holds it.")
@click.option("-keys", is_flag=True, help="Print the names of the keys under a prefix.")
@click.option("-recurse", is_flag=True, help="Print all keys under a prefix.")
@click.option("-separator", metavar="TEXT", default="/", show_default=True, help="Where -keys ends a name.")
@_JSON
@api_command
def get(
    client: ApiClient,
    key: str,
    encoded: bool,
    detailed: bool,
    keys: bool,
    recurse: bool,
    separator: str,
    json_output: bool,
) -> None:
    """Print the value of a key, or what is under a prefix.

    \b
    Example:
      weft kv get app/limit
      weft kv get -recurse app/
    """
    key = key.removeprefix("/")
    if not (key or keys or recurse):
        fail("Error! Missing KEY argument")
    if keys:
        names = _listed(client, key, [("keys", ""), ("separator", separator)])
        if json_output:
            as_json(names)
        else:
            for name in names:
                say(str(name))
        return
    found = [one for one in _listed(client, key, [("recurse", "")] if recurse else []) if isinstance(one, dict)]
    if not found and not recurse:
        fail(f"Error! No key exists at: {key}")
    if json_output:
        as_json(found)
    elif detailed:
        for place, one in enumerate(found):
            if place:
                say()
            _print_details(one, encoded)
    elif recurse:
        for one in found:
            _write(f"{one.get('Key')}:".encode() + _shown(one, encoded) + b"\n")
    else:
        _write(_shown(found[0], encoded) + b"\n")


@kv.command(cls=GoCommand)
@click.argument("key")
@click.argument("data", metavar="[DATA]", required=False, default="")
@click.option("-cas", is_flag=True, help="Only if the key is still at -modify-index; 0: if it does not exist.")
@click.option("-modify-index", type=click.IntRange(0), default=0, help="The index for -cas.")
@click.option("-flags", type=click.IntRange(0, 2**64 - 1), default=0, help="A number that is kept with the value.")
@click.option("-session", metavar="ID", default="", help="The session for -acquire and -release.")
@click.option("-acquire", is_flag=True, help="Lock the key for the session.")
@click.option("-release", is_flag=True, help="Unlock the key.")
@click.option("-base64", "encoded", is_flag=True, help="DATA is in base64.")
@_JSON
@api_command
def put(
    client: ApiClient,
    key: str,
    data: str,
    cas: bool,
    modify_index: int,
    flags: int,
    session: str,
    acquire: bool,
    release: bool,
    encoded: bool,
    json_output: bool,
) -> None:
    """Set a key. DATA is the value, @FILE, or - for standard input.

    \b
    Example:
      weft kv put app/limit 100
      weft kv put -cas -modify-index=123 app/limit 200
    """
    key = key.removeprefix("/")
    if not key:
        fail("Error! Missing KEY argument")
    if (acquire or release) and not session:
        fail("Error! Missing -session (required with -acquire and -release)")
    if cas + acquire + release > 1:
        fail("Error! Cannot specify more than one of -acquire, -release and -cas")
    content = _data(data)
    if encoded:
        content = _decoded(content.decode("utf-8", "replace"))
    asked = [("flags", str(flags))] if flags else []
    asked += [(name, session) for name, wanted in (("acquire", acquire), ("release", release)) if wanted]
    asked += [("cas", str(modify_index))] if cas else []
    try:
        done = client.put_bytes(_path(key), content, asked).json is True
    except WeftError as error:
        fail_with("Error! Failed writing data", error)
    if json_output:
        as_json(done)
    if not done:
        what = "acquire" if acquire else "release" if release else ""
        fail(f"Error! Did not {what} lock" if what else _IN_USE.format("write to", key))
    if not json_output:
        lock = "Lock acquired on" if acquire else "Lock released on" if release else "Data written to"
        say(f"Success! {lock}: {key}")


@kv.command(cls=GoCommand)
@click.argument("key", metavar="KEY_OR_PREFIX")
@click.option("-cas", is_flag=True, help="Only if the key is still at -modify-index.")
@click.option("-modify-index", type=click.IntRange(0), default=0, help="The index for -cas.")
@click.option("-recurse", is_flag=True, help="Delete all keys under the prefix.")
@_JSON
@api_command
def delete(client: ApiClient, key: str, cas: bool, modify_index: int, recurse: bool, json_output: bool) -> None:
    """Delete a key, or all keys under a prefix.

    \b
    Example:
      weft kv delete app/limit
    """
    key = key.removeprefix("/")
    if not key and not recurse:
        fail("Error! Missing KEY argument")
    if recurse and cas:
        fail("Error! Cannot specify -cas with -recurse")
    if cas and not modify_index:
        fail("Error! Must specify -modify-index with -cas")
    asked = [("recurse", "")] if recurse else [("cas", str(modify_index))] if cas else []
    try:
        done = client.delete(_path(key), asked).json is True
    except WeftError as error:
        fail_with("Error! Did not delete key " + key, error)
    if json_output:
        as_json(done)
    if not done:
        fail(_IN_USE.format("delete key", key))
    if not json_output:
        say(f"Success! Deleted {'keys with prefix' if recurse else 'key'}: {key}")


@kv.command(cls=GoCommand)
@click.argument("prefix", required=False, default="")
@_JSON
@api_command
def export(client: ApiClient, prefix: str, json_output: bool) -> None:
    """Print all keys under a prefix as JSON, for "weft kv import" and "consul kv import".

    \b
    Example:
      weft kv export app/ >app.json
    """
    found = list_of_objects(_listed(client, prefix.removeprefix("/"), [("recurse", "")]))
    pairs = [{"key": one.get("Key"), "flags": one.get("Flags"), "value": one.get("Value") or ""} for one in found]
    click.echo(json.dumps(pairs, indent="\t"))


@kv.command("import", cls=GoCommand)
@click.argument("data", metavar="DATA|@FILE|-", required=False, default="-")
@click.option("-prefix", metavar="TEXT", default="", help="Put this before every key.")
@_JSON
@api_command
def import_(client: ApiClient, data: str, prefix: str, json_output: bool) -> None:
    """Set the keys that "weft kv export" or "consul kv export" has printed.

    \b
    Example:
      weft kv import @app.json
    """
    pairs = list(_exported(_data(data), prefix))  # all of them are read before one is set
    for key, value, flags in pairs:
        try:
            client.put_bytes(_path(key), value, [("flags", str(flags))] if flags else [])
        except WeftError as error:
            fail_with(f"Error! Failed writing data for key {key}", error)
        if not json_output:
            say(f"Imported: {key}")
    if json_output:
        as_json([key for key, _, _ in pairs])


def _exported(content: bytes, prefix: str) -> Iterator[tuple[str, bytes, int]]:
    """Keys, values and flags; exits on what is no export."""
    try:
        found = json.loads(content)
    except ValueError as error:
        _refuse(str(error))
    if not isinstance(found, list):
        _refuse("it is not a list")
    for place, one in enumerate(found):
        pair = one if isinstance(one, dict) else {}
        key, value, flags = pair.get("key"), pair.get("value") or "", pair.get("flags") or 0
        if not isinstance(key, str) or not key or not isinstance(value, str) or not isinstance(flags, int):
            _refuse(f"entry {place} has no key, or a value or flags that are none")
        yield f"{prefix}{key}".removeprefix("/"), _decoded(value), flags


def _refuse(why: str) -> NoReturn:
    fail(f"Cannot unmarshal data: {why}")


def _path(key: str) -> str:
    return api_path("kv", key)


def _listed(client: ApiClient, key: str, asked: Iterable[tuple[str, str]]) -> list[object]:
    """What a read answers, [] where there is nothing; exits on an error."""
    try:
        found = client.get(_path(key), list(asked)).json
    except ApiError as error:
        if error.status == _NOT_FOUND:
            return []
        fail_with("Error querying Consul agent", error)
    except WeftError as error:
        fail_with("Error querying Consul agent", error)
    return found if isinstance(found, list) else []


def _data(text: str) -> bytes:
    """The bytes that DATA, @FILE or - stand for; exits where the file cannot be read."""
    if text == "-":
        return sys.stdin.buffer.read()
    if not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    try:
        with open(text[1:], "rb") as file:
            return file.read()
    except OSError as error:
        fail(f"Error! Failed to read file: {text[1:]}: {error.strerror}")


def _decoded(text: str) -> bytes:
    """The bytes of base64; exits on anything else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        fail(f"Error! Cannot base64 decode data: {text[:60]!r}")


def _shown(one: Pair, encoded: bool) -> bytes:
    text = str(one.get("Value") or "")
    return text.encode() if encoded else base64.b64decode(text)


def _write(content: bytes) -> None:
    """Print bytes as they are, into a file or a program; escaped on a terminal, where they could do anything."""
    if sys.stdout.isatty():
        for line in content.decode("utf-8", "replace").removesuffix("\n").split("\n"):
            say(line)
    else:
        click.echo(content, nl=False)


def _print_details(one: Pair, encoded: bool) -> None:
    value = _shown(one, encoded).decode("utf-8", "replace")
    names = ("CreateIndex", "Flags", "Key", "LockIndex", "ModifyIndex", "Session")
    rows = [(name, str(one.get(name, "-"))) for name in names]
    table((), [*rows, ("Value", value)])
