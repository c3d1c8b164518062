"""Which columns hold a question with its context and answers, or with its choices: common names."""

import re
from collections.abc import Iterable, Sequence

from attentune.errors import DataError

QUESTIONS = ("question", "query", "question_text")
CONTEXTS = ("context", "passage", "paragraph", "document", "article", "text")
ANSWERS = ("answers", "answer_text", "answer", "text_answer")
STARTS = ("answer_start", "answer_starts", "start", "start_char", "start_position")

CHOICE_LISTS = ("choices", "options", "endings", "candidates", "alternatives")
CHOICE = re.compile(r"(choice|option|ending|answer|alternative|candidate|solution|sol|mc)[ _-]?([0-9]+|[a-e])|([a-e])")
"""One column of several: choice1, ending0, answerA, A; its number or letter says where it stands."""
ASKED = (
    ("context", "question"),
    ("passage", "question"),
    ("article", "question"),
    ("premise", "question"),
    ("sent1", "sent2"),
    ("story", "question"),
)
"""What is told, and what is asked of it."""
ASKED_ALONE = (
    "question", "question_stem", "premise", "ctx", "goal", "prompt", "query", "sentence", "text", "context", "story",
    "stem", "input", "startphrase",
)  # fmt: skip
RIGHT = (
    "label", "answer", "answerkey", "answer_key", "correct", "correct_answer", "answer_index", "answer_idx", "gold",
    "target", "labels", "right_answer",
)  # fmt: skip


def kind_of(names: Sequence[str]) -> str | None:
    """question_answering or multiple_choice, if the names of the columns leave no doubt."""
    known = {name.lower(): name for name in names}
    if find_choices(names) and first(known, RIGHT):
        return "multiple_choice"
    if first(known, QUESTIONS) and first(known, CONTEXTS) and ("answers" in known or first(known, STARTS)):
        return "question_answering"
    return None


def find_context(names: Sequence[str]) -> tuple[str, str]:
    """The columns of the question and of its context."""
    known = {name.lower(): name for name in reversed(names)}
    question, context = first(known, QUESTIONS), first(known, CONTEXTS)
    if question is None or context is None:
        raise DataError(
            f"no columns look like a question and its context; the columns are {', '.join(names)}: "
            "name both, the question first"
        )
    return question, context


def find_answers(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The columns of the answers and of the characters where they start, where there are such."""
    known = {name.lower(): name for name in reversed(names)}
    return first(known, ANSWERS), first(known, STARTS)


def find_choices(names: Sequence[str]) -> tuple[str, ...]:
    """The column with lists of choices, or the columns with one each in their order; () where there are none."""
    known = {name.lower(): name for name in reversed(names)}
    together = first(known, CHOICE_LISTS)
    if together:
        return (together,)
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = CHOICE.fullmatch(name.lower())
        if found:
            mark = found[2] or found[3]
            number = int(mark) if mark.isdigit() else ord(mark)
            groups.setdefault(found[1] or "", []).append((number, name))
    chosen = next((sorted(group) for group in groups.values() if len(group) > 1), [])
    return tuple(name for _, name in chosen)


def find_asked(names: Sequence[str]) -> tuple[str, ...]:
    """The column of what is asked, or those of what is told and what is asked of it."""
    known = {name.lower(): name for name in reversed(names)}
    for told, asked in ASKED:
        if told in known and asked in known:
            return known[told], known[asked]
    alone = first(known, ASKED_ALONE)
    if alone is None:
        raise DataError(f"no column looks like a question; the columns are {', '.join(names)}: name the one to read")
    return (alone,)


def find_right(names: Sequence[str]) -> str | None:
    """The column that says which choice is right."""
    return first({name.lower(): name for name in reversed(names)}, RIGHT)


def first(known: dict[str, str], wanted: Iterable[str]) -> str | None:
    """The first of the wanted names that is there, as it is spelt there."""
    return next((known[name] for name in wanted if name in known), None)
