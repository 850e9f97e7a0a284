"""Tests of the cluster's package may be coroutines."""

from __future__ import annotations

from unit.store.conftest import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
