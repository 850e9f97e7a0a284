"""``[store]`` of weft.toml, the etcd cluster of the catalog; and times in any section."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_plugin.agent import settings
from store.etcd.settings import EtcdSettings
from weft.errors import ConfigProblem

THREE = 'endpoints = ["https://10.0.0.1:2379", "https://etcd-2.example:2379", "https://[2001:db8::3]:2379/"]'


def read(path: Path, text: str) -> EtcdSettings | None:
    file = path / "weft.toml"
    file.write_text(text)
    return settings.read(str(file)).store


def test_without_a_section_the_store_is_a_file(tmp_path: Path) -> None:
    assert read(tmp_path, "[agent]\nnode = 'n1'\n") is None


def test_all_keys(tmp_path: Path) -> None:
    text = f"""[store]\n{THREE}
ca = "/ca.pem"\ncert = "/c.pem"\nkey = "/k.pem"\nuser = "weft"\npassword_file = "/p"\nprefix = "/site-a"\n"""
    assert read(tmp_path, text) == EtcdSettings(
        ("10.0.0.1:2379", "etcd-2.example:2379", "[2001:db8::3]:2379"),
        "",
        tls=True,
        ca="/ca.pem",
        cert="/c.pem",
        key="/k.pem",
        user="weft",
        password_file="/p",
        prefix="/site-a",
        operations="/site-a/weft/operation/",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]", "must name the cluster"),
        ("[store]\nendpoints = []", "must name the cluster"),
        ('[store]\nendpoints = ["10.0.0.1:2379"]', "holds '10.0.0.1:2379'; write \"https://"),
        ('[store]\nendpoints = ["http://h:99999"]', "holds 'http://h:99999'"),
        ('[store]\nendpoints = ["http://h"]', "holds 'http://h'"),
        ('[store]\nendpoints = ["http://a:1", "https://b:1"]', "must be all https or all http"),
        (f"[store]\n{THREE}\ncert = '/c'", "store.key must be set together"),
        (f"[store]\n{THREE}\nuser = 'weft'", "store.password_file must be set together"),
        (f"[store]\n{THREE}\nprefix = 'site'", 'prefix "site" must begin with "/"'),
        (f"[store]\n{THREE}\nprefix = '/site/'", 'must begin with "/" and not end with it'),
        ("[store]\nendpoints = ['http://a:1']\nca = '/ca'", "store.ca"),
        ("[store]\nendpoint = ['http://a:1']", "unknown key store.endpoint; did you mean endpoints?"),
        ("[stores]\nendpoints = ['http://a:1']", "unknown section [stores]; did you mean store?"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigProblem) as caught:
        read(tmp_path, text + "\n")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '[dns]\nnode_ttl = "-5s"',
        '[dns]\nnetwork_ttl = "600000h"',
        '[dns]\nservice_ttl = {web = "-1ms"}',
        '[balancer]\ndrain = "-1s"',
    ],
)
def test_a_time_that_cannot_be_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigProblem, match=r"must be 0s to \d+s"):
        read(tmp_path, text)
