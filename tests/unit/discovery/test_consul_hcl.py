"""HCL, and service definition files in HCL or JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.api.schemas import CHECK_REQUEST, SERVICE_REQUEST
from discovery.consul import definition_files, hcl
from discovery.consul.definition_files import BadDefinitionFile
from discovery.consul.hcl import BadHcl

WHOLE = r"""
# one comment
service {            // another
  name = "web"  /* and
  a third */
  id   = "web-1"
  port = 80
  tags = ["v1", "a \"b\" \\ \u00e4\t",]
  meta { rack = "r1", "a-b" = "c" }
  tagged_addresses = { lan = { address = "10.0.0.5", port = 80 } wan : { address = "192.0.2.1" } }
  weights { passing = 10 warning = -1 }
  enable_tag_override = true
  kind = null
  check {
    args     = ["true"]
    interval = "10s"
    notes    = <<-EOT
      two
        lines
      EOT
  }
  check { tcp = "h:1" }
}
limits "http" "all" { rate = 1.5e3 burst = 0x10 }
"""


def test_a_whole_file_is_parsed() -> None:
    assert hcl.parse(WHOLE) == {
        "service": {
            "name": "web",
            "id": "web-1",
            "port": 80,
            "tags": ["v1", 'a "b" \\ ä\t'],
            "meta": {"rack": "r1", "a-b": "c"},
            "tagged_addresses": {
                "lan": {"address": "10.0.0.5", "port": 80},
                "wan": {"address": "192.0.2.1"},
            },
            "weights": {"passing": 10, "warning": -1},
            "enable_tag_override": True,
            "kind": None,
            "check": [
                {"args": ["true"], "interval": "10s", "notes": "two\n  lines\n"},
                {"tcp": "h:1"},
            ],
        },
        "limits": {"http": {"all": {"rate": 1500.0, "burst": 16}}},
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("\ufeffa=1", {"a": 1}),
        ("a = 1\r\nb = 2\r\n", {"a": 1, "b": 2}),
        ("a = <<E\n x\n\n y\nE\n", {"a": " x\n\n y\n"}),
        ("a = <<E\r\nx\r\nE\r\n", {"a": "x\n"}),
        ("a = <<E\nE", {"a": ""}),
        ('a = "${x}"', {"a": "${x}"}),
        ("a = []", {"a": []}),
        ("a = [[1], {b = 2}]", {"a": [[1], {"b": 2}]}),
        ("a {} a {}\na {}", {"a": [{}, {}, {}]}),
        ('a "l" {}\na "m" {}', {"a": [{"l": {}}, {"m": {}}]}),
        ("# only a comment", {}),
        ("a = -0.5", {"a": -0.5}),
    ],
)
def test_forms_of_values(text: str, found: object) -> None:
    assert hcl.parse(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = ", "line 1, column 5: the end of the text is no value"),
        ("a = b", "line 1, column 5: b is no value; a text stands in quotes"),
        ("service {\n  name = web\n}", "line 2, column 10: web is no value; a text stands in quotes"),
        ("a", "line 1, column 2: behind a there must be '=' or '{'"),
        ("a {", "line 1, column 4: '}' is missing"),
        ("}", "line 1, column 1: '}' is no name"),
        ("a = 1\na = 2", "line 2, column 1: a is given a second time"),
        ("a = 1\na {}", "line 2, column 1: a is both an attribute and a block"),
        ("a = [1 2]", "line 1, column 8: in a list, ',' or ']' must stand here"),
        ("a = [1", "line 1, column 7: in a list, ',' or ']' must stand here"),
        ('a = "b\nc"', "line 1, column 5: the text that begins here has no '\"'"),
        ('a = "b', "line 1, column 5: the text that begins here has no '\"'"),
        (r'a = "\q"', "line 1, column 6: \\q means nothing"),
        (r'a = "\ud800"', "line 1, column 6: \\u means nothing"),
        (r'a = "\U00110000"', "line 1, column 6: \\U means nothing"),
        ("a = <<E\nx", "line 1, column 5: the text that begins here does not end: no line holds E alone"),
        ("a = <x", "line 1, column 5: a text of several lines begins with"),
        ("/* x", "line 1, column 1: the comment that begins here does not end"),
        ("a = 1.2.3", "line 1, column 5: '1' is no value"),
        ("a = 12x", "line 1, column 5: '1' is no value"),
        ("a = " + "[" * 40, "line 1, column 37: more than 32 blocks, lists and maps within each other"),
        ("a {" * 40, "more than 32 blocks, lists and maps within each other"),
        ("a" + ' "x"' * 40 + "{}", "more than 32 labels"),
        ("a = " + "9" * 5000, "is no value"),
    ],
)
def test_errors_name_the_line(text: str, said: str) -> None:
    with pytest.raises(BadHcl) as error:
        hcl.parse(text)
    assert said in str(error.value), error.value


@given(st.text(alphabet='a1={}[]",\\<E#/*\n -.:x', max_size=60))
def test_random_text_is_parsed_or_refused(text: str) -> None:
    try:
        found = hcl.parse(text)
    except BadHcl as error:
        assert str(error).startswith("line ")
    else:
        json.dumps(found)


_TEXTS = st.text(st.characters(codec="utf-8"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=20,
)


def written(value: object) -> str:
    """A value as HCL."""
    if isinstance(value, dict):
        return "{" + "\n".join(f"{written(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(one):08x}" if one in '"\\\n' else one for one in value) + '"'
    return json.dumps(value)


@given(_VALUES)
def test_values_round_trip(value: object) -> None:
    assert hcl.parse(f"a = {written(value)}") == {"a": value}


def test_json_and_hcl_files_are_equivalent(tmp_path: Path) -> None:
    (tmp_path / "web.hcl").write_text(
        'service {\n name = "web"\n port = 80\n check { ttl = "1m" }\n checks { tcp = "h:1" }\n}\n'
        'service { name = "db" }\ncheck { name = "disk" ttl = "1m" }\n'
    )
    document = {
        "services": [
            {"name": "web", "port": 80, "check": {"ttl": "1m"}, "checks": [{"tcp": "h:1"}]},
            {"name": "db"},
        ],
        "checks": [{"name": "disk", "ttl": "1m"}],
    }
    (tmp_path / "web.json").write_text(json.dumps(document))
    found = [definition_files.read((str(tmp_path / name),)) for name in ("web.hcl", "web.json")]
    assert found[0] == found[1]
    assert found[0].services == (
        {"name": "web", "port": 80, "checks": [{"ttl": "1m"}, {"tcp": "h:1"}]},
        {"name": "db"},
    )
    assert found[0].checks == ({"name": "disk", "ttl": "1m"},)
    both = definition_files.read((str(tmp_path / "web.hcl"), str(tmp_path / "web.json")))
    assert [one["name"] for one in both.services] == ["web", "db", "web", "db"]


def test_the_body_of_an_api_request_is_a_valid_file() -> None:
    found = definition_files.parse('{"Name": "web", "Port": 80, "Check": {"TTL": "1m"}}', "x")
    assert found.services == ({"Name": "web", "Port": 80, "checks": [{"TTL": "1m"}]},)


def test_unknown_keys_are_reported() -> None:
    found = definition_files.parse('service { name = "web" }\ndatacenter = "dc1"', "web.hcl")
    assert found.ignored == ("web.hcl: datacenter",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('service { nmae = "web" }', "web.hcl: service: unknown key nmae; did you mean name?"),
        ('service { name = "web" tag = ["a"] }', "unknown key tag; did you mean tags?"),
        ('service { name = "web" check { intervall = "1s" } }', "check: unknown key intervall; did you mean interval?"),
        ('check { name = "disk" TTLs = "1m" }', "web.hcl: check: unknown key TTLs; did you mean ttl?"),
        ('service { name = "web" }\ncheks { ttl = "1m" }', "web.hcl: unknown key cheks; did you mean checks?"),
        ('{"Name": "web", "Prot": 80}', "web.hcl: service: unknown key Prot; did you mean port?"),
    ],
)
def test_a_typo_is_refused(content: str, said: str) -> None:
    with pytest.raises(definition_files.BadDefinitionFile) as caught:
        definition_files.parse(content, "web.hcl")
    assert said in str(caught.value)


def test_every_key_of_the_api_may_be_in_a_file() -> None:
    def plain(keys: Iterable[str]) -> set[str]:
        return {key.replace("_", "").lower() for key in keys}

    # CreateIndex and the like are of answers.
    of_answers = {"createindex", "modifyindex", "datacenter"}
    assert plain(SERVICE_REQUEST["properties"]) - of_answers <= plain(definition_files._SERVICE_KEYS)
    assert plain(CHECK_REQUEST["properties"]) - of_answers <= plain(definition_files._CHECK_KEYS)


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'service { name = "web" }')))
    assert definition_files.read(("-",)).services == ({"name": "web"},)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "defines no service: it is empty"),
        (b"x = 1", "defines no service: it has x; write service"),
        (b'{"service": {"name": "web"', "x: Expecting"),
        (b"service = 1", "x: service: 1 is neither a block nor an object"),
        (b'services = ["web"]', 'x: services: "web" is neither'),
        (b"service {\n check = 3\n}", "x: check: 3 is neither"),
        (b"service {\n name = web\n}", "x: line 2, column 9: web is no value"),
        (b'{"service": {"name": "\\ud800"}}', "x: "),
        (b"\xff", "x is not valid UTF-8"),
        (b" " * ((1 << 20) + 1), "x is larger than 1 MiB"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadDefinitionFile) as error:
        definition_files.read(("x",))
    assert said in str(error.value)


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadDefinitionFile, match="cannot be read"):
            definition_files.read((str(path),))
