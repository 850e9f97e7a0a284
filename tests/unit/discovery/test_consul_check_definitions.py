"""Check definitions: what is accepted, and the errors for the rest."""

from __future__ import annotations

import pytest

from discovery.consul import check_definitions
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
        ({"HTTP": "http://[127.0.0.1]:9998/health", "interval": "1s"}, "http", "http://[127.0.0.1]:9998/health"),
        ({"HTTP": "http://a/ b", "interval": "1s"}, "http", "http://a/ b"),
        ({"TCP": ":9000", "interval": "1s"}, "tcp", ":9000"),
        ({"TCP": "db:ssh", "interval": "1s"}, "tcp", "db:ssh"),
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


def test_options_that_change_the_meaning() -> None:
    tls = parse(TCP="a:1", TCPUseTLS=True, TLSSkipVerify=True, TLSServerName="web", Interval="1s")
    assert (tls.tls, tls.tls_skip_verify, tls.tls_server_name) == (True, True, "web")
    assert tls.asked["TCPUseTLS"] is True
    http = parse(HTTP="http://a/", DisableRedirects=True, Interval="1s")
    assert http.disable_redirects and http.asked["DisableRedirects"] is True
    assert not parse(HTTP="http://a/", Interval="1s").disable_redirects


def test_grpc_checks_need_grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_definitions, "find_spec", lambda name: None)
    with pytest.raises(BadField, match=r"need grpcio on this agent: pip install grpcio"):
        parse(GRPC="a:1", Interval="1s")
    monkeypatch.setattr(check_definitions, "find_spec", lambda name: name)
    found = parse(GRPC="a:1/web", GRPCUseTLS=True, Interval="1s")
    assert (found.type, found.target, found.tls) == ("grpc", "a:1/web", True)
    with pytest.raises(BadField, match="TLSSkipVerify: not supported for gRPC"):
        parse(GRPC="a:1", GRPCUseTLS=True, TLSSkipVerify=True, Interval="1s")


def test_durations_are_limited() -> None:
    assert parse(TTL=10_000_000_000).ttl == 10
    assert parse(TCP="h:1", Interval="1ns").interval == 0.1
    assert parse(TCP="h:1", Interval="1s", TTL="-1s").ttl == 0
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
        ({"HTTP": "http://a b/", "Interval": "1s"}, "is not a valid URL"),
        ({"HTTP": "a:80/", "Interval": "1s"}, "is not a valid URL, expected .*: it has no scheme http or https"),
        ({"HTTP": "http://[::1/", "Interval": "1s"}, "is not a valid URL"),
        ({"TCP": "10.0.0.5", "Interval": "1s"}, "is not a valid address, expected HOST:PORT"),
        ({"TCP": "10.0.0.5:0", "Interval": "1s"}, "is not a valid address, expected HOST:PORT"),
        ({"TCP": "a:1", "UDP": "a:1", "Interval": "1s"}, "only one check type may be set, found tcp and udp"),
        ({"DockerContainerID": "x", "Shell": "sh", "Interval": "1s"}, "DockerContainerID: Docker .*docker exec"),
        ({"H2PING": "a:1", "Interval": "1s"}, "H2PING: HTTP/2 ping checks are not supported; use HTTP or TCP"),
        ({"OSService": "web", "Interval": "1s"}, "OSService: .*systemctl is-active"),
        ({"HTTP": "http://a/", "ProxyHTTP": "http://b/", "Interval": "1s"}, "ProxyHTTP: .*Connect proxy"),
        ({"HTTP": "http://a/", "TCPUseTLS": True, "Interval": "1s"}, "TCPUseTLS has no meaning for a http check"),
        ({"TCP": "a:1", "DisableRedirects": True, "Interval": "1s"}, "DisableRedirects has no meaning for a tcp"),
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
