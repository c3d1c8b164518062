"""The Open Inference Protocol v2 (KServe, Triton), with its binary tensor extension, so that existing clients work.

A task is a model. Inputs: `text` BYTES [N] (for pairs also `text_pair` BYTES [N]), or `row` BYTES [N], each a JSON
object with the columns of training. Outputs: `answer` BYTES [N], the whole answer as JSON, and by kind of task `label`
BYTES [N], `score` FP32 [N], `probabilities` FP32 [N,C], `value` FP32 [N].
"""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from attentune.card import TaskCard
from attentune.serving.keys import Key
from attentune.serving.problems import Refused
from attentune.serving.service import Service, Wanted

HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class Output:
    """One output tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]

    def binary(self) -> bytes:
        """As the extension has it: FP32 little-endian, BYTES each with its length before it."""
        if self.datatype == "FP32":
            return np.asarray(self.values, dtype="<f4").tobytes()
        return b"".join(struct.pack("<I", len(v)) + v for v in (str(value).encode() for value in self.values))


def add(app: FastAPI, service: Service, predict_key: Callable[..., Key]) -> None:
    """Add the routes under /v2."""

    @app.get("/v2")
    async def server() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """What this server is."""
        from importlib.metadata import version

        return {"name": "attentune", "version": version("attentune"), "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        """The process runs."""
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        """It takes requests."""
        if not service.ready:
            raise Refused(503, "not ready")
        return {"ready": True}

    @app.get("/v2/models/{task}")
    @app.get("/v2/models/{task}/versions/{version}", include_in_schema=False)
    async def model(task: str, key: Annotated[Key, Depends(predict_key)], version: str | None = None) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The tensors of a task."""
        served = service.visible(key, task)
        _check_version(version, served.active.id)
        return metadata(task, served.active.entry.card, [served.active.id])

    @app.get("/v2/models/{task}/ready")
    @app.get("/v2/models/{task}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(
        task: str, key: Annotated[Key, Depends(predict_key)], version: str | None = None
    ) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The task is served."""
        _check_version(version, service.visible(key, task).active.id)
        return {"name": task, "ready": True}

    @app.post(
        "/v2/models/{task}/infer",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"type": "object", "required": ["inputs"]},
                        "example": {
                            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Where is it?"]}]
                        },
                    }
                },
            }
        },
    )
    @app.post("/v2/models/{task}/versions/{version}/infer", include_in_schema=False)
    async def infer(
        task: str, request: Request, key: Annotated[Key, Depends(predict_key)], version: str | None = None
    ) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answer N inputs by one task."""
        served = service.visible(key, task)
        _check_version(version, served.active.id)
        body, blobs = _parts(await request.body(), request.headers.get(HEADER))
        inputs = _inputs(body, blobs)
        found = await service.all([Wanted(task, value) for value in inputs], key)
        failed = next((line["error"] for line in found if "error" in line), None)
        if failed is not None:
            raise Refused(failed["status"], failed["detail"])
        outputs = _outputs([line["answer"] for line in found], served.active.entry.card)
        return _response(task, served.active.id, body, outputs)


def metadata(task: str, card: TaskCard, versions: Sequence[str]) -> dict[str, Any]:
    """The metadata document of a task."""
    kinds = _kinds(card)
    names = ["text", "text_pair"] if card.task.pair else ["text"]
    return {
        "name": task,
        "versions": list(versions),
        "platform": "attentune",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, *shape]} for name, (kind, shape) in kinds.items()],
    }


def _kinds(card: TaskCard) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (datatype, shape of one row) of a task's outputs."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {"answer": ("BYTES", ())}
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


def _parts(content: bytes, header: str | None) -> tuple[dict[str, Any], bytes]:
    """The JSON part of a body and the binary tensors behind it."""
    if header is not None and not header.isdigit():
        raise Refused(400, "Inference-Header-Content-Length is a number")
    cut = len(content) if header is None else int(header)
    if cut > len(content):
        raise Refused(400, f"Inference-Header-Content-Length is {cut}, and the body has {len(content)} bytes")
    try:
        body = json.loads(content[:cut])
    except ValueError as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(body, dict) or not isinstance(cast("Any", body).get("inputs"), list):
        raise Refused(400, "the body is an object with a list of inputs")
    return cast("dict[str, Any]", body), content[cut:]


def _inputs(body: dict[str, Any], blobs: bytes) -> list[Any]:
    tensors: dict[str, list[str]] = {}
    at = 0
    for entry in body["inputs"]:
        if not isinstance(entry, dict) or not {"name", "datatype", "shape"} <= cast("dict[str, Any]", entry).keys():
            raise Refused(400, "an input has name, datatype and shape")
        tensor = cast("dict[str, Any]", entry)
        if tensor["datatype"] != "BYTES":
            raise Refused(400, f"input {tensor['name']!r} is {tensor['datatype']!r}; BYTES is wanted")
        parameters = tensor.get("parameters") or {}
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            values = _flat(tensor.get("data"))
        else:
            if not isinstance(size, int) or not 0 <= size <= len(blobs) - at:
                raise Refused(400, f"input {tensor['name']!r} has binary_data_size {size!r}, which is not there")
            values, at = _texts(blobs[at : at + size]), at + size
        count = 1
        for side in tensor["shape"] if isinstance(tensor["shape"], list) else [None]:
            if not isinstance(side, int) or side < 0:
                raise Refused(
                    400, f"input {tensor['name']!r} has the shape {tensor['shape']!r}; whole numbers are wanted"
                )
            count *= side
        if count != len(values):
            raise Refused(400, f"input {tensor['name']!r} has {len(values)} texts and the shape {tensor['shape']}")
        tensors[str(tensor["name"])] = values
    return _rows(tensors)


def _rows(tensors: dict[str, list[str]]) -> list[Any]:
    if "row" in tensors:
        try:
            return [json.loads(value) for value in tensors["row"]]
        except ValueError as error:
            raise Refused(400, "an input `row` is a JSON object") from error
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


def _response(task: str, version: str, body: dict[str, Any], outputs: Sequence[Output]) -> Response:
    """All outputs, or those asked for, as JSON or binary as each is asked for."""
    wanted = {str(o.get("name")): o for o in body.get("outputs") or [] if isinstance(o, dict)}
    unknown = [name for name in wanted if name not in {output.name for output in outputs}]
    if unknown:
        raise Refused(400, f"no output {unknown[0]!r}; there are {', '.join(output.name for output in outputs)}")
    parameters = body.get("parameters")
    everything = bool(parameters.get("binary_data_output")) if isinstance(parameters, dict) else False
    documents: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for output in outputs:
        if wanted and output.name not in wanted:
            continue
        asked = wanted.get(output.name, {}).get("parameters") or {}
        document: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if asked.get("binary_data", everything):
            blobs.append(output.binary())
            document["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            document["data"] = output.values
        documents.append(document)
    answer: dict[str, Any] = {"model_name": task, "model_version": version, "outputs": documents}
    if isinstance(body.get("id"), str):
        answer["id"] = body["id"]
    if not blobs:
        return JSONResponse(answer)
    head = json.dumps(answer).encode()
    return Response(
        head + b"".join(blobs),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
