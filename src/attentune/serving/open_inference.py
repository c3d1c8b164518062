"""The Open Inference Protocol v2 (KServe, Triton), with its binary tensor extension, so that existing clients work.

A task is a model. Inputs: `text` BYTES [N] (for pairs also `text_pair` BYTES [N]), or `row` BYTES [N], each a JSON
object with the columns of training. Outputs: `answer` BYTES [N], the whole answer as JSON, and by kind of task `label`
BYTES [N], `score` FP32 [N], `probabilities` FP32 [N,C], `value` FP32 [N].
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from pydantic import ValidationError

from attentune.card import TaskCard
from attentune.serving import bodies, document
from attentune.serving.document import ASKED, reference
from attentune.serving.guard import KeyOf
from attentune.serving.keys import Key
from attentune.serving.problems import Refused, headers_of
from attentune.serving.service import Draw, Service, Wanted, unless_gone
from attentune.serving.tensors import (
    InferRequest,
    InferResponse,
    Live,
    ModelInfo,
    ModelReady,
    OutputTensor,
    Ready,
    ServerInfo,
    TensorInfo,
)

HEADER, BINARY = "Inference-Header-Content-Length", "application/octet-stream"
Datatype = Literal["BYTES", "FP32"]


@dataclass(frozen=True)
class Output:
    """One output tensor."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: list[Any]

    def binary(self) -> bytes:
        """As the extension has it: FP32 little-endian, BYTES each with its length before it."""
        if self.datatype == "FP32":
            return np.asarray(self.values, dtype="<f4").tobytes()
        return b"".join(struct.pack("<I", len(v)) + v for v in (str(value).encode() for value in self.values))


def add(app: FastAPI, service: Service, predict_key: KeyOf) -> None:
    """Add the routes under /v2."""

    @app.get("/v2", responses=document.problems(503))
    async def server() -> ServerInfo:  # pyright: ignore[reportUnusedFunction]
        """What this server is."""
        from importlib.metadata import version

        return ServerInfo(name="attentune", version=version("attentune"), extensions=["binary_tensor_data"])

    @app.get("/v2/health/live")
    async def live() -> Live:  # pyright: ignore[reportUnusedFunction]
        """The process runs."""
        return Live(live=True)

    @app.get("/v2/health/ready", responses=document.problems(503))
    async def ready() -> Ready:  # pyright: ignore[reportUnusedFunction]
        """It takes requests."""
        if not service.ready:
            raise Refused(503, "not ready")
        return Ready(ready=True)

    @app.get("/v2/models/{task}", responses=document.problems(*ASKED, 404))
    @app.get("/v2/models/{task}/versions/{version}", include_in_schema=False)
    async def model(task: str, key: Annotated[Key, Depends(predict_key)], version: str | None = None) -> ModelInfo:  # pyright: ignore[reportUnusedFunction]
        """The tensors of a task."""
        served = service.visible(key, task)
        _check_version(version, served.active.id)
        return metadata(task, served.active.entry.card, [served.active.id])

    @app.get("/v2/models/{task}/ready", responses=document.problems(*ASKED, 404))
    @app.get("/v2/models/{task}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(
        task: str, key: Annotated[Key, Depends(predict_key)], version: str | None = None
    ) -> ModelReady:  # pyright: ignore[reportUnusedFunction]
        """The task is served."""
        _check_version(version, service.visible(key, task).active.id)
        return ModelReady(name=task, ready=True)

    @app.post(
        "/v2/models/{task}/infer",
        openapi_extra=document.body({"application/json": reference(InferRequest)}),
        response_model=InferResponse,
        responses={
            200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}},
            **document.problems(*ASKED, 404, 422),
        },
    )
    @app.post("/v2/models/{task}/versions/{version}/infer", include_in_schema=False)
    async def infer(
        task: str, request: Request, key: Annotated[Key, Depends(predict_key)], version: str | None = None
    ) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer N inputs by one task."""
        _check_version(version, service.visible(key, task).active.id)
        body, blobs = _parts(await request.body(), request.headers.get(HEADER))
        inputs = _inputs(body, blobs)
        # One version for the whole request: the shapes of its tensors are those of that version's task.
        draw = Draw(active=bool(version))
        found = await unless_gone(request, service.all([Wanted(task, value, draw=draw) for value in inputs], key))
        failed = next((line["error"] for line in found if "error" in line), None)
        if failed is not None:
            raise Refused(failed["status"], failed["detail"], headers_of(failed["status"]))
        answering = draw.route(service.registry, task).version
        _check_version(version, answering.id)  # Once more: another may have taken its place while the body came.
        outputs = _outputs([line["answer"] for line in found], answering.entry.card)
        return _response(task, answering.id, body, outputs)


def metadata(task: str, card: TaskCard, versions: Sequence[str]) -> ModelInfo:
    """The metadata document of a task."""
    kinds = _kinds(card)
    names = ["text", "text_pair"] if card.task.pair else ["text"]
    return ModelInfo(
        name=task,
        versions=list(versions),
        platform="attentune",
        inputs=[TensorInfo(name=name, datatype="BYTES", shape=[-1]) for name in names],
        outputs=[TensorInfo(name=name, datatype=kind, shape=[-1, *shape]) for name, (kind, shape) in kinds.items()],
    )


def _kinds(card: TaskCard) -> dict[str, tuple[Datatype, tuple[int, ...]]]:
    """Name -> (datatype, shape of one row) of a task's outputs."""
    found: dict[str, tuple[Datatype, tuple[int, ...]]] = {"answer": ("BYTES", ())}
    if card.task.kind == "classification":
        found |= {"label": ("BYTES", ()), "score": ("FP32", ())}
    if card.task.kind in ("classification", "multilabel"):
        found["probabilities"] = ("FP32", (len(card.task.labels),))
    if card.task.kind == "regression":
        found["value"] = ("FP32", ())
    return found


def _outputs(answers: Sequence[dict[str, Any]], card: TaskCard) -> list[Output]:
    outputs: list[Output] = []
    for name, (kind, shape) in _kinds(card).items():
        if name == "answer":
            values: list[Any] = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        elif name == "probabilities":
            values = [p for answer in answers for p in answer["probabilities"].values()]
        else:
            values = [answer[name] for answer in answers]
        outputs.append(Output(name, kind, (len(answers), *shape), values))
    return outputs


def _check_version(asked: str | None, active: str) -> None:
    if asked not in (None, "", active):
        raise Refused(404, f"version {asked!r} does not answer; {active} does")


def _parts(content: bytes, header: str | None) -> tuple[InferRequest, bytes]:
    """The JSON part of a body and the binary tensors behind it."""
    if header is not None and not (header.isdecimal() and len(header) < 19):
        raise Refused(400, "Inference-Header-Content-Length is a number")
    cut = len(content) if header is None else int(header)
    if cut > len(content):
        raise Refused(400, f"Inference-Header-Content-Length is {cut}, and the body has {len(content)} bytes")
    try:
        return InferRequest.model_validate(bodies.read(content[:cut])), content[cut:]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Refused(400, f"{where}: {first['msg']}") from error


def _inputs(request: InferRequest, blobs: bytes) -> list[Any]:
    tensors: dict[str, list[str]] = {}
    at = 0
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _flat(tensor.data)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(blobs) - at:
                raise Refused(400, f"input {tensor.name!r} has binary_data_size {size!r}, which is not there")
            values, at = _texts(blobs[at : at + size]), at + size
        if math.prod(tensor.shape) != len(values):
            raise Refused(400, f"input {tensor.name!r} has {len(values)} texts and the shape {tensor.shape}")
        tensors[tensor.name] = values
    return _rows(tensors)


def _rows(tensors: dict[str, list[str]]) -> list[Any]:
    if "row" in tensors:
        return [bodies.read(value) for value in tensors["row"]]
    if "text" not in tensors:
        raise Refused(400, f"an input named text is wanted, found {', '.join(tensors) or 'none'}")
    if "text_pair" not in tensors:
        return list(tensors["text"])
    if len(tensors["text"]) != len(tensors["text_pair"]):
        raise Refused(400, f"{len(tensors['text'])} texts and {len(tensors['text_pair'])} second texts")
    return [list(pair) for pair in zip(tensors["text"], tensors["text_pair"], strict=True)]


def _flat(data: Any) -> list[str]:
    """Nested lists of texts -> the texts."""
    if isinstance(data, str):
        return [data]
    if not isinstance(data, list):
        raise Refused(400, "an input's data is a list of texts")
    return [text for part in cast("list[Any]", data) for text in _flat(part)]


def _texts(blob: bytes) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise Refused(400, "a binary tensor of BYTES ends in the middle of a length")
        (size,) = struct.unpack_from("<I", blob, at)
        if at + 4 + size > len(blob):
            raise Refused(400, "a binary tensor of BYTES ends in the middle of a text")
        try:
            found.append(blob[at + 4 : at + 4 + size].decode())
        except UnicodeDecodeError as error:
            raise Refused(400, "a text is not UTF-8") from error
        at += 4 + size
    return found


def _response(task: str, version: str, request: InferRequest, outputs: Sequence[Output]) -> Response:
    """All outputs, or those asked for, as JSON or binary as each is asked for."""
    wanted = {asked.name: asked.parameters for asked in request.outputs}
    unknown = [name for name in wanted if name not in {output.name for output in outputs}]
    if unknown:
        raise Refused(400, f"no output {unknown[0]!r}; there are {', '.join(output.name for output in outputs)}")
    everything = bool(request.parameters.get("binary_data_output"))
    documents: list[OutputTensor] = []
    blobs: list[bytes] = []
    for output in outputs:
        if wanted and output.name not in wanted:
            continue
        made = OutputTensor(name=output.name, datatype=output.datatype, shape=list(output.shape))
        if wanted.get(output.name, {}).get("binary_data", everything):
            blobs.append(output.binary())
            made.parameters = {"binary_data_size": len(blobs[-1])}
        else:
            made.data = output.values
        documents.append(made)
    answer = InferResponse(model_name=task, model_version=version, id=request.id, outputs=documents)
    head = answer.model_dump_json(exclude_none=True).encode()
    if not blobs:
        return Response(head, media_type="application/json")
    return Response(head + b"".join(blobs), media_type=BINARY, headers={HEADER: str(len(head))})
