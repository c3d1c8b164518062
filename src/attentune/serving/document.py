"""What the OpenAPI document says besides what FastAPI reads off the routes: problems, bodies that we read ourselves."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from attentune.serving.forms import LocalFolder
from attentune.serving.problems import Problem, ProblemDocument
from attentune.serving.tensors import InferRequest

COMPONENTS = "#/components/schemas/{model}"
EXTRA: tuple[type[BaseModel], ...] = (ProblemDocument, LocalFolder, InferRequest)

ASKED = (400, 401, 403, 408, 413, 503)
"""What any request may be answered that has to have a key and a body."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: these statuses come with a problem document."""
    content = {Problem.media_type: {"schema": reference(ProblemDocument)}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def body(by_type: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself."""
    content = {kind: {"schema": schema} for kind, schema in by_type.items()}
    return {"requestBody": {"required": True, "content": content}}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """The schema of a model of EXTRA."""
    return {"$ref": COMPONENTS.format(model=model.__name__)}


def install(app: FastAPI) -> None:
    """Add the schemas of EXTRA to the app's document, and take out what FastAPI would answer to a bad request."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = plain()
            for operation in (operation for path in found["paths"].values() for operation in path.values()):
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
            schemas = found["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            _, added = models_json_schema([(model, "validation") for model in EXTRA], ref_template=COMPONENTS)
            schemas.update(added["$defs"])
        return plain()

    app.openapi = openapi
