"""Services from labels: weft's and Registrator's."""

from __future__ import annotations

import pytest

from cni_plugin.docker import labels


def test_services_of_wefts_labels() -> None:
    found = labels.read(
        {
            "weft.service": "web:80, dns:53/udp",
            "weft.check": "http:/health",
            "weft.check.dns": "ttl:30s",
            "weft.check.interval": "3s",
            "weft.tags": "v1, blue",
            "weft.virtual.web": "true",
        }
    )
    assert found.problems == []
    tags = ["v1", "blue"]
    check = {"http": "/health", "interval": "3s"}
    assert found.services == [
        {"name": "web", "port": 80, "tags": tags, "virtual": True, "check": check},
        {"name": "dns", "port": 53, "protocol": "udp", "tags": tags, "check": {"ttl": "30s"}},
    ]


@pytest.mark.parametrize("text", ["web", "web:0", "web:70000", "web:80/sctp", "a b:80", ":80", "web:80:81"])
def test_a_service_that_cannot_be_read(text: str) -> None:
    found = labels.read({"weft.service": f"{text}, good:1"})
    assert [one["name"] for one in found.services] == ["good"]
    assert found.problems == [f"label weft.service {text!r} must be NAME:PORT, such as web:80 or dns:53/udp"]


@pytest.mark.parametrize("text", ["http", "http:health", "script:/bin/true", "ttl:", "tcp:80"])
def test_a_check_that_cannot_be_read(text: str) -> None:
    found = labels.read({"weft.service": "web:80", "weft.check": text})
    assert found.services == []
    assert found.problems == [f"label weft.check {text!r} of service web must be http:/path, tcp, udp or ttl:30s"]


def test_services_of_registrators_labels() -> None:
    """A port's own settings come first; of several ports of one name each has its number."""
    found = labels.read(
        {"SERVICE_NAME": "app", "SERVICE_TAGS": "a,b", "SERVICE_8443_NAME": "admin", "SERVICE_9000_IGNORE": "true"},
        {"SERVICE_80_CHECK_HTTP": "health", "SERVICE_80_CHECK_INTERVAL": "15s", "SERVICE_REGION": "eu", "PATH": "/bin",
         "SERVICE_VERSION": "7"},
        ["80/tcp", "8443/tcp", "9000/tcp", "53/udp"],
    )  # fmt: skip
    meta = {"version": "7"}
    assert found.problems == []
    assert found.services == [
        {"name": "app-53", "port": 53, "protocol": "udp", "tags": ["a", "b", "udp"], "meta": meta},
        {"name": "app-80", "port": 80, "tags": ["a", "b"], "meta": meta,
         "check": {"http": "/health", "interval": "15s"}},
        {"name": "admin", "port": 8443, "tags": ["a", "b"], "meta": meta},
    ]  # fmt: skip


def test_checks_of_registrator() -> None:
    def check(**keys: str) -> object:
        one = {"SERVICE_80_NAME": "app", **{f"SERVICE_80_CHECK_{key}": text for key, text in keys.items()}}
        return labels.read(one).services[0].get("check")

    assert check(TCP="true", TIMEOUT="2s") == {"tcp": "", "interval": "10s", "timeout": "2s"}
    assert check(TTL="30s") == {"ttl": "30s"}
    assert check(SCRIPT="curl localhost") is None
    [problem] = labels.read({"SERVICE_80_NAME": "app", "SERVICE_80_CHECK_SCRIPT": "curl"}).problems
    assert problem.startswith("service app has no check")


def test_nothing_is_registered_without_a_name() -> None:
    assert labels.read({"SERVICE_TAGS": "a"}, {"SERVICE_CHECK_HTTP": "/"}, ["80/tcp"]).services == []
    assert labels.read({}, {}, ["80/tcp"]).services == []
