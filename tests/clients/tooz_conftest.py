"""Beside tooz's tests: one agent of weft for all of them."""

import os

import pytest
import weft_agent

os.environ["TOOZ_TEST_URL"] = "consul://127.0.0.1:8500"


@pytest.fixture(scope="session", autouse=True)
def agent():
    with weft_agent.running():
        yield
