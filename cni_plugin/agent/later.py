"""What the agent imports when it already serves names: a start after a kill does not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.agent.api_front import ApiFront
    from cni_plugin.agent.following import Following
    from cni_plugin.agent.overlay_host import OverlayHost
    from cni_plugin.agent.overlays import Overlays
    from cni_plugin.agent.probe_front import Probers
    from cni_plugin.agent.prober import Prober
    from cni_plugin.agent.shared_names import SharedNames
    from discovery.api.router import Route
    from discovery.api.server import ApiServer
    from discovery.health.checker import Checker
    from discovery.page.overview import Overview
    from discovery.page.tracing import Run
    from store import Store


def following() -> type[Following]:
    """Import what restores rules and links: the service of CNI calls."""
    from cni_plugin.agent.following import Following

    return Following


def overlay() -> tuple[
    type[Overlays],
    type[OverlayHost],
    type[SharedNames],
    type[Prober],
    Callable[[Overlays, Store, Prober], tuple[Route, ...]],
]:
    """Import what overlay networks need: the service of CNI calls."""
    from cni_plugin.agent.overlay_endpoint import routes
    from cni_plugin.agent.overlay_host import OverlayHost
    from cni_plugin.agent.overlays import Overlays
    from cni_plugin.agent.prober import Prober
    from cni_plugin.agent.shared_names import SharedNames

    return Overlays, OverlayHost, SharedNames, Prober, routes


def http() -> tuple[
    type[ApiServer], type[ApiFront], type[Checker], type[Probers], Callable[[Overview, Run], tuple[Route, ...]]
]:
    """Import the API server and its front, the checker and its prober, and the page's routes."""
    from cni_plugin.agent.api_front import ApiFront
    from cni_plugin.agent.probe_front import Probers
    from discovery.api.server import ApiServer
    from discovery.health.checker import Checker
    from discovery.page.pages import routes

    return ApiServer, ApiFront, Checker, Probers, routes
