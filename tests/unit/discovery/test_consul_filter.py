"""Consul's filter language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.consul.filter import BadFilter, compile_filter

TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "properties": {
        "ID": TEXT,
        "Service": TEXT,
        "Port": {"type": "integer"},
        "EnableTagOverride": {"type": "boolean"},
        "Tags": {"type": "array", "items": TEXT},
        "Meta": {"type": "object", "additionalProperties": TEXT},
        "Weights": {"type": "object", "properties": {"Passing": {"type": "integer"}}},
        "Checks": {"type": "array", "items": {"type": "object", "properties": {"Status": TEXT}}},
        "TaggedAddresses": {
            "type": "object",
            "additionalProperties": {"type": "object", "properties": {"Port": {"type": "integer"}}},
        },
        "Proxy": {"type": "object", "additionalProperties": True},
    },
}
ITEM = {
    "ID": "web-1",
    "Service": "web",
    "Port": 80,
    "EnableTagOverride": False,
    "Tags": ["v1", "blue"],
    "Meta": {"version": "2.1", "a-b": "dash"},
    "Weights": {"Passing": 3},
    "Checks": [{"Status": "passing"}, {"Status": "warning"}],
    "TaggedAddresses": {"lan": {"Port": 8080}},
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", True),
        ('Service == "web"', True),
        ("Service == web", True),
        ('Service != "web"', False),
        ("Service == `web`", True),
        ("Port == 80", True),
        ('Port == "80"', True),
        ("Port != 80", False),
        ("EnableTagOverride == false", True),
        ('"v1" in Tags', True),
        ('"v9" in Tags', False),
        ('"v9" not in Tags', True),
        ('Tags contains "blue"', True),
        ('Tags not contains "blue"', False),
        ("v1 in Tags", True),
        ("Tags is empty", False),
        ("Tags is not empty", True),
        ('Meta.version == "2.1"', True),
        ('Meta.other == "2.1"', False),
        ('Meta.other != "2.1"', True),
        ("Meta.other is empty", True),
        ("Meta.other is not empty", False),
        ('Meta["a-b"] == "dash"', True),
        ('"/Meta/a-b" == "dash"', True),
        ("version in Meta", True),
        ("other not in Meta", True),
        ("Meta is empty", False),
        ('Meta.version matches "^2[.]"', True),
        ('Meta.version not matches "^2[.]"', False),
        ('"eb-" in ID', True),
        ('ID matches "(?i)WEB"', True),
        ("Weights.Passing == 3", True),
        ('Checks.Status == "warning"', True),
        ('Checks.Status == "critical"', False),
        ("TaggedAddresses.lan.Port == 8080", True),
        ("TaggedAddresses.wan.Port == 1", False),
        ("Port == 80 and Service == web", True),
        ("Port == 81 or Service == web", True),
        ("not Port == 80", False),
        ("not (Port == 81 or Port == 82)", True),
        ("not not Port == 80", True),
        ("( Port == 80 )", True),
        ("Port == 81 and Port == 80 or Service == web", True),
        ("Service==web", True),
        ('not "v9" in Tags', True),
        ('Tags contains "v1" and\n\tMeta.version matches `2\\.1`', True),
    ],
)
def test_filters_that_match(text: str, taken: bool) -> None:
    assert compile_filter(text, SCHEMA)(ITEM) is taken


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Nothing == 1", 'Selector "Nothing" is not valid'),
        ("Service.Deep == 1", "Selector"),
        ("Service", "expected an operator"),
        ("Service ==", "unexpected end of filter"),
        ("(Port == 80", "unmatched parentheses"),
        ("Port == 80)", "unexpected ')'"),
        ("Port == many", "is not a number"),
        ("EnableTagOverride == maybe", "is not a boolean"),
        ('Tags == "v1"', "type array"),
        ('Port matches "8"', "type integer"),
        ("Weights is empty", "type object"),
        ("Proxy.Mode == direct", 'Selector "Mode" is not valid'),
        ('Service matches "("', "closing )"),
        ("Service is odd", "empty or not empty"),
        ('"v1" Tags', "in or not in"),
        ("Service = web", "no match found"),
        ("Port == 80 and", "unexpected end of filter"),
        ("(" * 60 + "Port == 80" + ")" * 60, "nested too deeply"),
        ("a" * 5000, "4096"),
        ("not", "unexpected end of filter"),
        ("Meta[version] == 1", "index"),
        ('"unfinished', "no match found"),
        ("Port not == 80", "operator"),
    ],
)
def test_invalid_filters_are_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(BadFilter) as raised:
        compile_filter(text, SCHEMA)
    assert said in str(raised.value)


def test_missing_fields_are_empty() -> None:
    for text, taken in (
        ("Tags is empty", True),
        ("Port == 0", True),
        ("Service is empty", True),
        ("Checks.Status == x", False),
    ):
        assert compile_filter(text, SCHEMA)({}) is taken


def test_a_pattern_that_takes_too_long_is_an_error() -> None:
    test = compile_filter('ID matches "(?:a?){500}a{500}"', SCHEMA)
    with pytest.raises(BadFilter, match="too long"):
        test({"ID": "a" * 4000})


def test_the_patterns_of_a_filter_share_their_time() -> None:
    """One request had 180 patterns, each of which took almost as long as one may: 14 s."""
    text = " or ".join(['ID matches "(.?){500}x"'] * 100)
    with pytest.raises(BadFilter, match="too long"):
        compile_filter(text, SCHEMA)({"ID": "a" * 20})


def test_a_pattern_is_matched_with_any_number_of_items() -> None:
    test = compile_filter('ID matches "(foo|bar|baz)[0-9]$" and ID not matches "^b.*9$"', SCHEMA)
    for number in range(20_000):
        assert test({"ID": f"web-foo{number % 10}"}) and not test({"ID": "web"})


WORDS = [
    "Tags",
    "Proxy",
    "Proxy.x",
    "Port",
    "Meta.x",
    "Service",
    '"v"',
    "80",
    "==",
    "!=",
    "in",
    "not",
    "is",
    "empty",
    "and",
    "or",
    "(",
    ")",
    "matches",
    "[",
]


@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join)))
def test_random_filters(text: str) -> None:
    try:
        compile_filter(text, SCHEMA)(ITEM)
    except BadFilter as error:
        assert str(error)
