"""Join tokens: each part is checked, each refusal says why, and only one join succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster import nodes, tokens
from cluster.tokens import Refused, Token
from store.embedded import open_embedded
from store.interface import Store
from weft.errors import ConfigProblem

FINGERPRINT = "ab" * 32


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    store = await open_embedded(folder / "store.db")
    try:
        yield store
    finally:
        await store.close()


def test_a_token_is_read_as_it_is_printed() -> None:
    token = Token(("10.0.0.1:2378", "[fd00::1]:2378"), FINGERPRINT, tokens.new_secret())
    assert tokens.parse(f" {token}\n") == token


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no join token"),
        ("SWMTKN-1-a-b", "is no join token"),
        (f"weft1/host:1/{FINGERPRINT}/{'a' * 43}", "address 'host:1' is invalid"),
        (f"weft1/10.0.0.1:0/{FINGERPRINT}/{'a' * 43}", "address '10.0.0.1:0' is invalid"),
        (f"weft1/10.0.0.1:1/{FINGERPRINT[1:]}/{'a' * 43}", "not 64 hexadecimal digits"),
        (f"weft1/10.0.0.1:1/{FINGERPRINT}/{'a' * 42}", "secret is incomplete"),
    ],
)
def test_an_invalid_token_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigProblem, match=said):
        tokens.parse(text)


async def test_the_store_has_no_secret(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        token = await tokens.issue(store, ["10.0.0.1:1"], FINGERPRINT, 60, 1000.0)
        await tokens.use(store, token.secret, "n2", "k", 1001.0)
        for entry in (await store.range("")).entries:
            assert token.secret.encode() not in entry.key.encode() + entry.value


async def test_one_join_which_may_be_repeated(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        token = await tokens.issue(store, ["10.0.0.1:1"], FINGERPRINT, 60, 1000.0)
        for now in (1001.0, 5000.0):  # also later: the join was interrupted
            await tokens.use(store, token.secret, "n2", "k", now)
        for name, key in (("n3", "k3"), ("n2", "k3"), ("n3", "k")):
            with pytest.raises(Refused, match="has been used already, by node n2"):
                await tokens.use(store, token.secret, name, key, 1002.0)


async def test_only_one_of_many_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        token = await tokens.issue(store, ["10.0.0.1:1"], FINGERPRINT, 60, 1000.0)
        done = await asyncio.gather(
            *(tokens.use(store, token.secret, f"n{one}", f"k{one}", 1001.0) for one in range(8)), return_exceptions=True
        )
        assert sum(one is None for one in done) == 1
        assert all(one is None or isinstance(one, Refused) for one in done)


async def test_wrong_and_expired(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        token = await tokens.issue(store, ["10.0.0.1:1"], FINGERPRINT, 60, 1000.0)
        with pytest.raises(Refused, match="knows no such join token"):
            await tokens.use(store, tokens.new_secret(), "n2", "k", 1001.0)
        with pytest.raises(Refused, match="malformed"):
            await tokens.use(store, "../config", "n2", "k", 1001.0)
        with pytest.raises(Refused, match="expired 40 s ago"):
            await tokens.use(store, token.secret, "n2", "k", 1100.0)
        [entry] = (await store.range(nodes.TOKENS)).entries
        await store.put(entry.key, b"{}")
        with pytest.raises(Refused, match="damaged"):
            await tokens.use(store, token.secret, "n2", "k", 1001.0)


@pytest.mark.parametrize("seconds", [0, -1, 8 * 86400])
async def test_the_time_of_a_token_has_limits(tmp_path: Path, seconds: float) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(ConfigProblem, match="a token of"):
            await tokens.issue(store, ["10.0.0.1:1"], FINGERPRINT, seconds, 1000.0)
