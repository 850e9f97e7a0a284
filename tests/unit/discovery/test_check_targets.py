"""Targets of checks: as lenient as Go's net.Dial and url.Parse, and errors for what these refuse."""

from __future__ import annotations

import pytest

from discovery.check_targets import parse_url, split_host_port


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.0.5:6379", ("10.0.0.5", 6379)),
        (":9000", ("127.0.0.1", 9000)),
        ("[127.0.0.1]:9998", ("127.0.0.1", 9998)),
        ("[::1]:53", ("::1", 53)),
        ("[fe80::1%eth0]:53", ("fe80::1%eth0", 53)),
        ("db.example:https", ("db.example", 443)),
        ("db.example:HTTPS", ("db.example", 443)),
        ("localhost:080", ("localhost", 80)),
    ],
)
def test_addresses(address: str, found: tuple[str, int]) -> None:
    assert split_host_port(address, "tcp") == found


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.0.0.5", "has no port"),
        ("10.0.0.5:", "has no port"),
        ("[::1]", "has no port"),
        ("::1:53", "too many colons"),
        ("[::1:53", "unmatched brackets"),
        ("a]b:1", "unmatched brackets"),
        ("[[::1]]:1", "unmatched brackets"),
        ("a:0", "unknown port '0'"),
        ("a:65536", "unknown port"),
        ("a:+80", "unknown port"),
        ("a:no-such-port", "unknown port"),
        ("a b:1", "invalid host"),
    ],
)
def test_addresses_that_go_refuses(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        split_host_port(address, "tcp")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://10.0.0.5:8080/health", "http://10.0.0.5:8080/health"),
        ("http://[127.0.0.1]:9998/health", "http://127.0.0.1:9998/health"),
        ("http://[::1]:9998/health", "http://[::1]:9998/health"),
        ("http://[::1]/", "http://[::1]/"),
        ("http://:9000/", "http://127.0.0.1:9000/"),
        ("HTTP://a/ b?c d", "http://a/ b?c d"),
        ("http://a", "http://a"),
        ("http://a:/x", "http://a/x"),
        ("http://user:pw@a:80/", "http://user:pw@a:80/"),
        ("https://a?x=http://b:1/", "https://a?x=http://b:1/"),
    ],
)
def test_urls(address: str, url: str) -> None:
    assert parse_url(address) == url


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("a:80/health", "no scheme"),
        ("ftp://a/", "no scheme http or https"),
        ("http://a b/", "invalid host"),
        ("http://a:http/", "not a number"),
        ("http://a:99999/", "unknown port"),
        ("http://[::1/", "brackets"),
        ("http://a/\n", "non-printable"),
        ("http://a\x7f/", "non-printable"),
    ],
)
def test_urls_that_go_refuses(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_url(address)
