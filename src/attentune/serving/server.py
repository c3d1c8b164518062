"""The HTTP server: `POST /v1/predict`, the tasks, health and meters; `/v2` is in open_inference.py."""

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from attentune import store
from attentune.serving import open_inference, problems
from attentune.serving.engine import Engine
from attentune.serving.guard import Guard
from attentune.serving.keys import Key, Keys
from attentune.serving.limits import Limits
from attentune.serving.meters import Meters
from attentune.serving.problems import Refused
from attentune.serving.registry import Registry, Served, Version
from attentune.serving.service import Service, Wanted
from attentune.serving.upload import unpack

bearer = HTTPBearer(auto_error=False, description="A key that `attentune keys` made; not needed where there are none.")
LINES = "application/x-ndjson"


class Item(BaseModel):
    """One input for one task or several."""

    model_config = ConfigDict(extra="forbid")
    task: str | list[str] = Field(description="A task, or several that all answer the same input.")
    input: str | list[str] | dict[str, Any] = Field(
        description="A text; two texts for a task on pairs; words for tagging; or a row with the columns of training."
    )
    abstain_at: float | None = Field(None, description="Answers less sure than this are marked `abstained`.")
    coverage: float | None = Field(None, description="Ask for the set of answers that holds the true one this often.")
    attention: bool = Field(False, description="Ask for the weights of the source prompts that ATTEMPT mixes.")


class PredictRequest(BaseModel):
    """The items of a request."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"items": [{"task": ["intent", "sentiment"], "input": "Where is my order?"}]}]},
    )
    items: list[Item]


class Failure(BaseModel):
    """Why one answer failed."""

    status: int
    detail: str


class PredictAnswer(BaseModel):
    """One answer or one failure."""

    task: str
    answer: dict[str, Any] | None = None
    error: Failure | None = None


class PredictResponse(BaseModel):
    """Answers in the order of the items, for several tasks in the order of the tasks."""

    answers: list[PredictAnswer]


class VersionInfo(BaseModel):
    """One version of a task."""

    id: str
    method: str
    bytes: int


class TrialInfo(BaseModel):
    """The version on trial."""

    version: VersionInfo
    share: float
    shadow: bool


class TaskInfo(BaseModel):
    """A task and its versions."""

    name: str
    kind: str
    labels: list[str]
    version: VersionInfo
    earlier: list[VersionInfo]
    trial: TrialInfo | None
    scores: dict[str, Any]


class LocalFolder(BaseModel):
    """An adapter folder on the server's machine."""

    model_config = ConfigDict(extra="forbid")
    folder: str


class RollBack(BaseModel):
    """Which version shall answer again."""

    model_config = ConfigDict(extra="forbid")
    version: str | None = None


class Verdict(BaseModel):
    """How a trial ends."""

    model_config = ConfigDict(extra="forbid")
    promote: bool


def build(registry: Registry, engine: Engine, keys: Keys | None = None, limits: Limits | None = None) -> FastAPI:
    """The application; it is ready when the registry's folder has been read."""
    limits, keys = limits or Limits(), keys or Keys()
    meters = Meters(registry.bank)
    engine.observe = meters.ran
    service = Service(registry, engine, limits, meters)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        service.ready = True
        yield
        service.ready = False
        await run_in_threadpool(engine.close)

    app = FastAPI(
        title="attentune",
        summary="Any number of text tasks on one frozen backbone.",
        lifespan=life,
        responses={
            "4XX": {"description": "A problem document (RFC 9457)", "content": {"application/problem+json": {}}},
            503: {"description": "Too much to do: try again", "content": {"application/problem+json": {}}},
        },
    )
    app.state.service = service
    problems.install(app)
    app.add_middleware(Guard, limits=limits, meters=meters)

    def key_for(scope: str) -> Callable[..., Key]:
        def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> Key:
            key = keys.find(given.credentials if given else None)
            if key is None:
                raise Refused(
                    401, "a valid API key is wanted: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
                )
            if scope not in key.scopes:
                raise Refused(403, f"this key does not have the scope {scope!r}")
            return key

        return check

    predict_key, admin_key = key_for("predict"), key_for("admin")
    _add_predict(app, service, predict_key)
    _add_tasks(app, service, predict_key, admin_key)
    _add_health(app, service, admin_key)
    open_inference.add(app, service, predict_key)
    return app


def _add_predict(app: FastAPI, service: Service, predict_key: Callable[..., Key]) -> None:
    @app.post(
        "/v1/predict",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}},
    )
    async def predict(  # pyright: ignore[reportUnusedFunction]
        body: PredictRequest, request: Request, key: Annotated[Key, Depends(predict_key)]
    ) -> Any:
        """Answer items in any mixture of tasks.

        With `Accept: application/x-ndjson` each answer is sent as a line of JSON as soon as it is there, with the
        `index` of what it answers. An item that fails has an `error` and leaves the others alone.
        """
        wanted = [
            Wanted(task, item.input, item.abstain_at, item.coverage, item.attention)
            for item in body.items
            for task in ([item.task] if isinstance(item.task, str) else item.task)
        ]
        if LINES not in request.headers.get("accept", ""):
            return {"answers": await _unless_gone(request, service.all(wanted, key))}
        lines = service.each(wanted, key)
        first = await anext(lines)  # What stands against the whole request is said before the answer begins.
        return StreamingResponse(_lines(first, lines), media_type=LINES)


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    yield json.dumps(first, ensure_ascii=False) + "\n"
    try:
        async for line in rest:
            yield json.dumps(line, ensure_ascii=False) + "\n"
    except Refused as error:
        yield json.dumps({"error": {"status": error.status, "detail": error.detail}}) + "\n"


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result; what nobody waits for any more is cancelled."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError:
        raise Refused(400, "the client has gone") from None
    finally:
        watcher.cancel()


def _add_tasks(app: FastAPI, service: Service, predict_key: Callable[..., Key], admin_key: Callable[..., Key]) -> None:
    registry = service.registry

    @app.get("/v1/tasks")
    async def tasks(key: Annotated[Key, Depends(predict_key)]) -> list[TaskInfo]:  # pyright: ignore[reportUnusedFunction]
        """The tasks that the key sees."""
        return [_info(name, registry.task(name)) for name in service.names(key)]

    @app.get("/v1/tasks/{name}")
    async def task(name: str, key: Annotated[Key, Depends(predict_key)]) -> TaskInfo:  # pyright: ignore[reportUnusedFunction]
        """One task."""
        return _info(name, service.visible(key, name))

    @app.put(
        "/v1/tasks/{name}",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/x-tar": {"schema": {"type": "string", "format": "binary"}},
                    "application/json": {"schema": LocalFolder.model_json_schema()},
                },
            }
        },
    )
    async def put(  # pyright: ignore[reportUnusedFunction]
        name: str,
        request: Request,
        key: Annotated[Key, Depends(admin_key)],
        share: Annotated[float | None, Query(gt=0, le=1, description="Try it on this share of the asks.")] = None,
        shadow: Annotated[bool, Query(description="Let it answer along unheard, and count agreement.")] = False,
    ) -> TaskInfo:
        """Serve an adapter folder under a name, new or in place of another version: a tar, or a folder by its name."""
        _refuse_hidden(key, name)
        content = await request.body()
        if request.headers.get("content-type", "").startswith("application/json"):
            source = _local_folder(content)
            await run_in_threadpool(registry.put, name, source, share, shadow)
        else:
            await run_in_threadpool(_put_tar, registry, name, content, service.limits.upload_limit, share, shadow)
        return _info(name, registry.task(name))

    @app.delete("/v1/tasks/{name}", status_code=204)
    async def remove(name: str, key: Annotated[Key, Depends(admin_key)]) -> None:  # pyright: ignore[reportUnusedFunction]
        """Take a task and all its versions away."""
        service.visible(key, name)
        await run_in_threadpool(registry.remove, name)

    @app.post("/v1/tasks/{name}/rollback")
    async def roll_back(  # pyright: ignore[reportUnusedFunction]
        name: str, body: RollBack, key: Annotated[Key, Depends(admin_key)]
    ) -> TaskInfo:
        """Let an earlier version answer again."""
        service.visible(key, name)
        await run_in_threadpool(registry.roll_back, name, body.version)
        return _info(name, registry.task(name))

    @app.post("/v1/tasks/{name}/trial")
    async def end_trial(  # pyright: ignore[reportUnusedFunction]
        name: str, body: Verdict, key: Annotated[Key, Depends(admin_key)]
    ) -> TaskInfo:
        """End the trial: the version answers from now on, or goes."""
        service.visible(key, name)
        await run_in_threadpool(registry.end_trial, name, body.promote)
        return _info(name, registry.task(name))


def _add_health(app: FastAPI, service: Service, admin_key: Callable[..., Key]) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """The process runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """It takes requests."""
        if not service.ready:
            raise Refused(503, "not ready")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics(key: Annotated[Key, Depends(admin_key)]) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Prometheus meters; they name tasks, so that they need the admin scope."""
        return Response(service.meters.page(service.engine.batcher), media_type="text/plain; version=0.0.4")


def _refuse_hidden(key: Key, name: str) -> None:
    if not key.sees(name):
        raise Refused(403, "this key may not write a task of that name")


def _local_folder(content: bytes) -> Path:
    try:
        return store.read(LocalFolder.model_validate_json(content).folder).folder
    except ValidationError as error:
        raise Refused(422, f'wanted {{"folder": "..."}}: {error.errors()[0]["msg"]}') from error


def _put_tar(registry: Registry, name: str, content: bytes, limit: int, share: float | None, shadow: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        unpack(content, Path(scratch), limit)
        registry.put(name, Path(scratch), share, shadow)


def _info(name: str, served: Served) -> TaskInfo:
    def version(v: Version) -> VersionInfo:
        return VersionInfo(id=v.id, method=v.entry.card.method, bytes=v.entry.bytes)

    trial, card = served.trial, served.active.entry.card
    scores: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        scores = json.loads((served.active.entry.folder / store.METRICS).read_text(encoding="utf-8"))
    return TaskInfo(
        name=name,
        kind=card.task.kind,
        labels=list(card.task.labels),
        version=version(served.active),
        earlier=[version(v) for v in served.earlier],
        trial=None
        if trial is None
        else TrialInfo(version=version(trial.version), share=trial.share, shadow=trial.shadow),
        scores=scores,
    )
