"""What Python itself says of an expression: the measure of the servers' arithmetic."""

import ast
import math
import operator
import re
import warnings

TOO_BIG = 10**4300
MAX_BITS = 332_193  # 100,000 digits
GRAMMAR = re.compile(r"[0-9.eE+\-*/%() \t]*")
OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class OutOfBoundsError(Exception):
    """Products or powers on the way are too long, each or together: Python may not even try."""


def python(text):
    """Return what Python's eval gives for text, if it is an int or a finite float in bounds.

    None stands for an error: no such text in the contract's grammar, Python raises, or the
    result or a power or product on the way to it is out of bounds.
    """
    if not GRAMMAR.fullmatch(text):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what eval says of 1(2) and 1if
            lengths = []
            _walk(ast.parse(text.strip(" \t"), mode="eval").body, lengths)
            if "**" in text and sum(lengths) > MAX_BITS:
                raise OutOfBoundsError
            value = eval(text.strip(" \t"), {"__builtins__": {}})
    except (SyntaxError, ArithmeticError, ValueError, TypeError, OutOfBoundsError):
        return None
    if type(value) is int:
        return value if -TOO_BIG < value < TOO_BIG else None
    return value if type(value) is float and math.isfinite(value) else None


def _walk(node, lengths):
    """Return the value of a parsed expression; raises OutOfBoundsError before it gets costly.

    Adds to lengths the bits of each integer product and power.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](_walk(node.operand, lengths))
    if not isinstance(node, ast.BinOp):
        raise SyntaxError(f"not arithmetic: {type(node).__name__}")
    left, right = _walk(node.left, lengths), _walk(node.right, lengths)
    power = isinstance(node.op, ast.Pow)
    if power and type(left) is type(right) is int and (left.bit_length() - 1) * right > 14_300:
        raise OutOfBoundsError
    value = OPERATIONS[type(node.op)](left, right)
    if (power or isinstance(node.op, ast.Mult)) and type(value) is int:
        lengths.append(value.bit_length())
        if abs(value) >= TOO_BIG:
            raise OutOfBoundsError
    return value
