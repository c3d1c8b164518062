"""Six tasks on the mails of an invented support desk, written for this project and shipped with it.

Rows are JSONL: ``text`` and ``label``, with ``text_pair`` for pairs, or ``tokens`` and ``tags``. README.md beside this
file says where the data come from; ``scripts/assemble_demo.py`` makes them.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from attentune.errors import DataError

__all__ = ["TASKS", "DemoTask", "path"]

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DemoTask:
    """What a demo task asks.

    kind is ``classification``, ``pair``, ``regression`` or ``tagging``; labels are in the order of their ids, those of
    a tagging task are BIO tags; a regression task has none.
    """

    kind: str
    labels: tuple[str, ...] | None
    description: str


TASKS = {
    "intent": DemoTask(
        "classification",
        (
            "track_order", "damaged_item", "wrong_item", "return_item", "refund_status", "cancel_order",
            "change_delivery", "payment_problem", "technical_fault", "account_access", "product_question",
            "warranty_claim",
        ),
        "What the customer wants.",
    ),
    "sentiment": DemoTask(
        "classification", ("negative", "neutral", "positive"), "How the customer feels about the shop."
    ),
    "urgency": DemoTask("regression", None, "How soon somebody has to act: 0 never, 1 at once."),
    "answered": DemoTask("pair", ("no", "yes"), "Whether the reply answers the message."),
    "entities": DemoTask(
        "tagging",
        (
            "O", "B-ORDER", "I-ORDER", "B-PRODUCT", "I-PRODUCT", "B-DATE", "I-DATE", "B-PERSON", "I-PERSON",
            "B-AMOUNT", "I-AMOUNT",
        ),
        "Order ids, products, days, persons and amounts of money.",
    ),
    "outcome": DemoTask(
        "classification",
        ("refunded", "replaced", "resolved", "escalated", "abandoned"),
        "How a thread of 600 to 2,000 words ended.",
    ),
}  # fmt: skip


def path(task: str, split: str) -> Path:
    """The JSONL file of a task, ``.jsonl`` or, where it is long, ``.jsonl.gz``; split is ``train`` or ``test``.

    Raises:
        DataError: no demo task or split has this name.
    """
    if task not in TASKS:
        raise DataError(f"A demo task was wanted, {task!r} was found; there are {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise DataError(f"A split of the demo task {task} was wanted, {split!r} was found; there are train and test.")
    folder = Path(str(files(__name__))) / task
    plain = folder / f"{split}.jsonl"
    return plain if plain.exists() else folder / f"{split}.jsonl.gz"
