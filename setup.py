"""Builds the wheel, with the C client if there is a compiler (``CC=none``: without it), else
platform-independent.

Everything else about the package is in pyproject.toml.
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
    """The Python modules, the units and examples of conf/, and the C client."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # it may contain modules that have been deleted
        super().run()
        entry = os.path.join(self.build_lib, "cni_plugin", "entry")
        shutil.copytree("conf", os.path.join(entry, "conf"), ignore=shutil.ignore_patterns("debian"))
        client = os.path.join(entry, COMPILED)
        if not build.compile_client(client, run):
            self.warn("no C compiler: every call will start Python; install one and rebuild for faster calls")


class Wheel(bdist_wheel):
    """A platform wheel if it contains the C client, for any Python 3."""

    def finalize_options(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            compiled = build.compile_client(os.path.join(folder, "client"), run)
        self.distribution.has_ext_modules = lambda: compiled
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any" if self.root_is_pure else super().get_tag()[2])


setup(cmdclass={"build_py": Modules, "bdist_wheel": Wheel})
