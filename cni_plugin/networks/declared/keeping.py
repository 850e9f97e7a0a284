"""The file of what has been applied, which is applied again when the host boots, and ``weft export``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from cni_plugin.networks import conflists
from cni_plugin.networks.conflists import OWN_KEY, Json, NetworkList
from cni_plugin.networks.declared.document import KINDS
from weft import files
from weft.errors import StateDamaged

PATH = "/etc/weft/applied.toml"
_HEADER = "# Written by weft apply, which makes this again when the host boots. Change it with weft apply.\n\n"
_MOST_BYTES = 16 << 20
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Tables = Mapping[str, Mapping[str, object]]


def kept() -> str:
    """The file's text, "" where nothing has been applied. Raises StateDamaged."""
    try:
        return files.read(PATH, _MOST_BYTES).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"cannot read {PATH}: {error}", hint="weft apply -f FILE writes it again") from error


def keep(tables: Tables) -> None:
    """Write the file, or remove it where nothing is left. Raises StateDamaged."""
    if not any(tables.values()):
        files.remove(PATH, "what has been applied")
        return
    files.make_directory(os.path.dirname(PATH), "what has been applied", 0o755)
    files.write(PATH, (_HEADER + toml(tables)).encode(), "what has been applied", durable=True)


def toml(tables: Tables) -> str:
    """The tables as TOML. Source: https://toml.io/en/v1.0.0."""
    ordered = sorted(tables, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    lines = [line for kind in ordered for name, one in tables[kind].items() for line in _table((kind, name), one)]
    return "\n".join(lines).lstrip("\n") + ("\n" if lines else "")


def _table(path: Sequence[str], value: object) -> Iterator[str]:
    items = value if isinstance(value, dict) else {}
    inner = {key: one for key, one in items.items() if isinstance(one, dict)}
    plain = {key: one for key, one in items.items() if key not in inner and one is not None}
    if plain or not inner:
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
        for key, one in plain.items():
            yield f"{_key(key)} = {_value(one)}"
    for key, one in inner.items():
        yield from _table((*path, key), one)


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _text(text)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(_value(one) for one in value if one is not None)}]"
        case dict():
            pairs = ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items() if one is not None)
            return f"{{ {pairs} }}" if pairs else "{}"
        case _:
            return _text(str(value))


def exported(applied: Tables, networks: Sequence[NetworkList]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """What has been applied, and the networks of ``weft network create``; and a sentence for each network
    that a file cannot declare, or not all of.
    """
    found: dict[str, dict[str, object]] = {kind: dict(table) for kind, table in applied.items()}
    left = []
    for one in networks:
        if one.name in found.get("network", {}):
            continue
        if OWN_KEY in one.content and len(one.plugins) == 1 and one.weft and not one.cluster:
            found.setdefault("network", {})[one.name] = _network(one)
            if lost := _not_declared(one):
                left.append(f"network {one.name} is exported without its {' and '.join(lost)}: no file declares that")
        else:
            left.append(f"network {one.name} ({one.path}) is not of weft network create, and not exported")
    return {kind: found[kind] for kind in KINDS if found.get(kind)}, left


def _not_declared(one: NetworkList) -> list[str]:
    """The options of ``weft network create`` that a network has and a file does not."""
    ipam = one.main.section("ipam")
    ranges = [each for listed in ipam.items("ranges") if isinstance(listed, list) for each in listed]
    has = {
        "--dns": any(one.main.section(key).texts("nameservers") for key in ("dns", "names")),
        "--route": any(each.text("gw") for each in ipam.sections("routes")),
        "--ipam-driver": "ipam" in one.main and ipam.text("type") != "host-local",
        # On a LAN, where no ports are published, the addresses of the host are excluded, and will be again.
        "--aux-address": "portmap" in one.main
        and any(isinstance(each, dict) and each.get("exclude") for each in ranges),
    }
    return [option for option, is_given in has.items() if is_given]


def _network(one: NetworkList) -> Json:
    """A network as its options declare it."""
    ranges = [
        each
        for listed in one.main.section("ipam").items("ranges")
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict)
    ]
    found: Json = {
        "driver": one.driver,
        "subnets": [str(subnet) for subnet in conflists.subnets(one)],
        "gateways": [each["gateway"] for each in ranges if "gateway" in each],
        "ranges": [f"{each['rangeStart']}-{each['rangeEnd']}" for each in ranges if "rangeStart" in each],
        "internal": one.notes.flag("internal"),
        "names": "names" in one.main,
        "services": one.main.items("services"),
        "options": one.notes.raw("options"),
        "labels": one.notes.raw("labels"),
    }
    return {key: value for key, value in found.items() if value}
