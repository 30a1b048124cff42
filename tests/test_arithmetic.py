"""The servers' arithmetic against Python's own."""

import ast
import math
import struct
import sys

import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import CALCULATORS, ROOT, SERVERS, load

server3 = load("server3")
evaluate = server3.evaluate

words = str.split

REFUSALS = (ValueError, ZeroDivisionError, OverflowError, RecursionError)


def check(text):
    """Check that the server and Python agree on the text, also on what they print."""
    expected = oracle.python(text)
    try:
        value = evaluate(text)
    except REFUSALS as error:
        assert type(error) in REFUSALS  # none of their many subclasses
        value = None
    assert type(value) is type(expected), (value, expected)
    assert repr(value) == repr(expected)


def reply(text):
    """Return the reply to a line of that text."""
    return server3.reply(text.encode()).decode()


# --- Python is right ----------------------------------------------------------------------------


def compare(strategy, examples):
    """Check so many texts. The seed changes from run to run, and a failure prints it.

    The strategy gives texts, or lists of ten.
    """
    seen = 0

    @settings(
        max_examples=examples // (10 if strategy in (EXPRESSIONS, HUGE_EXPRESSIONS) else 1),
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def agree(texts):
        nonlocal seen
        for text in [texts] if isinstance(texts, str) else texts:
            check(text)
            seen += 1

    agree()
    assert seen >= examples


OPERATORS = [*words("+ - * / // % **") * 2, " + ", "\t-", "* ", " /", " // ", "% ", " **", "** "]
SIGNS = ["", "", "", "", "", "", "", "-", "+", "--", "-+ ", "- ", " +\t-"]
SPECIAL = words(
    "0 00 1 2 7 10 007 0.0 .5 2. 1e-3 1E3 1.e+2 .5E-1 1e308 1e999 5e-324 0e0 00.5 08. 09e1 1000 "
    "1e22 1e16 0.1 999 9007199254740993 123456789012345678901234567890 1e . 1.2.3 1_0"
)
HUGE = words(  # around 10**1000
    "10**999 10**1000 (10**500) 2**3321 2**3322 2**3323 9**1047 9**1048 7**1183 7**1184 "
    "(10**1000-1) (10**999*9) (2**1660) -2**3322 3**2095 3**2096 99**501 (10**100)**10 "
    "16**830 1000**333 1000**334 (10**50)**20 10**-1000 2**-3300 (-1)**10**900 "
    "0**10**900 9**9**9"
)


def grown(seed, special=SPECIAL):
    """Return an expression made from bytes, each of which makes a choice."""
    choices = iter(seed)

    def choose(options):
        return options[next(choices, 0) % len(options)]

    def number():
        kind = choose(range(4))
        if kind == 0:
            return str(next(choices, 0) % 21)
        if kind == 1:
            return choose(special)
        digits = bytes(next(choices, 0) for _ in range(8))
        if kind == 2:
            return str(int.from_bytes(digits, "big") >> choose([56, 40, 0]))
        value = abs(struct.unpack("d", digits)[0])
        return repr(value) if math.isfinite(value) else "1e5"

    def expression(depth):
        text = choose(SIGNS) + operand(depth)
        for _ in range(choose([0, 1, 1, 1, 1, 2, 2, 3])):
            text += choose(OPERATORS) + choose(SIGNS) + operand(depth)
        return text

    def operand(depth):
        if choose(range(8)) < 5 or not depth:
            return number()
        return choose(["({})", "( {})", "({}\t)", " ({}) "]).format(expression(depth - 1))

    return expression(4)


def tens(size, special=SPECIAL):
    """Return a strategy for lists of ten expressions, each grown from so many bytes."""
    seeds = st.binary(min_size=10 * size, max_size=10 * size)
    return seeds.map(lambda s: [grown(s[i : i + size], special) for i in range(0, len(s), size)])


EXPRESSION = st.binary(min_size=20, max_size=80).map(grown)
EXPRESSIONS = tens(60)
HUGE_EXPRESSIONS = tens(25, HUGE)


def test_expressions():
    """Expressions of the grammar."""
    compare(EXPRESSIONS, 15_000)


def test_expressions_near_the_bound():
    """Expressions with integers of about 1,000 digits."""
    compare(HUGE_EXPRESSIONS, 2000)


def test_text_of_the_alphabet():
    """Text of the characters that expressions are made of, and of a few more."""
    compare(st.text("0123456789.eE+-*/%() \t_jxX", max_size=30), 1000)


def test_short_text_of_operators():
    """Short text, of which more is an expression."""
    compare(st.text("012.e+-*/%() ", min_size=1, max_size=7), 1500)


def test_any_text():
    """Text of any characters."""
    compare(st.text(max_size=20), 500)


def test_almost_expressions():
    """Expressions in which one character is inserted or replaced."""
    parts = st.tuples(
        EXPRESSION,
        st.one_of(st.characters(), st.sampled_from("_jeE.()*/+-\r\n\f\v\0")),
        st.integers(0, 50),
        st.integers(0, 1),
    )
    compare(parts.map(lambda p: p[0][: p[2]] + p[1] + p[0][p[2] + p[3] :]), 500)


@settings(deadline=None, database=None, print_blob=True, max_examples=300)
@given(st.one_of(EXPRESSION, st.text(max_size=20)))
def test_replies(text):
    """The reply is what Python prints, or one error line."""
    text = text.replace("\n", "")
    expected = oracle.python(text[:-1] if text.endswith("\r") else text)
    line = reply(text)
    if expected is None:
        assert line.startswith("error: ")
        assert line[:-1].isprintable()
        assert line.endswith("\n")
    else:
        assert line == f"{expected!r}\n"


# --- By example ---------------------------------------------------------------------------------

VALUES = {
    # precedence
    "1+2*3": "7",
    "(1+2)*3": "9",
    "2*3**2": "18",
    "-2**2": "-4",
    "(-2)**2": "4",
    "2**-1": "0.5",
    "2**-1*4": "2.0",
    "-2**-2": "-0.25",
    "7-8%3": "5",
    "-7//2": "-4",
    "-7%3": "2",
    "7%-3": "-2",
    "- -3": "3",
    "-+-3": "3",
    "2*-3": "-6",
    "2--3": "5",
    "2**--1": "2",
    "2**-(1)": "0.5",
    "10-2*3-1": "3",
    "-2*3": "-6",
    "-2**2*3": "-12",
    "2**-2**2": "0.0625",
    # associativity
    "10-3-2": "5",
    "2/2/2": "0.5",
    "100//7//2": "7",
    "100%7*3": "6",
    "2*7//3": "4",
    "8//3*2": "4",
    "2**3**2": "512",
    "(2**3)**2": "64",
    # types and printing
    "12*(3+4)-7/2": "80.5",
    "6/3": "2.0",
    "7//2.0": "3.0",
    "2**0.5": "1.4142135623730951",
    "0.1+0.2": "0.30000000000000004",
    "1e16": "1e+16",
    "1e15": "1000000000000000.0",
    "1e-5": "1e-05",
    "2**100": str(2**100),
    "10**22/1": "1e+22",
    "1.e2": "100.0",
    ".5": "0.5",
    "2.": "2.0",
    "1e-3": "0.001",
    "1E+3-1": "999.0",
    "2e-3-4": "-3.998",
    "5e-324": "5e-324",
    "5e-324/2": "0.0",
    "1e308": "1e+308",
    "9007199254740993": "9007199254740993",
    "9007199254740993*1.0": "9007199254740992.0",
    "0**0": "1",
    "0.0**0": "1.0",
    # zeros
    "-0": "0",
    "-0.0": "-0.0",
    "0*-1": "0",
    "0*-1.0": "-0.0",
    "-0.0+0": "0.0",
    "-0.0*1": "-0.0",
    "+-0.0": "-0.0",
    "--0.0": "0.0",
    "-(0.0)": "-0.0",
    "0-0.0": "0.0",
    "0%-3.0": "-0.0",
    "000": "0",
    "0000.50": "0.5",
    "08.5": "8.5",
    "007e1": "70.0",
    # infinite on the way
    "1/1e999": "0.0",
    "-1/1e999": "-0.0",
    "1e999**0": "1.0",
    "5%1e999": "5.0",
    "-5//1e999": "-1.0",
    "(1e999-1e999)**0": "1.0",
    "2**-1e999": "0.0",
    # bounds
    "10**999": str(10**999),
    "10**999*9+(10**999-1)": str(10**1000 - 1),
    "2**3321": str(2**3321),
    "-2**3321": str(-(2**3321)),
    "(10**999)//10**998": "10",
    "10**500*10**499": str(10**999),
    "+".join(["10**998"] * 10): str(10**999),
    "(-1)**10**900": "1",
    "(-1)**(10**900+1)": "-1",
    "1**10**900": "1",
    "0**10**900": "0",
    "2**-2000": "0.0",
    "9" * 1000: "9" * 1000,
    "0" * 1010: "0",
    # blanks
    " 1\t+ 1 ": "2",
    "\t7": "7",
    "( 1 )": "1",
    "1 + - 1": "0",
    # nesting
    "(" * 511 + "1" + ")" * 511: "1",
    "-(" * 300 + "1" + ")" * 300: "1",
    "1**(" * 150 + "1" + ")" * 150: "1",
    "(1)+" * 255 + "1": "256",
    "-" * 50 + "1": "1",
}

ERRORS = [
    *words("() ( ) + 1+ *1 1* (1 1) )1( 1(2) (1)2 (1)(2) 1+*2 1***2 1///2 1** % 1%%2 1,2 1;2"),
    *("", " ", "\t", "1 2", "2* *3", "2/ /3"),
    # what looks like a number
    *words("01 007 0x10 0b1 0o7 1_000 1j 1e 1e+ e5 . .e1 1..2 1.2.3 1L 1if 1e5e5 1e+-5 ٣ ² e E"),
    *("1 .5", "1. 5", "1e 5", "1 e5", "1e+ 5", "1e +5", "1\u00a0+1", "１"),  # noqa: RUF001
    # what Python accepts, but the servers do not
    *words("abs(1) True 1<2 1==1 ~1 1<<2 1|2 1&2 1^2 1@2 '1' [1] {1} ... 1\\ (1,) x _ 1:=2"),
    *("1 if 1 else 2", "not 1", "1 and 2", "__import__('os')", "1 # 2", "lambda:1", "inf", "nan"),
    *("1\r", "\f1", "1\n", "1\n+1", "\n1", "1\0", "\ufeff1", "2↑3", "7÷2"),
    # no value
    *words("1/0 1//0 1%0 1/0.0 1.0//0 1%0.0 0**-1 0.0**-1 1/-0.0 1/(1-1)"),
    *words("1e999 -1e999 1e308*10 1e999-1e999 1e999*0 1e999%1 10.0**400 2.0**1e999"),
    *words("10**400*1.0 10**400/3.0 10**900/3 1.5**10**4 2**(10**900*1.0)"),
    *words("(-8)**.5 (-8)**(1/3) (-1)**0.5*0 (-8)**.5-(-8)**.5 0*(-1)**.5 (-2)**-.5"),
    *words("10**1000 -10**1000 2**3322 10**999*10 10**500*10**500 9**9**9 9**9**9**9"),
    *words("10**1000/10**1000 10**1000-10**1000 0*10**1000 (10**1000)**0 2**2**2**2**2**2"),
    *words("10**999*10//10 10**999*9+10**999-1 2**-(10**900) (10**900)**.5"),
    *("9" * 5000, "1" * 1001, "1" * 1001 + "%7", "7%" + "1" * 1001),
    *("(" * 1024, "-(" * 512, "1**(" * 256, ")" * 500, "(" * 200 + "1" + ")" * 199),
    *("(" * 200 + "1" + ")" * 201, "-" * 1023, "1+" * 500),
]


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:20])
def test_value(text):
    """These have the value that Python gives them."""
    expected = VALUES[text]
    assert repr(evaluate(text)) == expected
    if len(text) < 100:
        check(text)
    assert reply(text) == f"{expected}\n"


@pytest.mark.parametrize("text", ERRORS, ids=lambda text: ascii(text)[1:21])
def test_error(text):
    """These have no value."""
    with pytest.raises(REFUSALS):
        evaluate(text)
    if "\n" not in text and not text.endswith("\r"):
        assert reply(text).startswith("error: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1/0", "division by zero"),
        ("1%0.0", "division by zero"),
        ("0**-1", "division by zero"),
        ("2**99999", "too large"),
        ("1e999", "too large"),
        ("(" * 1024, "parenthes"),
        ("(-8)**.5", "real"),
        ("1 2", "operator is missing"),
        ("012", "012"),
        ("é", "é"),
        ("2^3", "'^'"),
        ("2×3", "'×'"),  # noqa: RUF001
        ("sqrt(4)", "'sqrt'"),
        ("2(3)", "an operator is missing"),
        ("1\x1b[2J", r"'\x1b'"),
        ("", "missing"),
        ("(1", "parenthesis"),
        ("1)", "parenthesis"),
        ("1+", "operand"),
        ("1+.", "'.' is not a number"),
    ],
    ids=lambda text: text[:12],
)
def test_reasons(text, words):
    """The reason says what is wrong."""
    assert words in reply(text)


@pytest.mark.parametrize("depth", [1, 10, 199, 200, 511])
def test_nesting_counts_what_is_open(depth):
    """Parentheses one after the other do not nest, however many there are."""
    nested = "(" * depth + "1" + ")" * depth
    assert evaluate("+".join([nested] * 3)) == 3
    assert evaluate("-".join(["(1)"] * 300)) == -298


def test_any_number_of_signs():
    """Signs do not nest either: a line full of them has its value."""
    assert evaluate("-" * 1022 + "1") == 1
    assert evaluate("-" * 1023 + "1") == -1
    assert evaluate("-" * 1022 + "0.0") == 0
    assert math.copysign(1, evaluate("-" * 1023 + "0.0")) == -1


# --- Nothing but arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SERVERS, "client"])
def test_imports(name):
    """The scripts import nothing but the standard library, and nothing that runs text."""
    imported = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    assert imported
    assert not imported & {"ast", "builtins", "code", "codeop", "importlib", "pickle", "runpy"}
    if hasattr(sys, "stdlib_module_names"):  # since Python 3.10
        assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("name", [*SERVERS, "client"])
def test_nothing_is_run(name):
    """No script names eval, exec, compile or a way to them, but re.compile."""
    forbidden = {"eval", "exec", "compile", "__import__", "__builtins__", "globals", "getattr"}
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            assert node.id not in forbidden - {"getattr"}, f"line {node.lineno}"
        elif isinstance(node, ast.Attribute) and node.attr in forbidden:
            assert ast.unparse(node) == "re.compile", f"line {node.lineno}"


@pytest.mark.parametrize("name", CALCULATORS)
def test_the_same_in_all(name):
    """All three calculators evaluate alike."""
    script = load(name)
    for text in ("12*(3+4)-7/2", "2**3**2", "-7//2", "10**999"):
        assert repr(script.evaluate(text)) == repr(oracle.python(text))
