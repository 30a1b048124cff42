"""The value that Python gives an expression, to compare the servers' arithmetic with."""

import ast
import math
import operator
import re
import warnings

TOO_BIG = 10**1000
GRAMMAR = re.compile(r"[0-9.eE+\-*/%()\s]*")
ZEROS = re.compile(r"(?<![0-9.eE])(?<![eE][+-])0+(?=[0-9])")  # leading zeros, which mean nothing
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
    """An integer on the way has too many digits: Python may not even try."""


def python(text):
    """Return what Python's eval gives for text, if it is an int or a finite float in bounds.

    None stands for an error: there is no such text in the contract's grammar, Python raises, or
    the result or an integer on the way to it has more than 1,000 digits.
    """
    if not GRAMMAR.fullmatch(text):
        return None
    text = ZEROS.sub("", re.sub(r"\s", " ", text).strip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what eval says of 1(2) and 1if
            _walk(ast.parse(text, mode="eval").body)
            value = eval(text, {"__builtins__": {}})
    except (SyntaxError, ArithmeticError, ValueError, TypeError, OutOfBoundsError):
        return None
    if type(value) is int:
        return value if -TOO_BIG < value < TOO_BIG else None
    return value if type(value) is float and math.isfinite(value) else None


def _walk(node):
    """Return the value of a parsed expression; raises OutOfBoundsError before it gets costly."""
    if isinstance(node, ast.Constant):
        value = node.value
    elif isinstance(node, ast.UnaryOp):
        value = OPERATIONS[type(node.op)](_walk(node.operand))
    elif isinstance(node, ast.BinOp):
        left, right = _walk(node.left), _walk(node.right)
        power_of_integers = isinstance(node.op, ast.Pow) and type(left) is type(right) is int
        if power_of_integers and (left.bit_length() - 1) * right > TOO_BIG.bit_length():
            raise OutOfBoundsError
        value = OPERATIONS[type(node.op)](left, right)
    else:
        raise SyntaxError(f"not arithmetic: {type(node).__name__}")
    if type(value) is int and abs(value) >= TOO_BIG:
        raise OutOfBoundsError
    return value
