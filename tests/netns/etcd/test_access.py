"""TLS, client certificates, users and roles on a cluster of three members with etcd's own limits."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from netns.etcd.certificates import Certificates
from unit.store.helpers import brief, soon, take

from lab.etcd import Cluster
from lab.proxy import Proxy
from store import Compare, Delete, Invalid, Put, Unavailable
from store.etcd.client import open_etcd
from store.etcd.record import WrongCluster
from store.etcd.settings import EtcdSettings

TOKEN_SECONDS = 1


@dataclass(frozen=True)
class Secured:
    cluster: Cluster
    certificates: Certificates
    by_certificate: EtcdSettings
    by_password: EtcdSettings


@pytest.fixture(scope="module")
def secured(isolation: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """User weft of a certificate, user token with a password: both may access /weft/ only."""
    folder = tmp_path_factory.mktemp("certificates")
    made = Certificates(folder)
    addresses = [f"10.77.2.{number}" for number in (1, 2, 3)]
    server, server_key = made.issue("server", "/O=etcd", addresses)
    weft, weft_key = made.issue("weft", "/CN=weft")
    nobody, nobody_key = made.issue("nobody", "/O=nobody")
    root, root_key = made.issue("root", "/CN=root")
    tls = {"cert-file": server, "key-file": server_key, "trusted-ca-file": made.ca, "client-cert-auth": "true"}
    login = ("--cacert", made.ca, "--cert", root, "--key", root_key)
    cluster = Cluster(2, tls=tls, login=login, options=("--auth-token-ttl", str(TOKEN_SECONDS)))
    try:
        for command in (
            "user add root:pw",
            "role add weft",
            "role grant-permission weft --prefix=true readwrite /weft/",
            "user add weft:unused",
            "user grant-role weft weft",
            "user add token:secret",
            "user grant-role token weft",
            "user grant-role root root",
            "auth enable",
        ):
            cluster.ctl(*command.split(), check=command != "user grant-role root root")
        (folder / "password").write_text("secret\n")
        common = EtcdSettings(cluster.endpoints, str(folder / "state"), tls=True, ca=made.ca, call_seconds=20)
        yield Secured(
            cluster,
            made,
            replace(common, cert=weft, key=weft_key),
            replace(common, cert=nobody, key=nobody_key, user="token", password_file=str(folder / "password")),
        )
    finally:
        cluster.close()


async def test_a_certificate_names_the_user(secured: Secured) -> None:
    store = await open_etcd(secured.by_certificate)
    revision = await store.put("/weft/v2/a", b"1")
    assert (await store.range("/weft/v2/")).revision >= revision
    assert [brief(one) for one in (await take(store.watch("/weft/v2/", revision - 1), 1))[0].events] == [
        ("/weft/v2/a", b"1", None)
    ]
    for call in (store.put("/other", b""), store.get("/other"), store.range(""), store.delete("/other")):
        with pytest.raises(Unavailable, match=r"the user that store.cert names .* no access"):
            await call
    with pytest.raises(Unavailable, match="no access"):
        await anext(store.watch("/other", 0))
    await store.close()


async def test_an_expired_token_is_replaced(secured: Secured) -> None:
    store = await open_etcd(secured.by_password)
    await store.put("/weft/v2/b", b"1")
    token = store._connection._token
    await asyncio.sleep(TOKEN_SECONDS + 1.5)
    revision = await store.put("/weft/v2/b", b"2")
    assert store._connection._token not in ("", token)
    await asyncio.sleep(TOKEN_SECONDS + 1.5)
    watch = store.watch("/weft/v2/b", revision - 1)
    assert (await take(watch, 1))[0].revision == revision
    with pytest.raises(Unavailable, match="etcd permits user token no access"):
        await store.put("/other", b"")
    await store.close()


async def test_restarted_members_have_forgotten_tokens(secured: Secured) -> None:
    store = await open_etcd(secured.by_password)
    revision = await store.put("/weft/v2/c", b"1")
    watch = store.watch("/weft/", revision)
    waiting = asyncio.ensure_future(anext(watch))
    for member in range(3):
        await asyncio.to_thread(secured.cluster.restart, member)
    await asyncio.to_thread(secured.cluster.wait)
    after = await store.put("/weft/v2/c", b"2")
    assert (await soon(waiting)).revision == after
    await store.close()


async def test_a_wrong_password(secured: Secured, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    store = await open_etcd(replace(secured.by_password, password_file=str(tmp_path / "password")))
    with pytest.raises(
        Unavailable, match="etcd refuses user token: authentication failed, invalid user ID or password"
    ):
        await store.get("/weft/v2/a")
    await store.close()
    store = await open_etcd(replace(secured.by_password, password_file=str(tmp_path / "missing")))
    with pytest.raises(Unavailable, match=r"cannot read store.password_file .*missing"):
        await store.get("/weft/v2/a")
    await store.close()


async def test_no_user_at_all(secured: Secured) -> None:
    store = await open_etcd(replace(secured.by_password, user="", password_file=""))
    with pytest.raises(Unavailable, match=r"if any, no access .* set store.user and"):
        await store.put("/weft/v2/a", b"")
    await store.close()


async def test_tls_failures_name_endpoint_and_cause(secured: Secured, tmp_path: Path) -> None:
    strange = Certificates(tmp_path, "strange")
    foreign, foreign_key = strange.issue("weft", "/CN=weft")
    good = replace(secured.by_certificate, call_seconds=1)
    for settings, said in (
        (replace(good, ca=strange.ca), "TLS: its certificate is refused: unable to get local issuer certificate"),
        (replace(good, cert=foreign, key=foreign_key), "TLS: it refuses this host's certificate"),
        (replace(good, cert="", key=""), "TLS: it refuses this host's certificate"),
    ):
        store = await open_etcd(settings)
        wanted = {f"{endpoint}: {said}" for endpoint in settings.endpoints}
        for _ in range(10):  # on a busy machine a handshake may take longer than the time to look for the cause
            with pytest.raises(Unavailable) as caught:
                await store.get("/weft/v2/a")
            if all(one in caught.value.message for one in wanted):
                break
        assert {one for one in wanted if one not in caught.value.message} == set()
        await store.close()


async def test_certificates_that_are_replaced_are_read_again(secured: Secured, tmp_path: Path) -> None:
    """Those of an agent that runs may have ended meanwhile."""
    strange = Certificates(tmp_path, "strange")
    foreign, foreign_key = strange.issue("weft", "/CN=weft")
    good = secured.by_certificate
    store = await open_etcd(replace(good, ca=strange.ca, cert=foreign, key=foreign_key, call_seconds=2))
    for path, content in ((strange.ca, good.ca), (foreign, good.cert), (foreign_key, good.key)):
        with pytest.raises(Unavailable):
            await store.get("/weft/v2/a")
        shutil.copyfile(content, path)
    store.follow((*good.endpoints, "10.77.2.9:2379"))
    revision = await store.put("/weft/v2/a", b"1")
    assert (await take(store.watch("/weft/v2/a", revision - 1), 1))[0].revision == revision
    await store.close()


async def test_a_certificate_for_another_name(secured: Secured) -> None:
    async with Proxy(secured.cluster.endpoints[0]) as proxy:
        store = await open_etcd(replace(secured.by_certificate, endpoints=(proxy.address,), call_seconds=1))
        with pytest.raises(Unavailable, match=f"{proxy.address}: TLS: .*127.0.0.1"):
            await store.get("/weft/v2/a")
        await store.close()


async def test_roles_hold_in_both_branches(secured: Secured) -> None:
    store = await open_etcd(secured.by_certificate)
    mine, foreign = Put("/weft/v2/branch", b""), Put("/other", b"")
    for holds, success, failure in (
        (True, [foreign], []),
        (True, [foreign], [mine]),
        (False, [mine], [foreign]),
        (True, [Delete("/other")], []),
        (False, [], [Delete("/other", prefix=True)]),
    ):
        with pytest.raises(Unavailable, match="no access"):
            await store.transact([Compare("/weft/v2/none", "version", 0 if holds else 1)], success, failure)
    await store.close()


async def test_unusable_files_are_named(secured: Secured, tmp_path: Path) -> None:
    good = secured.by_certificate
    (tmp_path / "empty").write_text("")
    for settings, said in (
        (replace(good, ca="/missing"), "store.ca /missing: No such file or directory"),
        (replace(good, ca=str(tmp_path / "empty")), f"store.ca {tmp_path}/empty: "),
        (replace(good, key=secured.by_password.key), "key values mismatch"),
    ):
        with pytest.raises(Invalid) as caught:
            await open_etcd(settings)
        assert said in str(caught.value)


async def test_operations_beyond_the_servers_limit(secured: Secured) -> None:
    store = await open_etcd(secured.by_certificate)
    await store.transact([], [Put(f"/weft/v2/{number}", b"") for number in range(127)])
    with pytest.raises(Invalid, match=r"transaction of 128 operations: more than --max-txn-ops"):
        await store.transact([], [Put(f"/weft/v2/more{number}", b"") for number in range(128)])
    assert not (await store.range("/weft/v2/more")).entries
    await store.close()


async def test_another_cluster_is_refused(secured: Secured, cluster: Cluster, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    store = await open_etcd(EtcdSettings(cluster.endpoints, state, prefix="/x/", operations="/y/", call_seconds=20))
    await store.put("k", b"")
    await store.close()
    other = replace(secured.by_certificate, state=state, operations="/weft/y/")
    store = await open_etcd(other)
    with pytest.raises(WrongCluster, match=rf"this host uses cluster [0-9a-f]+, .* rm -r {state}"):
        await store.put("/weft/v2/z", b"")
    with pytest.raises(WrongCluster):
        await anext(store.watch("/weft/", 0))
    await store.close()
    reader = await open_etcd(secured.by_certificate)
    assert await reader.get("/weft/v2/z") is None
    await reader.close()
