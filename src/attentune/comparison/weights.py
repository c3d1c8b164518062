"""Which weights a backbone has now, and which stored runs are of others: a run's key says no more than its name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from attentune.backbones import fingerprint, load_backbone
from attentune.comparison.plan import Cell
from attentune.comparison.records import Record
from attentune.errors import AttentuneError


def weighed(cells: Sequence[Cell], records: Mapping[str, Record]) -> list[Cell]:
    """The cells with the fingerprints that their backbones have now, where there is a record to be compared with."""
    told = {_backbone(record) for record in records.values() if "weights" in record["attentune"]}
    now = {backbone: _weights(*backbone) for backbone in told & set(map(_backbone_of, cells))}
    return [replace(cell, weights=now.get(_backbone_of(cell))) for cell in cells]


def current(records: Mapping[str, Record], cells: Sequence[Cell]) -> dict[str, Record]:
    """The records without those of other weights than the cells name.

    A record that does not say which it had counts, as do all where nobody knows the present ones.
    """
    now = {_backbone_of(cell): cell.weights for cell in cells}
    wanted = {key: now.get(_backbone(record)) for key, record in records.items()}
    return {
        key: record
        for key, record in records.items()
        if wanted[key] is None or record["attentune"].get("weights", wanted[key]) == wanted[key]
    }


def _weights(name: str, dtype: str) -> str | None:
    try:
        return fingerprint(load_backbone(name, getattr(torch, dtype)))
    except AttentuneError:  # it is gone: what is finished stays so, and a run that needs it will say what is missing
        return None


def _backbone(record: Record) -> tuple[str, str]:
    conditions: dict[str, Any] = record["attentune"]["key"]["conditions"]
    return conditions["backbone"], conditions["frozen"]


def _backbone_of(cell: Cell) -> tuple[str, str]:
    return cell.first.conditions.backbone, cell.first.conditions.frozen
