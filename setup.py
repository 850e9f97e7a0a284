"""Builds the wheel: with the compiled client where there is a C compiler (``CC=none``: without), else for any machine.

All else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cni_plugin.entry import build
from cni_plugin.entry.installation import COMPILED


def run(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Modules(build_py):
    """The Python modules, and the client beside them."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # what is no module any more would be packed again
        super().run()
        client = os.path.join(self.build_lib, "cni_plugin", "entry", COMPILED)
        if not build.compile_client(client, run):
            self.warn("no C compiler: every call will start Python; install one and build again to have it faster")


class Wheel(bdist_wheel):
    """A wheel for this kind of machine where it holds the client; it fits any Python 3 all the same."""

    def finalize_options(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compiled = build.compile_client(os.path.join(folder, "client"), run)
        self.distribution.has_ext_modules = lambda: compiled
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any" if self.root_is_pure else super().get_tag()[2])


setup(cmdclass={"build_py": Modules, "bdist_wheel": Wheel})
