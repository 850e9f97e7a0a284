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
    meta = {"region": "eu", "version": "7"}
    assert found.problems == []
    assert found.services == [
        {"name": "app-53", "port": 53, "protocol": "udp", "tags": ["a", "b", "udp"], "meta": meta},
        {"name": "app-80", "port": 80, "tags": ["a", "b"], "meta": meta,
         "check": {"http": "/health", "interval": "15s"}},
        {"name": "admin", "port": 8443, "tags": ["a", "b"], "meta": meta},
    ]  # fmt: skip


def _read(**keys: str) -> labels.Found:
    return labels.read({"SERVICE_80_NAME": "app", **{f"SERVICE_80_{key}": text for key, text in keys.items()}})


def test_checks_of_registrator() -> None:
    """Every key that its documentation and its consul.go have."""

    def check(**keys: str) -> object:
        found = _read(**{f"CHECK_{key}": text for key, text in keys.items()})
        assert found.problems == []
        return found.services[0].get("check")

    assert check(TCP="true", TIMEOUT="2s") == {"tcp": "", "interval": "10s", "timeout": "2s"}
    assert check(TTL="30s", INITIAL_STATUS="passing") == {"ttl": "30s", "status": "passing"}
    assert check(HTTP="/", INTERVAL="3s", HTTP_METHOD="HEAD", INITIAL_STATUS="passing", DEREGISTER_AFTER="1h") == {
        "http": "/", "interval": "3s", "method": "HEAD", "status": "passing", "deregister_critical_service_after": "1h",
    }  # fmt: skip
    assert check(HTTPS="/up", TIMEOUT="1s", TLS_SKIP_VERIFY="true") == {
        "http": "https:/up", "interval": "10s", "timeout": "1s", "tls_skip_verify": True,
    }  # fmt: skip
    assert check(HTTP="/", TCP="true") == {"http": "/", "interval": "10s"}  # the first of its order


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("CHECK_SCRIPT", "curl", "has no check: SERVICE_CHECK_SCRIPT runs a command, and weft runs none"),
        ("CHECK_CMD", "true", "has no check: SERVICE_CHECK_CMD runs a command, and weft runs none"),
        ("CHECK_GRPC", "true", "has no check: SERVICE_CHECK_GRPC is not for containers"),
        ("CHECK_PING", "true", "unknown SERVICE_CHECK_PING: known are CHECK_HTTP, CHECK_HTTPS,"),
        ("ID", "mine", "SERVICE_ID 'mine' is not used"),
    ],
)
def test_what_weft_has_not_of_registrator(key: str, text: str, said: str) -> None:
    found = _read(**{key: text})
    [problem] = found.problems
    assert said in problem and problem.startswith("service app")
    assert [one.get("check") for one in found.services] == [None]


def test_registrator_in_detail() -> None:
    """The environment comes before labels; an escaped comma; one port of two protocols; names that are none."""
    found = labels.read(
        {"SERVICE_NAME": "old", "SERVICE_TAGS": r"a\,b, c"}, {"SERVICE_NAME": "new"}, ["53/tcp", "53/udp"]
    )
    assert [(one["name"], one["tags"]) for one in found.services] == [
        ("new-53", ["a,b", "c"]), ("new-53", ["a,b", "c", "udp"])
    ]  # fmt: skip
    ignored = {"SERVICE_NAME": "app", "SERVICE_9000_IGNORE": "true"}
    assert [one["name"] for one in labels.read(ignored, {}, ["80/tcp"]).services] == ["app"]
    assert labels.read({**ignored, "SERVICE_IGNORE": "1"}, {}, ["80/tcp"]).services == []
    assert len(labels.read({**ignored, "SERVICE_IGNORE": ""}, {}, ["80/tcp"]).services) == 1
    bad = labels.read({"SERVICE_80_NAME": "a b", "SERVICE_81_NAME": "good", "SERVICE_99999_NAME": "far"})
    assert [one["name"] for one in bad.services] == ["good"] and len(bad.problems) == 2
    [problem] = labels.read({"SERVICE_80_CHECK_HTTP": "/"}, {}, ["80/tcp"]).problems
    assert problem == "SERVICE_80_CHECK_HTTP has no service: give SERVICE_80_NAME"


def test_nothing_is_registered_without_a_name() -> None:
    assert labels.read({"SERVICE_TAGS": "a"}, {"SERVICE_CHECK_HTTP": "/"}, ["80/tcp"]) == labels.Found()
    assert labels.read({}, {}, ["80/tcp"]).services == []
