"""The HTTP server: `POST /v1/predict`, the tasks, health and meters; `/v2` is in open_inference.py."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from attentune import store
from attentune.serving import bodies, document, open_inference, problems
from attentune.serving.document import ASKED, reference
from attentune.serving.engine import Engine
from attentune.serving.folder import copy_of
from attentune.serving.forms import (
    LocalFolder,
    PredictRequest,
    PredictResponse,
    RollBack,
    Status,
    TaskDetails,
    TaskInfo,
    TrialInfo,
    Verdict,
    VersionInfo,
)
from attentune.serving.guard import Guard, KeyOf, admit
from attentune.serving.keys import Key, Keys
from attentune.serving.limits import Limits
from attentune.serving.meters import Meters
from attentune.serving.problems import Refused
from attentune.serving.registry import Registry
from attentune.serving.service import Service, Wanted, unless_gone
from attentune.serving.upload import unpack
from attentune.serving.versions import Served, Version

bearer = HTTPBearer(auto_error=False, description="A key that `attentune keys` made; not needed where there are none.")
LINES = "application/x-ndjson"


def build(
    registry: Registry,
    engine: Engine,
    keys: Keys | None = None,
    limits: Limits | None = None,
    playground: bool = False,
) -> FastAPI:
    """The application; it is ready when the registry's folder has been read.

    With `playground` there is a page at `/` (extra `ui`); one application of a process may have it.
    """
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

    # FastAPI's own /docs fetches its script from elsewhere, and is white where there is no network; /redoc would do so.
    app = FastAPIOffline(
        redoc_url=None,
        title="attentune",
        summary="Any number of text tasks on one frozen backbone.",
        lifespan=life,
    )
    app.router.route_class = bodies.Route
    app.state.service = service
    document.install(app)
    problems.install(app)
    app.add_middleware(Guard, limits=limits, meters=meters)

    # Where there are no keys the document must not ask for one.
    credentials = _nobody if keys.keys is None else bearer

    def key_for(scope: str) -> KeyOf:
        async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(credentials)]) -> Key:
            key = admit(keys, given.credentials if given else None, scope)
            await service.fresh.ensure()  # Here, because this runs before every request that sees tasks.
            return key

        return check

    predict_key, admin_key = key_for("predict"), key_for("admin")
    _add_predict(app, service, predict_key)
    _add_tasks(app, service, predict_key, admin_key)
    _add_health(app, service, admin_key)
    open_inference.add(app, service, predict_key)
    if playground:
        from attentune.serving.playground.mount import mount

        mount(app, service, keys)
    else:
        _add_index(app)
    return app


def _nobody() -> None:
    """Where no key is wanted none is looked at."""


def _add_predict(app: FastAPI, service: Service, predict_key: KeyOf) -> None:
    @app.post(
        "/v1/predict",
        response_model=PredictResponse,
        response_model_exclude_none=True,
        responses={200: {"content": {LINES: {"schema": {"type": "string"}}}}, **document.problems(*ASKED, 422)},
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
            return {"answers": await unless_gone(request, service.all(wanted, key))}
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


def _add_tasks(app: FastAPI, service: Service, predict_key: KeyOf, admin_key: KeyOf) -> None:
    registry = service.registry

    @app.get("/v1/tasks", responses=document.problems(*ASKED))
    def tasks(key: Annotated[Key, Depends(predict_key)]) -> list[TaskInfo]:  # pyright: ignore[reportUnusedFunction]
        """The tasks that the key sees."""
        return [_info(name, served) for name, served in service.tasks(key)]

    @app.get("/v1/tasks/{name}", responses=document.problems(*ASKED, 404))
    def task(name: str, key: Annotated[Key, Depends(predict_key)]) -> TaskDetails:  # pyright: ignore[reportUnusedFunction]
        """One task, with its scores."""
        return _details(name, service.visible(key, name))

    @app.put(
        "/v1/tasks/{name}",
        openapi_extra=document.body(
            {"application/x-tar": {"type": "string", "format": "binary"}, "application/json": reference(LocalFolder)}
        ),
        responses=document.problems(*ASKED, 404, 409, 422),
    )
    async def put(  # pyright: ignore[reportUnusedFunction]
        name: str,
        request: Request,
        key: Annotated[Key, Depends(admin_key)],
        share: Annotated[float | None, Query(gt=0, le=1, description="Try it on this share of the asks.")] = None,
        shadow: Annotated[bool, Query(description="Let it answer along unheard, and count agreement.")] = False,
    ) -> TaskDetails:
        """Serve an adapter folder under a name, new or in place of another version: a tar, or a folder by its name."""
        _refuse_hidden(key, name)
        content = await request.body()
        local = request.headers.get("content-type", "").startswith("application/json")
        if local:
            _refuse_bound(key, "name a folder of the server: it may hold the tasks of others")

        def serve() -> TaskDetails:
            fill = copy_of(_local_folder(content)) if local else partial(unpack, content, service.limits.upload_limit)
            registry.put(name, fill, share, shadow)
            return _details(name, registry.task(name))

        return await run_in_threadpool(serve)

    @app.delete("/v1/tasks/{name}", status_code=204, responses=document.problems(*ASKED, 404))
    def remove(name: str, key: Annotated[Key, Depends(admin_key)]) -> None:  # pyright: ignore[reportUnusedFunction]
        """Take a task and all its versions away."""
        service.visible(key, name)
        registry.remove(name)

    @app.post("/v1/tasks/{name}/rollback", responses=document.problems(*ASKED, 404, 409, 422))
    def roll_back(  # pyright: ignore[reportUnusedFunction]
        name: str, body: RollBack, key: Annotated[Key, Depends(admin_key)]
    ) -> TaskDetails:
        """Let an earlier version answer again."""
        service.visible(key, name)
        registry.roll_back(name, body.version)
        return _details(name, registry.task(name))

    @app.post("/v1/tasks/{name}/trial", responses=document.problems(*ASKED, 404, 409, 422))
    def end_trial(  # pyright: ignore[reportUnusedFunction]
        name: str, body: Verdict, key: Annotated[Key, Depends(admin_key)]
    ) -> TaskDetails:
        """End the trial: the version answers from now on, or goes."""
        service.visible(key, name)
        registry.end_trial(name, body.promote)
        return _details(name, registry.task(name))


def _add_health(app: FastAPI, service: Service, admin_key: KeyOf) -> None:
    @app.get("/health")
    async def health() -> Status:  # pyright: ignore[reportUnusedFunction]
        """The process runs."""
        return Status(status="ok")

    @app.get("/ready", responses=document.problems(503))
    async def ready() -> Status:  # pyright: ignore[reportUnusedFunction]
        """It takes requests."""
        if not service.ready:
            raise Refused(503, "not ready")
        return Status(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, responses=document.problems(401, 403))
    async def metrics(key: Annotated[Key, Depends(admin_key)]) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Prometheus meters; they name tasks, so that they need the admin scope, and all tasks."""
        _refuse_bound(key, "see the meters, which name all tasks")
        return Response(service.meters.page(service.engine.batcher), media_type="text/plain; version=0.0.4")


def _add_index(app: FastAPI) -> None:
    @app.get("/")
    async def index() -> dict[str, str]:  # pyright: ignore[reportUnusedFunction]
        """What is here, where there is no playground."""
        return {
            "docs": "/docs",
            "predict": "/v1/predict",
            "tasks": "/v1/tasks",
            "open inference": "/v2",
            "playground": "not shown here: pip install 'attentune[ui]' and serve with --playground",
        }


def _refuse_hidden(key: Key, name: str) -> None:
    if not key.sees(name):
        raise Refused(403, "this key may not write a task of that name")


def _refuse_bound(key: Key, wanted: str) -> None:
    if key.tasks is not None:
        raise Refused(403, f"a key that is bound to tasks may not {wanted}")


def _local_folder(content: bytes) -> Path:
    try:
        folder = LocalFolder.model_validate(bodies.read(content)).folder
    except ValidationError as error:
        raise Refused(422, f'wanted {{"folder": "..."}}: {error.errors()[0]["msg"]}') from error
    try:
        return store.read(folder).folder
    except (OSError, RuntimeError) as error:  # A name too long, a place that is forbidden, a home that nobody has.
        raise Refused(422, f"no adapter folder can be read at {folder!r}") from error


def _info(name: str, served: Served) -> TaskInfo:
    def version(v: Version) -> VersionInfo:
        return VersionInfo(id=v.id, method=v.entry.card.method, bytes=v.entry.bytes)

    trial, card = served.trial, served.active.entry.card
    return TaskInfo(
        name=name,
        kind=card.task.kind,
        labels=list(card.task.labels),
        version=version(served.active),
        earlier=[version(v) for v in served.earlier],
        trial=None
        if trial is None
        else TrialInfo(version=version(trial.version), share=trial.share, shadow=trial.shadow),
    )


def _details(name: str, served: Served) -> TaskDetails:
    return TaskDetails(**dict(_info(name, served)), scores=store.metrics_of(served.active.entry.folder))
