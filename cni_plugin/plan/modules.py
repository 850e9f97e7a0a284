"""The drivers and features: the files of ``drivers/`` and ``features/``, each imported when it is first
asked for.

A call imports the driver and the features that its configuration names; ``drivers`` and ``features``
tell the names alone. What needs all of them (``weft network create``, ``weft doctor``, the engine) asks
``declared`` for each.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from cni_plugin.plan.traits import Driver, Feature
from cni_plugin.wire.plugins import IPAM, OWN_NAME

if TYPE_CHECKING:  # what a refused call does not import
    from cni_plugin.plan.plan import PlanPart
    from cni_plugin.wire.request import Request
    from weft.section import Section


class DriverModule(Protocol):
    """A file of ``drivers/``. ``read`` notes problems in the keys and raises none."""

    DRIVER: Driver

    def read(self, request: Request, keys: Section) -> PlanPart | None: ...


class FeatureModule(Protocol):
    """A file of ``features/``. ``read`` answers None where the configuration does not ask for the
    feature.
    """

    FEATURE: Feature

    def read(self, request: Request, keys: Section) -> PlanPart | None: ...


@cache
def drivers() -> tuple[str, ...]:
    """The names of all drivers: those of their files, with dashes."""
    return tuple(name.replace("_", "-") for name in _files("drivers"))


@cache
def features() -> tuple[str, ...]:
    """The names of all features: those of their files."""
    return _files("features")


def _files(folder: str) -> tuple[str, ...]:
    package = import_module(f"cni_plugin.{folder}")
    names = (name for path in package.__path__ for name in os.listdir(path))
    return tuple(sorted(name.removesuffix(".py") for name in names if name.endswith(".py") and name[0] != "_"))


@cache
def driver(name: str) -> DriverModule:
    """The driver's module; raises ImportError for a name that is none."""
    return cast(DriverModule, import_module(f"cni_plugin.drivers.{name.replace('-', '_')}"))


@cache
def feature(name: str) -> FeatureModule:
    """The feature's module; raises ImportError for a name that is none."""
    return cast(FeatureModule, import_module(f"cni_plugin.features.{name}"))


def declared(name: str) -> Driver:
    """What a driver declares; of another plugin's name nothing is known, and so the defaults count."""
    return driver(name).DRIVER if name in drivers() else Driver()


def of_request(request: Request) -> Driver:
    """What the request's driver declares: that of the plugin's name, or of the key ``driver``."""
    return declared(request.config.keys.text("driver") if request.plugin == OWN_NAME else request.plugin)


def feature_of(plugin: str) -> str:
    """The feature that weft is when called by a plugin's name, "" for none."""
    if plugin in features():
        return plugin
    if plugin == OWN_NAME or plugin in drivers():
        return ""
    return next((name for name in features() if feature(name).FEATURE.plugin == plugin), "")


@cache
def plugins() -> tuple[str, ...]:
    """The reference plugins whose configurations weft takes and in whose shape it answers."""
    made = (name for name in drivers() if driver(name).DRIVER.plugin)
    chained = (feature(name).FEATURE.plugin for name in features())
    return (*made, *(name for name in chained if name), *IPAM)


def reads_arguments(plugin: str) -> bool:
    """Whether weft refuses CNI_ARGS that it cannot read, as the reference plugin of that name does."""
    if plugin == OWN_NAME or plugin in IPAM:
        return IPAM.get(plugin, True)
    if plugin in drivers():
        return driver(plugin).DRIVER.reads_arguments
    name = feature_of(plugin)
    return bool(name) and feature(name).FEATURE.reads_arguments
