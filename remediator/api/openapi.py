"""Describes the table of routes as OpenAPI 3.1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from remediator.api.routing import ID, JSON_LINES, Call, ProblemView, Route
from remediator.model.access import Permission

PATH = "/api/v1/openapi.json"
_REF = "#/components/schemas/{model}"


def with_description(routes: Iterable[Route], version: str) -> tuple[Route, ...]:
    """Return ``routes`` and the one that describes them all, itself included."""

    async def openapi(_: Call) -> web.Response:
        return web.json_response(described)

    itself = Route(
        "GET",
        PATH,
        Permission.READ,
        openapi,
        "Describe this API as OpenAPI 3.1",
        response=dict[str, Any],
    )
    whole = (*routes, itself)
    described = describe(whole, version)
    return whole


def describe(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of ``routes``."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "remediator", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


class _Schemas:
    """Collects the named schemas of all models, each once for what comes in and what goes out."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def add(self, kind: Any, mode: JsonSchemaMode) -> dict[str, Any]:
        schema = TypeAdapter(kind).json_schema(mode=mode, ref_template=_REF)
        self.named |= schema.pop("$defs", {})
        name = getattr(kind, "__name__", "")
        if schema.get("type") == "object" and "properties" in schema and name:
            safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")
            self.named[safe] = schema
            return {"$ref": _REF.format(model=safe)}
        return schema


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    name = re.sub(r"\W+", "_", route.path).strip("_") or "root"
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas)],
        "responses": _responses(route, schemas),
        "security": [{"bearer": []}, {"basic": []}] if route.permission else [],
    }
    if route.permission:
        operation["description"] = f"Needs a role that may {route.permission}."
    if route.request is not None:
        schema = schemas.add(route.request, "validation")
        operation["requestBody"] = {"content": {route.takes: {"schema": schema}}}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string", "pattern": f"^{ID}$"}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]


def _query_parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    model = route.query.model_json_schema(ref_template=_REF)
    schemas.named |= model.get("$defs", {})
    required = model.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in model.get("properties", {}).items()
    ]


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    if route.lines is not None:
        content = {JSON_LINES: {"schema": schemas.add(route.lines, "serialization")}}
    elif route.events is not None:
        schema = schemas.add(route.events, "serialization")
        content = {"text/event-stream": {"schema": schema}}
    elif route.response is None:
        content = {"text/plain": {"schema": {"type": "string"}}}
    else:
        schema = schemas.add(route.response, "serialization")
        content = {"application/json": {"schema": schema}}
    good = {"description": HTTPStatus(route.status).phrase, "content": content}
    problem = schemas.add(ProblemView, "serialization")
    bad = {"content": {"application/problem+json": {"schema": problem}}}
    return {str(route.status): good} | {
        str(status): {"description": HTTPStatus(status).phrase} | bad for status in _errors(route)
    }


def _errors(route: Route) -> list[int]:
    framed = {401, 403, 503} if route.permission else {403}
    if route.method == "POST":
        framed.add(415)
    if route.query is not None:
        framed.add(422)
    if route.request is not None and route.decodes:
        framed |= {400, 408, 413, 422}
    return sorted({*framed, *route.errors, 500})
