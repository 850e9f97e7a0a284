"""Runs each coroutine test in its own event loop, and provides the stores under test."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.store.engines import ENGINES, Engine
from unit.store.helpers import memory

_PATIENCE = 120.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    asyncio.run(asyncio.wait_for(test(**arguments), _PATIENCE))
    return True


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An empty store of each engine; on tmpfs, where fsync is fast."""
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        yield ENGINES[request.param](Path(folder), monkeypatch)
