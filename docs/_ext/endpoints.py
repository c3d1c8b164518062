"""The `endpoints` directive: the server's own OpenAPI document as text."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from generated import Generated, code, prose, table
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

PROBLEM = "application/problem+json"


@cache
def document() -> dict[str, Any]:
    """What a server with keys and without tasks answers to GET /openapi.json."""
    from attentune.serving.keys import Keys
    from attentune.serving.launch import application

    with TemporaryDirectory() as empty:
        app = application(Path(empty), keys=Keys([]))
        found = app.openapi()
        app.state.service.engine.close()
    return found


def name_of(schema: dict[str, Any]) -> str:
    """A schema as one reads it; those that have a section of their own are linked."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(name_of(one) for one in schema[word])
    if "const" in schema or "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {name_of(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "bytes"
    return str(kind)


def content_of(content: dict[str, Any]) -> str:
    """Media types and what stands in them."""
    return "; ".join(f"{code(kind)}: {name_of(body.get('schema', {}))}" for kind, body in content.items())


def operation(path: str, verb: str, found: dict[str, Any]) -> str:
    """A section for one operation."""
    parts = [f"### {verb.upper()} {path}", found.get("description", found.get("summary", ""))]
    if parameters := [p for p in found.get("parameters", []) if p["in"] != "path"]:
        rows = [
            [
                code(p["name"]),
                p["in"],
                name_of(p["schema"]),
                prose(p.get("description", p["schema"].get("description", ""))),
            ]
            for p in parameters
        ]
        parts.append(table(["parameter", "in", "type", "what it is"], rows))
    if body := found.get("requestBody"):
        parts.append(f"Body: {content_of(body['content'])}")
    problems = [status for status, answer in found["responses"].items() if PROBLEM in answer.get("content", {})]
    for status, answer in found["responses"].items():
        if status not in problems:
            parts.append(f"{status}: {content_of(answer.get('content', {})) or 'nothing'}")
    if problems:
        parts.append(f"{', '.join(sorted(problems))}: {code(PROBLEM)}, [ProblemDocument](#problemdocument)")
    return "\n\n".join(parts)


def schema_of(name: str, found: dict[str, Any]) -> str:
    """A section for one schema."""
    needed = found.get("required", [])
    rows = [
        [code(key), name_of(one), "yes" if key in needed else "", prose(one.get("description", ""))]
        for key, one in found.get("properties", {}).items()
    ]
    parts = [f"### {name}", found.get("description", ""), table(["key", "type", "required", "what it is"], rows)]
    parts += [f"```json\n{json.dumps(example, indent=2)}\n```" for example in found.get("examples", [])]
    return "\n\n".join(parts)


def reference(found: dict[str, Any]) -> Iterator[str]:
    """All operations, then all schemas."""
    yield "## Operations"
    for path, verbs in found["paths"].items():
        for verb, one in verbs.items():
            yield operation(path, verb, one)
    yield "## Bodies"
    for name, one in sorted(found["components"]["schemas"].items()):
        yield schema_of(name, one)


class Endpoints(Generated):
    """`{endpoints}`."""

    def markdown(self) -> str:
        """The whole document."""
        return "\n\n".join(reference(document()))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("endpoints", Endpoints)
    return {"parallel_read_safe": True}
