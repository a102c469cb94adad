"""The OpenAPI 3.1 document of the HTTP API, made from the structs that decode it."""

from __future__ import annotations

from typing import Any

import msgspec

from broker import __version__
from broker.api.methods import METHODS


def document() -> dict[str, Any]:
    kinds = [method.request for method in METHODS.values()]
    references, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    requests = dict(zip(METHODS, references, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "broker",
            "version": __version__,
            "summary": "Publish to topics, and manage the connections and subscriptions of users, on all nodes.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}, {"authorization": []}],
        "paths": {
            **{f"/api/{name}": _path(name, requests[name]) for name in METHODS},
            "/api": {"post": _any_operation(requests)},
        },
        "components": {
            "schemas": {**components, **_SCHEMAS},
            "responses": _RESPONSES,
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "authorization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`apikey` and the key, separated by a space",
                },
            },
        },
    }


def _path(name: str, reference: dict[str, Any]) -> dict[str, Any]:
    posted = _operation(name, reference)
    if not METHODS[name].reads:
        return {"post": posted}
    asked = {key: value for key, value in posted.items() if key != "requestBody"}
    fields = msgspec.json.schema(METHODS[name].request)["$defs"][METHODS[name].request.__name__]["properties"]
    queries = [{"name": field, "in": "query", "required": False, "schema": schema} for field, schema in fields.items()]
    return {
        "post": posted,
        "get": {**asked, "operationId": f"get_{name}", "parameters": [*posted["parameters"], *queries]},
    }


def _operation(name: str, reference: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": (METHODS[name].request.__doc__ or name).partition("\n")[0],
        "parameters": [_ERROR_MODE],
        "requestBody": {"content": {"application/json": {"schema": reference}}, "required": True},
        "responses": _responses("Batch" if name == "batch" else "Answer"),
    }


def _any_operation(requests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    one_of = [
        {"type": "object", "properties": {name: reference}, "required": [name], "additionalProperties": False}
        for name, reference in requests.items()
    ]
    return {
        "operationId": "call",
        "summary": "Call the method that is the only name of the body.",
        "parameters": [_ERROR_MODE],
        "requestBody": {"content": {"application/json": {"schema": {"oneOf": one_of}}}, "required": True},
        "responses": _responses("Answer"),
    }


def _responses(answer: str) -> dict[str, Any]:
    return {
        "200": {
            "description": "The result; or an error, unless `X-Centrifugo-Error-Mode: transport` asks for statuses.",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}Response"}}},
        },
        "429": {"$ref": "#/components/responses/TooMany"},
        "503": {"$ref": "#/components/responses/Unavailable"},
        "default": {"$ref": "#/components/responses/Problem"},
    }


_ERROR_MODE = {
    "name": "X-Centrifugo-Error-Mode",
    "in": "header",
    "required": False,
    "description": "`transport`: errors come with an HTTP status, and without the `error` around them",
    "schema": {"type": "string", "enum": ["transport"]},
}

_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
        "required": ["code", "message"],
    },
    "AnswerResponse": {
        "type": "object",
        "properties": {"result": {"type": "object"}, "error": {"$ref": "#/components/schemas/Error"}},
    },
    "BatchResponse": {
        "type": "object",
        "properties": {
            "replies": {
                "type": "array",
                "items": {"type": "object"},
                "description": "In the order of the commands, each with its method's name or `error`.",
            }
        },
    },
    "ProblemDetails": {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
    },
}

_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}

_RESPONSES: dict[str, Any] = {
    "Problem": {
        "description": "The request itself is refused: 400, 401, 403, 404, 405, 408 or 413.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    },
    "TooMany": {
        "description": "A rate is exceeded; of several publications, by all of them.",
        "headers": _RETRY_AFTER,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AnswerResponse"}}},
    },
    "Unavailable": {
        "description": "NATS can't be reached now, or too much waits for it.",
        "headers": _RETRY_AFTER,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AnswerResponse"}}},
    },
}
