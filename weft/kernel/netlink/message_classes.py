"""pyroute2's message classes, imported in 11 ms: 25 ms with the real standard modules, 176 ms by
its ``__init__``.

CPU time of a cold process, isolated as the executables are (-IS), the least of ten: Python 3.11,
pyroute2 0.9. The ``__init__`` starts event loops and imports every protocol; of all that,
``decoder`` and ``encoder`` need the attribute tables of three classes. While these are imported,
stand-ins take the place of the package, of its configuration and of what the tables import but
hardly use: logging, socket, traceback and pkgutil. They are removed again, so that a real ``import
pyroute2`` later on works. An engine pays it once, a call without an engine each time.
"""

from __future__ import annotations

import _socket
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from weft.kernel.netlink.constants import AF_BRIDGE


def message_classes() -> tuple[Any, Any, Any]:
    """``ifinfmsg``, ``ifaddrmsg`` and ``rtmsg``.

    Raises ModuleNotFoundError where pyroute2 is not installed.
    """
    stand_ins = [] if "pyroute2" in sys.modules else _stand_ins()
    try:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return ifinfmsg, ifaddrmsg, rtmsg


def _stand_ins() -> list[str]:
    # pyroute2.config too: it imports multiprocessing and platform (8 ms) for settings of sockets.
    found = PathFinder.find_spec("pyroute2")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("pyroute2 is not installed", name="pyroute2")
    package, config = ModuleType("pyroute2"), ModuleType("pyroute2.config")
    package.__path__ = list(found.submodule_search_locations)
    package.__dict__["config"] = config
    config.__dict__.update(AF_BRIDGE=AF_BRIDGE, data_plugins_pkgs=(), data_plugins_path=())
    unused = {"logging": _logging(), "socket": _sockets(), "traceback": ModuleType("traceback")}
    unused["pkgutil"] = ModuleType("pkgutil")
    unused = {name: module for name, module in unused.items() if name not in sys.modules}
    sys.modules.update({"pyroute2": package, "pyroute2.config": config, **unused})
    return ["pyroute2", "pyroute2.config", *unused]


def _logging() -> ModuleType:
    """What the tables use of logging, which takes 4 ms to import: they never log."""
    module = ModuleType("logging")
    silent = type("Silent", (), {"__getattr__": lambda self, name: lambda *_: None})()
    module.__dict__.update(getLogger=lambda name: silent, error=silent.error, warning=silent.warning)
    return module


def _sockets() -> ModuleType:
    """The module ``socket`` without its enumerations and its wrappers, which take 3 ms."""
    module = ModuleType("socket")
    module.__dict__.update({**vars(_socket), "__name__": "socket", "AddressFamily": int})
    return module
