"""Arithmetic over searched paths, such as `2 * lora.rank`."""

import ast
import operator
from collections.abc import Callable, Mapping

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: float(base) ** float(exponent),  # of int it could take for ever
}


def list_paths(text: str) -> list[str]:
    """Return the config paths in an expression, each once.

    Raises ValueError if the text is not numbers and paths joined by + - * / ** and brackets.

    >>> list_paths("2 * lora.rank")
    ['lora.rank']
    """
    paths: dict[str, None] = {}

    def visit(node: ast.expr) -> None:
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                pass
            case ast.Name() | ast.Attribute() if _is_path(node):
                paths[ast.unparse(node)] = None
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                visit(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                visit(left)
                visit(right)
            case _:
                raise ValueError(
                    f"{ast.unparse(node)!r} in {text!r} is not arithmetic: join numbers and "
                    "searched paths by + - * / ** and brackets, as in 2 * lora.rank"
                )

    visit(_parse(text))
    return list(paths)


def evaluate(text: str, values: Mapping[str, float]) -> int | float:
    """Return the value of an expression that `list_paths` accepts.

    Raises ValueError if it has none, as in a division by 0.

    >>> evaluate("2 * lora.rank", {"lora.rank": 8})
    16
    """

    def compute(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=value):
                return value  # type: ignore[return-value]  # list_paths refused other constants
            case ast.UnaryOp(operand=operand):
                return -compute(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](compute(left), compute(right))
            case _:
                return values[ast.unparse(node)]

    try:
        computed = compute(_parse(text))
    except ArithmeticError as error:
        raise ValueError(f"{text!r} has no value for {dict(values)}: {error}") from None
    if isinstance(computed, complex):
        raise ValueError(f"{text!r} has no real value for {dict(values)}")
    return computed


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"{text!r} is not an expression: write it as 2 * lora.rank") from None


def _is_path(node: ast.expr) -> bool:
    """Return True for a name, or names joined by dots."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_path(node.value))
