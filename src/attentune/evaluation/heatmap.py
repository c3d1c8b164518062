"""A table of weights between 0 and 1 as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from attentune.errors import ConfigError

FORMATS = (".svg", ".png", ".pdf")
WIDEST = 48
"""Letters of a row's name that are shown."""


def draw(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], path: str | Path, title: str) -> Path:
    """Draw {row: {column: weight}}; a column that a row does not have stays empty.

    Raises:
        ConfigError: the ending of the file is none of a known picture format.
    """
    target = Path(path).expanduser()
    if target.suffix not in FORMATS:
        raise ConfigError(f"a picture ends in {', '.join(FORMATS)}; found {path}")
    weights = np.array([[row.get(name, np.nan) for name in columns] for row in rows.values()])
    figure = Figure(figsize=(4.2 + 0.75 * len(columns), 1.6 + 0.36 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.93")
    most = max(float(np.nanmax(weights)), 1e-9)
    image = axes.imshow(weights, vmin=0.0, vmax=most, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    for (i, j), weight in np.ndenumerate(weights):
        if not np.isnan(weight):
            axes.text(
                j, i, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.6 * most else "black"
            )
    figure.colorbar(image, ax=axes, label="weight", pad=0.02)
    # The same weights give the same file.
    with mpl.rc_context({"svg.hashsalt": "attentune"}):
        figure.savefig(target, dpi=150, metadata=None if target.suffix == ".png" else _DATELESS[target.suffix])
    return target


_DATELESS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else name[: WIDEST - 3] + "..."
