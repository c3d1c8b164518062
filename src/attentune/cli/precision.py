"""Options for the numbers in which a backbone computes, and what they change of the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attentune.cli import show

if TYPE_CHECKING:
    import torch

    from attentune.confidence import Judgement

Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Numbers of the backbone; by default those of its file. Adapters and heads stay in float32."),
]
Quantise = Annotated[
    Literal["int8", "nf4"] | None,
    typer.Option(
        help="Inside the blocks: int8 multiplies in 8 bits, on a CPU; nf4 keeps the weights in 4 bits, and is slower. "
        "`attentune evaluate --quantise int8` tells the cost."
    ),
]


def of(name: str | None) -> torch.dtype | None:
    """The dtype of a name."""
    import torch

    return None if name is None else getattr(torch, name)


def show_both(plain: Judgement, other: Judgement, name: str, json: bool) -> None:
    """Scores and trust of the same rows by the backbone as its file has it and in other numbers, and the difference."""
    before, after = ({**one.scores, **one.trust} for one in (plain, other))
    # A score of one class is there where the class is predicted, and the two may predict others.
    change = {key: after[key] - value for key, value in before.items() if key in after and isinstance(value, float)}
    if json:
        show.as_json({**after, "plain": before, "difference": change})
        return
    rows = [(key, before.get(key, ""), after.get(key, ""), change.get(key, "")) for key in {**before, **after}]
    show.table(["score", "plain", name, "difference"], rows)
