"""README.md keeps its word: its sessions, its client, its links, and what it says of Linux.

A session is typed into a shell at a terminal: what stands behind a prompt, once the prompt has
come. In the end the screen must be the block, letter for letter, but for the port in use.
"""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from support import CALCULATORS, LINUX, ROOT, WAIT, Server, Terminal, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROMPT = re.compile(r"\$ |> |(?:Host|Port) \[.*\]:")
NETCAT = re.compile(r"^\$ .*\bnc -N .*\n(?:[^$].*\n)*", re.MULTILINE)  # the command and its output


def marked(comment, language):
    """Return the blocks of a language that stand behind a comment."""
    pattern = rf"^<!-- {comment} by tests/test_readme\.py -->\n+```{language}\n(.*?)^```$"
    return re.findall(pattern, README, re.DOTALL | re.MULTILINE)


def replay(terminal, block, port):
    """Type what stands behind the prompts. Return the screen as README.md shows it, and the port.

    The port is what to type for 10000; if that is 0, the one in use is what the server says.
    """
    for line in block.splitlines():
        if prompt := PROMPT.match(line):
            terminal.shows(f"{prompt[0].rstrip()} ")
            typed = port if line.startswith("Port") else line[prompt.end() :]
            terminal.type(re.sub(r"\b10000\b", port, typed) + "\r")
    if port == "0":
        terminal.shows("listening on 127.0.0.1:")
        port = terminal.shows("\r\n").strip()
    else:
        terminal.shows("$ ")
    screen = re.sub(r"\]: .*", "]:", terminal.screen.replace("\r\n", "\n"))
    return re.sub(rf"\b{port}\b", "10000", screen), port


def test_sessions(monkeypatch):
    """The sessions in README.md happen as they are shown; the first one starts the server."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("PS1", "$ ")
    monkeypatch.chdir(ROOT)
    first, *others = marked("replayed", "console")
    with Terminal("sh", "-i") as server:
        screen, port = replay(server, first, "0")
        assert screen == first
        openbsd = shutil.which("nc") and "Shutdown" in run("nc", "-h")[2]  # It has the option -N.
        for block in others:
            shown = block if openbsd else NETCAT.sub("", block)
            with Terminal("sh", "-i") as terminal:
                assert replay(terminal, shown, port) == (f"{shown}$ ", port)
        server.type("\x03")
        server.shows("$ ")


@pytest.mark.parametrize("name", CALCULATORS)
def test_client(name):
    """The client in README.md gets its replies as it stands there, but for the port."""
    (text,) = marked("run", "python")
    with Server(name) as server:
        text = re.sub(r"\b10000\b", str(server.port), text)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=WAIT)
    assert (done.stdout.split(), done.stderr) == ([b"2", b"80.5"], b"")


def test_links():
    """Every file and picture that README.md links to is there."""
    links = re.findall(r"\]\(([^)#\s]+)", README)
    assert {"server1.py", ".github/server1.svg"} <= set(links)
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_no_comments_in_commands():
    """No block for a shell has a comment: an interactive zsh takes it for more arguments."""
    blocks = [text for language, text in BLOCKS if language in ("", "console", "sh", "powershell")]
    assert blocks
    assert not re.findall(r"^.*(?<!\S)#.*$", "".join(blocks), re.MULTILINE)


@pytest.mark.skipif(not LINUX, reason="what README.md says of Linux")
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy makes it listen(1)")
def test_listen_0_keeps_one_client():
    """With listen(0), Linux connects one client that nobody accepts; it can send, and waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address, WAIT) as first:
            first.sendall(b"1+1\n")
            with pytest.raises(socket.timeout):  # The next one gets no answer, and no error.
                socket.create_connection(address, 0.2)
            sock, _ = listener.accept()
            with sock:
                assert sock.recv(4) == b"1+1\n"
