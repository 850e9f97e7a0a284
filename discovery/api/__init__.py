"""Consul's HTTP API, on the catalog, the registry and the store; ``server`` ties it together.

``*_endpoint`` hold the handlers, each declared by ``router.endpoint``; ``schemas`` and
``serialize`` are the JSON that they answer, ``blocking_query`` what waits for a change, ``openapi``
the description. It stands on ``consul``.

Nothing is imported here, so that reading the settings does not load aiohttp.
"""
