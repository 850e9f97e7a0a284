"""Service instances from the agent's HTTP API, as commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from discovery.consul.client import ApiClient, ApiError, api_path, list_of_objects
from discovery.reach import HOST, PUBLISHED_TAG, SCOPE_META
from discovery.structs import NODE_MAINT, SERVICE_MAINT_PREFIX

_WORST = ("maintenance", "critical", "warning", "passing")


@dataclass(frozen=True, slots=True)
class ServiceInstance:
    """An instance. ``status`` is the worst of its checks, or "maintenance"; ``why`` is that check's
    output. ``checked``: it has a check of its own; without one it is passing as in Consul. ``reach`` is where other
    hosts reach it: "everywhere", its published place, or "its host".
    """

    service: str
    id: str
    node: str
    address: str
    port: int
    status: str
    why: str = ""
    tags: tuple[str, ...] = ()
    checked: bool = field(default=True, compare=False)
    reach: str = ""

    @property
    def health(self) -> str:
        """The status for people: "no check" instead of passing where nothing checks the instance."""
        return self.status if self.checked or self.status != "passing" else "no check"

    @property
    def place(self) -> str:
        """``ADDRESS:PORT``."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}" if self.port else self.address


def parse_instances(answer: object) -> Iterator[ServiceInstance]:
    """The instances in a response of ``/v1/health/service/NAME``."""
    for one in list_of_objects(answer):
        node, service = _object(one.get("Node")), _object(one.get("Service"))
        checks = list_of_objects(one.get("Checks"))
        status, why = worst(checks)
        port, tags = service.get("Port"), service.get("Tags")
        yield ServiceInstance(
            service=str(service.get("Service", "")),
            id=str(service.get("ID", "")),
            node=str(node.get("Node", "")),
            address=str(service.get("Address") or node.get("Address", "")),
            port=port if isinstance(port, int) else 0,
            status=status,
            why=why,
            tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
            reach=_reach(node, service),
            checked=any(check.get("ServiceID") for check in checks),
        )


def _reach(node: Mapping[str, object], service: Mapping[str, object]) -> str:
    if _object(service.get("Meta")).get(SCOPE_META) != HOST:
        return "everywhere"
    published = _object(_object(service.get("TaggedAddresses")).get(PUBLISHED_TAG))
    port = published.get("Port")
    return f"{published.get('Address') or node.get('Address')}:{port}" if port else "its host"


def worst(checks: Iterable[Mapping[str, object]]) -> tuple[str, str]:
    """The worst status of several checks, and the first line of that check's output."""
    found, why = "passing", ""
    for check in checks:
        name, status = str(check.get("CheckID", "")), str(check.get("Status", ""))
        if name == NODE_MAINT or name.startswith(SERVICE_MAINT_PREFIX):
            status = "maintenance"
        if status in _WORST and _WORST.index(status) < _WORST.index(found):
            text = str(check.get("Output") or check.get("Notes") or "").strip()
            found, why = status, text.partition("\n")[0]
    return found, why


def all_instances(client: ApiClient) -> list[ServiceInstance]:
    """All instances of all services, by service, node and id. Raises Unreachable and Refused."""
    names = _object(client.get(api_path("catalog", "services")).json)
    return [
        one for name in sorted(names) for one in parse_instances(client.get(api_path("health", "service", name)).json)
    ]


def virtual_addresses(client: ApiClient) -> dict[str, tuple[str, ...]]:
    """The virtual addresses of each service; none from an agent of Consul. Raises Unreachable."""
    try:
        found = _object(client.get(api_path("weft", "virtual-addresses")).json)
    except ApiError:
        return {}
    return {name: tuple(map(str, each)) for name, each in found.items() if isinstance(each, list)}


def _object(found: object) -> Mapping[str, object]:
    return found if isinstance(found, dict) else {}
