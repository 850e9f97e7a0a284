"""The limits of an endpoint, and how often it exceeded them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from cni_plugin.dataplane import limits
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.ops import Elements
from cni_plugin.service.context import ServiceContext
from weft.errors import KernelRefused

_KEYS = {name: key for key, names in limits.KEYS.items() for name in names}
_SAMPLES = (limits.CONNECTIONS_SAMPLED4, limits.CONNECTIONS_SAMPLED6)


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit of a container, by its key in ``limits``: packets a second and at once, or connections.

    ``exceeded`` are the packets dropped for it, None where the element is missing.
    """

    key: str
    address: str
    limit: tuple[int, ...]
    exceeded: int | None

    def __str__(self) -> str:
        amount = f"{self.limit[0]}/s, {self.limit[1]} at once" if len(self.limit) == 2 else f"{self.limit[0]}"
        seen = "not in force" if self.exceeded is None else f"{self.exceeded} packets dropped"
        return f"{self.key} {amount} from {self.address}: {seen}"


def limits_of(context: ServiceContext, one: Endpoint) -> tuple[LimitUse, ...]:
    """The limits of the container on that network; each of their sets is listed once."""
    given = [each for operation in one.operations if isinstance(operation, Elements) for each in operation.elements]
    mine = [each for each in given if each.limit]
    counted: dict[tuple[str, tuple[object, ...]], int] = {}
    for name in dict.fromkeys(each.collection for each in mine):
        with suppress(KernelRefused):
            counted |= {(name, each.key): packets for each, packets in context.kernel.rules.exceeded(name)}
    return tuple(
        LimitUse(
            _KEYS[each.collection],
            str(each.key[1]),
            (each.limit[0] * limits.SAMPLED,) if each.collection in _SAMPLES else each.limit,
            counted.get((each.collection, each.key)),
        )
        for each in mine
    )
