"""What goes in and out under /v1, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Item(BaseModel):
    """One input for one task or several."""

    model_config = ConfigDict(extra="forbid", strict=True)
    task: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="A task, or several that all answer the same input."
    )
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
        strict=True,
        json_schema_extra={"examples": [{"items": [{"task": ["intent", "sentiment"], "input": "Where is my order?"}]}]},
    )
    items: list[Item] = Field(min_length=1)


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


class TaskDetails(TaskInfo):
    """A task, its versions, and what training measured of the one that answers."""

    scores: dict[str, Any]


class LocalFolder(BaseModel):
    """An adapter folder on the server's machine."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"folder": "/adapters/intent"}]}
    )
    folder: str = Field(min_length=1)


class RollBack(BaseModel):
    """Which version shall answer again."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: str | None = Field(None, description="Its id; without one the last version that answered.")


class Verdict(BaseModel):
    """How a trial ends."""

    model_config = ConfigDict(extra="forbid", strict=True)
    promote: bool


class Status(BaseModel):
    """How the server is."""

    status: str
