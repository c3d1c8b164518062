"""`attentune calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from attentune.cli import show


def calibrate_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The adapter.")],
    data: Annotated[str, typer.Argument(help="Labelled rows: a file, a folder or a hub data set id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new adapter folder; may be the same one.")],
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; by default the only one, or validation.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Another place to load the same backbone from.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows in a batch.")] = 32,
    json: show.Json = False,
) -> None:
    """Fit an adapter's temperature, prediction sets and thresholds anew, without training.

    Example: attentune calibrate tone validation.csv --output tone-calibrated

    For an adapter whose sources were edited, or whose texts have changed. Take rows that it did not learn from, and
    others for `attentune evaluate`. Every tensor stays as it is.
    """
    from attentune import store
    from attentune.training.recalibrate import recalibrate

    store.tell_replaced(store.check_writable(output), show.progress, own=folder)
    stored = recalibrate(folder, data, output, split, backbone, batch_size)
    calibration, trust = stored.card.calibration, stored.metrics["calibration"]["validation"]
    if json:
        show.as_json({"output": str(stored.folder), "calibration": calibration.to_card(), "validation": trust})
        return
    show.table(["trust", "value"], list(trust.items()))
    show.progress(
        f"{stored.folder}: temperature {calibration.temperature:.3f} from {show.count(calibration.rows, 'row')}"
    )
