"""Tied values: arithmetic over searched paths, and nothing else."""

import pytest

from tune.expression import evaluate, list_paths


@pytest.mark.parametrize(
    ("text", "value"),
    [("2 * lora.rank", 16), ("-(lora.rank - 10) / 4", 0.5), ("x ** 0.5 + 1e-1", 3.1)],
)
def test_an_expression_is_arithmetic(text: str, value: float) -> None:
    assert evaluate(text, {"lora.rank": 8, "x": 9}) == value
    assert set(list_paths(text)) <= {"lora.rank", "x"}


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "a.b()", "a[0]", "'a' * 9", "a if b else c", "a @ b", "True", "a < b",
     "lambda: a", "2 *", "", "f'{a}'", "a.b.__class__()", "(a := 2)", "[a]"],
)  # fmt: skip
def test_an_expression_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"not arithmetic|not an expression"):
        list_paths(text)


@pytest.mark.parametrize("text", ["1 / (x - 9)", "9 ** x ** x ** x", "(0 - x) ** 0.5"])
def test_an_expression_without_a_value_is_named_and_does_not_hang(text: str) -> None:
    with pytest.raises(ValueError, match="value for"):
        evaluate(text, {"x": 9})
