"""Where the API listens, TLS, and the settings of access in weft.toml."""

from __future__ import annotations

import http.client
import ssl
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cni_plugin.agent import settings as configuration
from cni_plugin.cli.root import weft
from discovery.api import listeners
from discovery.api.settings import AclSettings, HttpSettings, TlsSettings
from discovery.structs import Node
from lab.agent import LabAgent
from weft.errors import ConfigProblem

ROOT = "7e6c9d2a-1111-4111-8111-5d2f8a1b9c3e"


def test_without_tokens_only_loopback_is_listened_on(tmp_path: Path) -> None:
    where = ("127.0.0.1:0", "192.0.2.1:8500", "[2001:db8::1]:8500", "/run/x.sock")
    listen, problems = listeners.allowed(HttpSettings(listen=where))
    assert listen == ("127.0.0.1:0", "/run/x.sock") and len(problems) == 2
    assert "192.0.2.1:8500" in problems[0] and "acl.enabled" in problems[0]
    assert listeners.allowed(HttpSettings(listen=("0.0.0.0:1", "[::]:1", "127.0.0.1:1")))[0] == (
        "127.0.0.1:1",
        "[::1]:1",
    )
    assert listeners.allowed(HttpSettings(listen=where, acl=AclSettings(enabled=True))) == (where, ())
    # An installation that listened on every address serves loopback, and says what is missing.
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), HttpSettings(listen=("0.0.0.0:0",)))
    try:
        assert agent.host == "127.0.0.1" and agent.get("/v1/catalog/nodes").status == 200
        assert "acl.enabled" in agent.api.problems[0]
    finally:
        agent.stop()


def made_certificates(folder: Path) -> None:
    """A CA, a server's certificate for 127.0.0.1, and a client's; and one of nobody known."""
    new = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    signed = ("-x509", "-CA", "ca.pem", "-CAkey", "ca.key")
    for name, more in (
        ("ca", ("-x509", "-subj", "/CN=ca", "-addext", "basicConstraints=critical,CA:TRUE")),
        ("other", ("-x509", "-subj", "/CN=other")),
        ("agent", (*signed, "-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1")),
        ("client", (*signed, "-subj", "/CN=client")),
    ):
        command = [*new, *more, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_tls_and_client_certificates_beyond_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_certificates(tmp_path)
    # Without another address of this machine, a loopback address stands for one.
    monkeypatch.setattr(listeners, "is_remote", lambda address: not address.startswith("127.0.0.2"))
    tls = TlsSettings(*(str(tmp_path / name) for name in ("agent.pem", "agent.key", "ca.pem")), verify=True)
    acl = AclSettings(enabled=True, initial_management=ROOT)
    settings = HttpSettings(listen=("127.0.0.1:0", "127.0.0.2:0"), writers=(), acl=acl, tls=tls)
    agent = LabAgent(tmp_path / "data", Node("n1", "127.0.0.1"), settings)
    (tmp_path / "data").mkdir(exist_ok=True)

    def get(certificate: str, host: str = "127.0.0.1") -> int:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        if certificate:
            context.load_cert_chain(tmp_path / f"{certificate}.pem", tmp_path / f"{certificate}.key")
        connection = http.client.HTTPSConnection("127.0.0.1", agent.port, timeout=30, context=context)
        try:
            connection.request("GET", "/v1/kv/?keys", headers={"X-Consul-Token": ROOT, "Host": host})
            return connection.getresponse().status
        finally:
            connection.close()

    try:
        assert get("client") == 200
        # The certificate has told the name; a rebound page would have none.
        assert get("client", "agent.example") == 200
        address = f"https://127.0.0.1:{agent.port}"
        for name, value in (
            ("CONSUL_HTTP_ADDR", address),
            ("CONSUL_CACERT", str(tmp_path / "ca.pem")),
            ("CONSUL_CLIENT_CERT", str(tmp_path / "client.pem")),
            ("CONSUL_CLIENT_KEY", str(tmp_path / "client.key")),
            ("CONSUL_HTTP_TOKEN", "none"),
        ):
            monkeypatch.setenv(name, value)
        listed = CliRunner().invoke(weft, ["services", "list"])
        assert listed.exit_code == 1 and "ACL not found" in listed.output
        monkeypatch.setenv("WEFT_HTTP_TOKEN", ROOT)
        assert "consul" in CliRunner().invoke(weft, ["services", "list", "-detailed"]).output
        for certificate in ("", "other"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                get(certificate)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            agent.get("/v1/catalog/nodes")  # without TLS
        plain = http.client.HTTPConnection("127.0.0.2", int(agent.api.addresses[1].rpartition(":")[2]), timeout=30)
        plain.request("GET", "/v1/status/leader")
        assert plain.getresponse().status == 200
        plain.close()
    finally:
        agent.stop()
    with pytest.raises(OSError, match=r"tls\.cert_file .*missing\.pem"):
        listeners.tls_context(TlsSettings(str(tmp_path / "missing.pem"), tls.key))


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "weft.toml"

    def read(text: str) -> HttpSettings:
        path.write_text(text)
        return configuration.read(str(path)).http

    assert (read("").writers, read("").readers, read("").acl.enabled) == (("root",), (), False)
    assert read('[http]\nwriters = ["root", "postgres", "@wheel", "*", "107"]').writers[1:3] == ("postgres", "@wheel")
    with_tokens = read('[acl]\nenabled = true\ntokens.default = "x"\n[agent]\ndata = "/d"')
    assert (with_tokens.writers, with_tokens.acl.default, with_tokens.acl.data) == ((), "x", "/d")
    assert not with_tokens.acl.allow and read('[acl]\ndefault_policy = "allow"').acl.allow
    assert read('[acl]\nenabled = true\n[http]\nwriters = ["root"]').writers == ("root",)
    files = 'cert_file = "c"\nkey_file = "k"\nca_file = "a"\nverify_incoming = true'
    assert read(f"[tls]\n{files}").tls == TlsSettings("c", "k", "a", True)
    for text, said in (
        ('[http]\nwriters = ["a b"]', "holds 'a b'"),
        ('[acl]\ndefault_policy = "some"', "acl.default_policy"),
        ('[acl]\ntokens.agent = "x"', "acl.tokens.agent"),
        ('[tls]\ncert_file = "c"', "tls.key_file"),
        ("[tls]\nverify_incoming = true", "tls.ca_file"),
    ):
        with pytest.raises(ConfigProblem) as caught:
            read(text)
        assert said in str(caught.value)
