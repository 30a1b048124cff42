"""The scripts one by one: what they share is the same in each of them, and each runs by itself."""

import ast
import collections
import difflib
import inspect
import re
import shutil
import sys
import tempfile

import pytest
import support
from support import ROOT, SCRIPTS, SERVERS, Server, load, run

# The names that mean different things in different scripts. Those in one group agree.
DIFFERENT = {
    "NAME": [*SERVERS],
    "MAX_CLIENTS": ["server2", "server3 server4"],
    "CHUNK": [*SCRIPTS],
    "serve": ["server1", "server2", "server3 server4"],
    "chat": ["server1", "server2", "client"],
    "Conversation": ["server1 server2 server3", "server4"],
    "main": ["server1 server2 server3 server4", "client"],
    "ask": ["server1 server2 server3 server4", "client"],
}


def source(name):
    """Return the source of a script."""
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def parts(name):
    """Return a script's functions, classes and constants by name, with the comments above them."""
    lines = source(name).splitlines()
    found = {}
    end = 0
    for node in ast.parse(source(name)).body:
        begin, end = end, node.end_lineno
        target = getattr(node, "target", None) or getattr(node, "targets", [node])[0]
        part = getattr(target, "name", None) or getattr(target, "id", None)
        if part:
            found[part] = "\n".join(lines[begin:end]).strip("\n")
    return found


PARTS = {name: parts(name) for name in SCRIPTS}
OWNERS = collections.defaultdict(list)  # the scripts that have a part
for script in SCRIPTS:
    for name in PARTS[script]:
        OWNERS[name].append(script)


def groups(part):
    """Return the scripts that have a part, in lists of those in which it has to be the same."""
    return [group.split() for group in DIFFERENT.get(part, [" ".join(OWNERS[part])])]


@pytest.mark.parametrize("part", sorted({*DIFFERENT} | {p for p in OWNERS if OWNERS[p][1:]}))
def test_what_scripts_share_is_the_same_in_each(part):
    """A function, class or constant of one name has one source, but for the exceptions."""
    named = [name for group in groups(part) for name in group]
    assert sorted(named) == sorted(OWNERS[part]), "DIFFERENT has to name the scripts that have it"
    for first, *others in groups(part):
        for other in others:
            wrong, right = PARTS[other][part].splitlines(), PARTS[first][part].splitlines()
            diff = difflib.unified_diff(wrong, right, f"{other}.py", f"{first}.py", lineterm="")
            assert wrong == right, f"copy this from {first}.py:\n" + "\n".join(diff)
    sources = {PARTS[group[0]][part] for group in groups(part)}
    assert len(sources) == len(groups(part)), "two groups are the same: join them in DIFFERENT"


@pytest.mark.parametrize("name", SCRIPTS)
def test_everything_has_type_hints_and_a_docstring(name):
    """Every function has type hints; every class and function, and the script, has a docstring."""
    module = load(name)
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == name]
    methods = [method for thing in own if inspect.isclass(thing) for method in vars(thing).values()]
    functions = [thing for thing in own + methods if inspect.isfunction(thing)]
    assert functions
    for thing in [module, *own, *functions]:
        assert thing.__doc__ or thing.__name__ == "__init__", f"{thing} needs a docstring"
    for function in functions:
        needed = {*inspect.signature(function).parameters, "return"} - {"self"}
        assert needed == set(function.__annotations__), f"{function} needs type hints"


@pytest.mark.skipif(sys.version_info < (3, 10), reason="needs sys.stdlib_module_names")
@pytest.mark.parametrize("name", SCRIPTS)
def test_only_the_standard_library_is_imported(name):
    """Every import, at the top or in a function, is of the standard library."""
    imported = re.findall(r"^ *(?:import|from) (\w+)", source(name), re.MULTILINE)
    assert set(imported) <= sys.stdlib_module_names


@pytest.mark.parametrize("name", SERVERS)
def test_each_script_works_alone(name, tmp_path, monkeypatch):
    """A server and the client, each alone in a folder and without any package, talk together."""

    def command(script, *arguments, prefix=()):
        copy = shutil.copy(ROOT / f"{script}.py", tempfile.mkdtemp(dir=tmp_path))
        return [*prefix, sys.executable, "-I", "-S", "-W", "error", copy, *map(str, arguments)]

    monkeypatch.setattr(support, "command", command)
    with Server(name) as server:
        assert run("client", server.host, server.port, input=b"7\n") == (0, b"7\n", "")
        assert re.fullmatch(r"\S+ connected\n\S+ disconnected\n", server.log())
