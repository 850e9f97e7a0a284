"""JSON schemas: the keywords that the API's descriptions and filters use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Required, TypedDict


class Schema(TypedDict, total=False):
    """The JSON schema of a value; ``type`` is a list where null is allowed.

    Source: https://json-schema.org/draft/2020-12/json-schema-validation.
    """

    title: str
    description: str
    type: Required[str | list[str]]
    items: Schema
    properties: Mapping[str, Schema]
    additionalProperties: Schema | bool
    required: list[str]
