"""Tests that are coroutines, each in an event loop of its own; and the stores that they are about."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest
from unit.store.engines import ENGINES, Engine

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
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An empty store of each kind."""
    return ENGINES[request.param](tmp_path, monkeypatch)
