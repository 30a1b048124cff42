"""The scripts one by one: what they share is the same in each, and each runs by itself."""

import ast
import collections
import difflib
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from support import POSIX, ROOT, SERVERS, WAIT, ask

SCRIPTS = (*SERVERS, "client")

# The names that mean different things in different scripts. Those in one group agree.
DIFFERENT = {
    "serve": ["server1", "server2", "server3 server4"],  # the models
    "chat": ["server1", "server2", "client"],
    "retry": ["server1", "server2"],
    "Conversation": ["server1 server2 server3", "server4"],
    "main": ["server1 server2 server3 server4", "client"],
    # constants
    "NAME": [*SERVERS],
    "MAX_CLIENTS": ["server2", "server3 server4"],
    "CHUNK": ["server1", "server2 server3", "server4", "client"],
}


def source(name):
    """Return the source of a script."""
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def parts(name):
    """Return the top-level functions, classes and constants of a script: their source by name."""
    text = source(name)
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        first = node.lineno
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
            first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        found.update(dict.fromkeys(names, "\n".join(lines[first - 1 : node.end_lineno])))
    return found


PARTS = {name: parts(name) for name in SCRIPTS}
SHARED = sorted(
    part
    for part, times in collections.Counter(p for n in SCRIPTS for p in PARTS[n]).items()
    if times > 1
)


def groups_of(part):
    """Return the groups of scripts that should have the same source for a part."""
    owners = [name for name in SCRIPTS if part in PARTS[name]]
    groups = [group.split() for group in DIFFERENT.get(part, [])] or [owners]
    named = [name for group in groups for name in group]
    return groups + [[name] for name in owners if name not in named]


@pytest.mark.parametrize("part", SHARED)
def test_same_name_same_source(part):
    """What has the same name in two scripts has the same source, but for the named exceptions."""
    for first, *others in groups_of(part):
        for other in others:
            ours, theirs = PARTS[first].get(part, ""), PARTS[other].get(part, "")
            difference = difflib.unified_diff(
                ours.splitlines(), theirs.splitlines(), f"{first}.py", f"{other}.py", lineterm=""
            )
            assert ours == theirs, f"{part} differs:\n" + "\n".join(difference)


@pytest.mark.parametrize("part", [part for part in DIFFERENT if not part.isupper()])
def test_exceptions_are_needed(part):
    """The list of exceptions contains only parts that do differ. (Constants may be set alike.)"""
    firsts = [PARTS[names[0]].get(part) for names in groups_of(part)]
    assert None not in firsts, f"not every script named has {part}"
    assert len(set(firsts)) == len(firsts), f"{part} is the same in some groups: join them"


def test_much_is_shared():
    """The comparison does find the parts that have to be the same."""
    assert {"Conversation", "evaluate", "main", "ask", "port_number", "serve"} <= set(SHARED)


@pytest.mark.parametrize("name", SCRIPTS)
def test_hints_and_docstrings(name):
    """Every function has type hints, and every function and class has a docstring."""
    tree = ast.parse(source(name))
    missing = [] if ast.get_docstring(tree) else ["the script's docstring"]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            missing += [
                f"{node.name}: hint for {one.arg}"
                for one in named
                if one and one.arg != "self" and one.annotation is None
            ]
            missing += [f"{node.name}: hint for its result"] * (node.returns is None)
        elif not isinstance(node, ast.ClassDef):
            continue
        special = node.name.startswith("__")
        missing += [f"{node.name}: docstring"] * (not special and not ast.get_docstring(node))
    assert not missing


@pytest.fixture
def alone(tmp_path):
    """Copy a script into an empty folder and start it there, apart from all other code."""
    started = []

    def start(name, *arguments):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(ROOT / f"{name}.py", folder)
        assert [path.name for path in folder.iterdir()] == [f"{name}.py"]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-W", "error", f"{name}.py", *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        watchdog = threading.Timer(WAIT, process.kill)
        watchdog.start()
        started.append((process, watchdog))
        return process

    yield start
    for process, watchdog in started:
        watchdog.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", SERVERS)
def test_each_starts_alone(name, alone):
    """A script copied into an empty folder serves, and the client copied so talks with it."""
    server = alone(name, "0")
    banner = server.stdout.readline().decode()
    assert banner.startswith(f"{name} listening on 127.0.0.1:")
    port = banner.rpartition(":")[2].strip()
    with socket.create_connection(("127.0.0.1", int(port)), WAIT) as sock:
        assert ask(sock, "5") == "5"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    client = alone("client", "127.0.0.1", port)
    assert client.communicate(b"7\n", WAIT) == (b"7\n", b"")
    assert client.returncode == 0
    server.send_signal(signal.SIGTERM)
    assert server.wait(WAIT) == (-signal.SIGTERM if POSIX else 1)


def test_layout():
    """The five scripts need no module of their own beside them."""
    names = {path.stem for path in ROOT.glob("*.py")}
    assert names == set(SCRIPTS)
