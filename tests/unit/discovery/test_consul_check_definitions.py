"""Check definitions: what is accepted, and the errors for the rest."""

from __future__ import annotations

import pytest

from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import BadField, Fields
from discovery.structs import CheckDefinition, Status


def parse(scripts: bool = False, **found: object) -> CheckDefinition:
    return parse_check(Fields(found), scripts=scripts)


def test_an_http_check() -> None:
    assert parse(
        ID="api",
        Name="API",
        ServiceID="web",
        Notes="looks",
        HTTP="https://10.0.0.5:8080/health",
        Method="POST",
        Header={"Host": ["web"], "X-Two": ["a", "b"]},
        Body="{}",
        TLSSkipVerify=True,
        TLSServerName="web.example",
        Interval="10s",
        Timeout="1500ms",
        Status="passing",
        OutputMaxSize=100,
        SuccessBeforePassing=2,
        FailuresBeforeWarning=1,
        FailuresBeforeCritical=3,
        DeregisterCriticalServiceAfter="90m",
    ) == CheckDefinition(
        id="api",
        name="API",
        type="http",
        service_id="web",
        notes="looks",
        initial=Status.PASSING,
        interval=10,
        timeout=1.5,
        target="https://10.0.0.5:8080/health",
        method="POST",
        headers={"Host": ("web",), "X-Two": ("a", "b")},
        body="{}",
        tls_skip_verify=True,
        tls_server_name="web.example",
        output_max_size=100,
        success_before_passing=2,
        failures_before_warning=1,
        failures_before_critical=3,
        deregister_after=5400,
        asked={
            "HTTP": "https://10.0.0.5:8080/health",
            "Method": "POST",
            "Header": {"Host": ["web"], "X-Two": ["a", "b"]},
            "Body": "{}",
            "TLSSkipVerify": True,
            "TLSServerName": "web.example",
            "Interval": "10s",
            "Timeout": "1.5s",
            "DeregisterCriticalServiceAfter": "1h30m0s",
        },
    )


@pytest.mark.parametrize(
    ("found", "kind", "target"),
    [
        ({"TTL": "10s"}, "ttl", ""),
        ({"ttl": 10_000_000_000}, "ttl", ""),
        ({"tcp": "10.0.0.5:6379", "interval": "1s"}, "tcp", "10.0.0.5:6379"),
        ({"UDP": "[fd00::5]:53", "interval": "1s"}, "udp", "[fd00::5]:53"),
        ({"ScriptArgs": ["/bin/true"], "Interval": "1s"}, "script", ""),
        ({"alias_service": "db"}, "alias", ""),
        ({"AliasNode": "n2"}, "alias", ""),
    ],
)
def test_every_type_of_check(found: dict[str, object], kind: str, target: str) -> None:
    definition = parse(scripts=True, **found)
    assert (definition.type, definition.target) == (kind, target)
    assert definition.timeout == (30 if kind == "script" else 10)
    assert definition.initial is Status.CRITICAL


def test_durations_are_limited() -> None:
    assert parse(TTL=10_000_000_000).ttl == 10
    assert parse(TCP="h:1", Interval="1ns").interval == 0.1
    assert parse(TTL="1s", DeregisterCriticalServiceAfter="1s").deregister_after == 60
    assert parse(TTL="1s", OutputMaxSize=10**6).output_max_size == 4096
    assert parse(TTL="1s", FailuresBeforeCritical=3).failures_before_warning == 3


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "Must provide TTL or Script/DockerContainerID/HTTP/TCP and Interval"),
        ({"TTL": "0s"}, "TTL must be > 0 for TTL checks"),
        ({"TTL": "-1s"}, "TTL must be > 0 for TTL checks"),
        ({"HTTP": "http://a/"}, "Interval must be > 0"),
        ({"HTTP": "http://a/", "Interval": "1s", "TTL": "1s"}, "Interval and TTL cannot both be specified"),
        ({"HTTP": "ftp://a/", "Interval": "1s"}, "is not a valid URL"),
        ({"HTTP": "http://a:99999/", "Interval": "1s"}, "is not a valid URL"),
        ({"HTTP": "http://a/ b", "Interval": "1s"}, "is not a valid URL"),
        ({"HTTP": "http://[::1/", "Interval": "1s"}, "is not a valid URL"),
        ({"TCP": "10.0.0.5", "Interval": "1s"}, "is not a valid address, expected HOST:PORT"),
        ({"TCP": "10.0.0.5:0", "Interval": "1s"}, "is not a valid address, expected HOST:PORT"),
        ({"TCP": "a:1", "UDP": "a:1", "Interval": "1s"}, "only one check type may be set, found tcp and udp"),
        ({"GRPC": "a:1", "Interval": "1s"}, "gRPC checks are not supported"),
        ({"DockerContainerID": "x", "Shell": "sh", "Interval": "1s"}, "Docker checks are not supported"),
        ({"Script": "true", "Interval": "1s"}, "no longer supported, use Args"),
        ({"Args": ["true"], "Interval": "1s"}, "Scripts are disabled on this agent"),
        ({"AliasService": "a", "Interval": "1s"}, "Interval cannot be set for Alias checks"),
        ({"TTL": "1s", "Status": "odd"}, "Bad check status"),
        ({"TTL": "1s", "FailuresBeforeWarning": 1}, "FailuresBeforeWarning can't be higher"),
        ({"TTL": "1s", "OutputMaxSize": -1}, "must be positive"),
        ({"TTL": "1s", "Header": ["a"]}, "Header: .* is not an object"),
        ({"TTL": "1s", "Header": {"a\r\nb": ["c"]}}, "is not a valid header name"),
        ({"TTL": "1s", "Header": {"a": ["b\r\nc"]}}, "is not a list of strings"),
        ({"TTL": True}, "TTL: true is not a duration"),
        ({"TTL": 1e300}, "is not a duration"),
    ],
)
def test_invalid_definitions_are_refused_with_the_reason(found: dict[str, object], said: str) -> None:
    with pytest.raises(BadField, match=said):
        parse(**found)
