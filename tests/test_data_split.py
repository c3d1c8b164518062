"""Which rows are set aside for validation: those of one input together, classes in proportion, the same every time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attentune.tasks.data import load_data, split_off


def test_validation_is_stratified_and_seeded() -> None:
    rows = [{"text": f"t{i}", "label": "abc"[0 if i < 60 else 1 if i < 99 else 2]} for i in range(100)]
    stay, aside = split_off(rows, "classification", 0.1, seed=3)
    assert [sum(row["label"] == c for row in aside) for c in "abc"] == [6, 4, 0]
    assert (stay, aside) == split_off(rows, "classification", 0.1, seed=3)
    assert aside != split_off(rows, "classification", 0.1, seed=4)[1]
    assert sorted(stay + aside, key=lambda r: int(r["text"][1:])) == rows
    many = [{"text": f"t{i}", "label": str(i % 77)} for i in range(77 * 5)]
    assert len({row["label"] for row in split_off(many, "classification", 0.1, seed=0)[1]}) == 38


@pytest.mark.parametrize(
    ("kind", "seed", "expected"),
    [
        ("classification", 0, [5, 18, 19, 20, 24, 31, 33, 35]),
        ("classification", 7, [21, 26, 27, 30, 32, 33, 38, 39]),
        ("regression", 3, [3, 5, 14, 18, 26, 27, 31, 35]),
    ],
)
def test_which_rows_are_set_aside(kind: str, seed: int, expected: list[int]) -> None:
    """Figures that are published stand on it."""
    rows = [{"text": f"t{i}", "label": "aaaaabbbcd"[i % 10]} for i in range(40)]
    for by_input in (False, True):
        assert [rows.index(row) for row in split_off(rows, kind, 0.2, seed, by_input)[1]] == expected


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_rows_of_one_input_are_set_aside_together(inputs: list[int], share: float, seed: int) -> None:
    """Whatever they say of it, and whatever its form."""
    count = max(round(len(inputs) * share), 1)
    for kind, column, form in (("classification", "text", str), ("tagging", "tokens", lambda n: [str(n)])):
        rows = [{column: form(n), "label": "ab"[i % 2]} for i, n in enumerate(inputs)]
        stay, aside = split_off(rows, kind, share, seed, by_input=True)
        assert stay
        assert 1 <= len(aside) <= count
        assert sorted(map(str, stay + aside)) == sorted(map(str, rows))
        if kind == "tagging" and min(map(inputs.count, inputs)) <= count:
            assert not {str(row[column]) for row in stay} & {str(row[column]) for row in aside}


def test_no_class_goes_with_its_only_input() -> None:
    rows = [{"text": f"a{i % 2}", "label": "a"} for i in range(90)] + [{"text": "b", "label": "b"}] * 10
    stay, aside = split_off(rows, "classification", 0.1, 0, by_input=True)
    assert len(aside) == 10
    assert {row["label"] for row in stay} == {row["label"] for row in aside} == {"a", "b"}


def test_validation_is_of_other_inputs() -> None:
    rows = [{"source": f"s{i % 15}", "target": f"t{i}"} for i in range(30)]
    data = load_data(rows, "generation", validation=0.2)
    assert len(data.validation) == 6
    assert not {row["text"] for row in data.train} & {row["text"] for row in data.validation}
