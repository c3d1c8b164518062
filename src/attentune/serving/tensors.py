"""What goes in and out under /v2: the documents of the Open Inference Protocol, without their binary tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(strict=True, ge=0)]


class InputTensor(BaseModel):
    """Texts, as `data` or, with the parameter `binary_data_size`, behind the JSON part of the body."""

    name: str = Field(description="text, text_pair or row")
    datatype: Literal["BYTES"]
    shape: list[Side]
    data: str | list[Any] | None = None
    parameters: dict[str, Any] = {}


class RequestedOutput(BaseModel):
    """An output that is asked for; with the parameter `binary_data`, as bytes behind the JSON part."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """N inputs of one task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["Where is my order?"]}]}
            ]
        }
    )
    id: str | None = None
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] = []
    parameters: dict[str, Any] = {}


class OutputTensor(BaseModel):
    """One output; without `data` it stands behind the JSON part."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferResponse(BaseModel):
    """The outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorInfo(BaseModel):
    """A tensor's form; -1 stands for the number of inputs."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(BaseModel):
    """The tensors of a task."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ModelReady(BaseModel):
    """Whether a task is served."""

    name: str
    ready: bool


class ServerInfo(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the process runs."""

    live: bool


class Ready(BaseModel):
    """Whether it takes requests."""

    ready: bool
