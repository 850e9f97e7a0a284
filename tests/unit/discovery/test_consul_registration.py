"""Service registrations: what is accepted, and the errors for the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.consul.json_fields import BadField, Fields, decode_json
from discovery.consul.registration import parse_service
from discovery.structs import Instance, ServiceAddress, Status, Weights

WHOLE = {
    "ID": "web-1",
    "Name": "web",
    "Tags": ["v1", "blue", "v1"],
    "Address": "10.0.0.5",
    "Port": 80,
    "Meta": {"version": "2"},
    "TaggedAddresses": {"wan": {"Address": "192.0.2.5", "Port": 8080}, "lan": "10.0.0.6"},
    "Weights": {"Passing": 10, "Warning": 0},
    "EnableTagOverride": True,
    "Ports": {"http": 80, "admin": 8081},
    "Protocol": "TCP",
}
INSTANCE = Instance(
    node="n1",
    id="web-1",
    name="web",
    address="10.0.0.5",
    port=80,
    ports={"http": 80, "admin": 8081},
    protocol="tcp",
    tags=("v1", "blue"),
    meta={"version": "2"},
    tagged_addresses={"wan": ServiceAddress("192.0.2.5", 8080), "lan": ServiceAddress("10.0.0.6")},
    weights=Weights(10, 0),
    enable_tag_override=True,
)
SNAKE = {"TaggedAddresses": "tagged_addresses", "EnableTagOverride": "enable_tag_override"}


def test_all_fields() -> None:
    assert parse_service(WHOLE, "n1").instance == INSTANCE


@pytest.mark.parametrize("spell", [str.lower, str.upper, lambda name: SNAKE.get(name, name.lower())])
def test_field_names_are_accepted_in_every_spelling(spell: object) -> None:
    assert callable(spell)
    assert parse_service({spell(name): value for name, value in WHOLE.items()}, "n1").instance == INSTANCE


def test_only_the_name_is_required() -> None:
    registration = parse_service({"name": "web"}, "n1")
    assert registration.instance == Instance(node="n1", id="web", name="web")
    assert registration.checks == ()


def test_checks_get_ids_and_names() -> None:
    one = parse_service({"Name": "web", "ID": "w1", "Check": {"TTL": "10s"}}, "n1")
    assert [(check.id, check.name, check.service_id) for check in one.checks] == [
        ("service:w1", "Service 'web' check", "w1")
    ]
    several = {"Name": "web", "Checks": [{"TTL": "1s"}, {"CheckID": "own", "Name": "Own", "TTL": "1s"}, {"TTL": "1s"}]}
    assert [(check.id, check.name) for check in parse_service(several, "n1").checks] == [
        ("service:web:1", "Service 'web' check"),
        ("own", "Own"),
        ("service:web:3", "Service 'web' check"),
    ]


def test_null_and_zero_values_as_go_sends_them_are_absent() -> None:
    sent = {"Name": "web", "Tags": None, "Meta": None, "Check": None, "Checks": None, "Weights": None, "Connect": None}
    assert parse_service(sent, "n1") == parse_service({"Name": "web"}, "n1")
    assert parse_service({"Name": "web", "Check": {}}, "n1").checks == ()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "body: null is not an object"),
        ([], r"body: \[\] is not an object"),
        ({}, "Missing service name"),
        ({"Name": 7}, "Name: 7 is not a string"),
        ({"Name": "a\nb"}, "Name: .* contains non-printable characters"),
        ({"Name": "x" * 300}, "the limit is 255"),
        ({"Name": "web", "Port": "80"}, 'Port: "80" is not an integer'),
        ({"Name": "web", "Port": 70000}, "Port: 70000 is out of range, must be 0 to 65535"),
        ({"Name": "web", "Port": True}, "Port: true is not an integer"),
        ({"Name": "web", "Tags": "v1"}, 'Tags: "v1" is not a list of strings'),
        ({"Name": "web", "Meta": {"a": 1}}, "Meta: .* is not a map of strings"),
        ({"Name": "web", "Meta": {"a b": "1"}}, "Invalid Service Meta: .*Key contains invalid characters"),
        ({"Name": "web", "Meta": {"a": "1" * 513}}, "Value is too long"),
        ({"Name": "web", "Meta": {f"k{n}": "" for n in range(65)}}, "more than 64"),
        ({"Name": "web", "Address": "0.0.0.0"}, "Invalid service address$"),
        ({"Name": "web", "Address": "::"}, "Invalid service address$"),
        ({"Name": "web", "Address": "10.0.0.5 x"}, "Invalid service address"),
        ({"Name": "web", "Weights": {"Passing": 0}}, "Invalid Weights: Passing must be greater than 0"),
        ({"Name": "web", "Weights": {"Warning": -1}}, "Invalid Weights: Warning must be"),
        ({"Name": "web", "Weights": {"Passing": 70000}}, "between 0 and 65535"),
        ({"Name": "web", "TaggedAddresses": {"lan": {"Address": "::"}}}, "Invalid service address"),
        ({"Name": "web", "TaggedAddresses": {"lan": {"Port": 99999}}}, "TaggedAddresses.lan.Port"),
        ({"Name": "web", "Ports": {"http": 0}}, "Ports.http.Port: 0"),
        ({"Name": "web", "Protocol": "sctp"}, "must be tcp or udp"),
        ({"Name": "web", "Connect": {"SidecarService": {}, "Native": True}}, "Invalid SidecarService"),
        ({"Name": "web", "SocketPath": "/run/x"}, "SocketPath"),
        ({"Name": "web", "Checks": [{"TTL": "x"}]}, r'Checks\[0\].TTL: "x" is not a duration'),
        ({"Name": "web", "Check": {"TTL": "1s", "Status": "odd"}}, "Status for checks must"),
        ({"Name": "web", "Check": {"Args": ["/bin/true"], "Interval": "1s"}}, "Scripts are disabled on this agent"),
        ({"Name": "web", "Checks": [{"CheckID": "a", "TTL": "1s"}] * 2}, "duplicate CheckID"),
        ({"Name": "web", "Checks": [{"TTL": "1s"}] * 65}, "the limit is 64"),
    ],
)
def test_invalid_registrations_are_refused_with_the_reason(found: object, said: str) -> None:
    with pytest.raises(BadField, match=said):
        parse_service(found, "n1")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'"\\ud800"',
        b"NaN",
        b"[" * 100_000,
        b"1" * 5000,
        b'{"a": Infinity}',
        b"{} {}",
        b'{"a": 1e999}',
        b"-1e999",
        b'[{"a": 18446744073709551616}]',
        b"-9223372036854775809",
        b'{"a": %b}' % (b"[" * 64 + b"]" * 64),
    ],
)
def test_invalid_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadField, match="invalid JSON"):
        decode_json(body)


def test_an_empty_body_is_an_empty_object() -> None:
    assert decode_json(b" \n") is None
    assert decode_json(b'{"a": "\\u00fc"}') == {"a": "ü"}
    assert decode_json(b"[18446744073709551615, -9223372036854775808, 1.5e300]") == [2**64 - 1, -(2**63), 1.5e300]
    assert decode_json(b"[" * 64 + b"]" * 64) is not None


def test_of_alternative_field_names_the_first_present_counts() -> None:
    fields = Fields({"check_id": "a", "ID": "b"})
    assert fields.text("CheckID", "ID") == "a"
    assert parse_service({"Service": "web", "ID": "x"}, "n1").instance.name == "web"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = [*WHOLE, "Check", "Checks", "Connect", "Kind"]
CHECK = st.dictionaries(
    st.sampled_from(["TTL", "HTTP", "Interval", "Args", "Status", "Header", "TCP"]), JSON, max_size=4
)


@given(st.dictionaries(st.sampled_from(NAMES), JSON | CHECK | st.lists(CHECK, max_size=2), max_size=6) | JSON)
def test_random_registrations(found: object) -> None:
    try:
        registration = parse_service(found, "n1", scripts=True)
    except BadField as error:
        assert str(error)
    else:
        assert registration.instance.name
        assert all(check.initial in Status and check.interval >= 0 for check in registration.checks)
