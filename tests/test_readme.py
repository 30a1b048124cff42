"""The sessions that README.md shows, replayed in terminals against the real scripts.

A block of the language `console` after the comment below is a terminal. What follows a prompt is
typed there, once all that stands before it has come; all else must come exactly so. Where the text
says 10000, a free port is used. A server that a block ends with runs until all blocks are played.
"""

import codecs
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from support import CALCULATORS, POSIX, ROOT, WAIT, Server, posix

if POSIX:
    import pty

BLOCK = re.compile(
    r"^<!-- replayed by tests/test_readme\.py -->\n+```console\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
CLIENT = re.compile(
    r"^<!-- run by tests/test_readme\.py -->\n+```python\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PROMPT = re.compile(r"\$ |> |(?:Host|Port) \[\w+\]: ?")
SERVER = re.compile(r"\$ python3 server\d\.py")
LOG_AND_INTERRUPT = re.compile(r"(127\.0\.0\.1:\d+ (connected|disconnected)\n)*\^C\n?\$ ")


class Terminal:
    """A terminal in which a shell runs; port is the one in use, or None until a server says it."""

    def __init__(self, port):
        self.port = port
        self.text = ""  # the output that no expectation has matched yet
        self.decode = codecs.getincrementaldecoder("utf-8")().decode
        variables = {
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PS1": "$ ",
            "TERM": "dumb",
            "INPUTRC": "/dev/null",
            "LANG": "C.UTF-8",
        }
        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execvpe("sh", ["sh", "-i"], variables)

    def close(self):
        """End the shell and what runs in it."""
        os.close(self.descriptor)  # a hangup, for all
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def play(self, block):
        """Replay a block; return whether it leaves a server running."""
        serving = False
        for line in block.splitlines():
            prompt = PROMPT.match(line)
            if prompt:
                serving = SERVER.match(line) or (serving and not line.startswith("$"))
                self.expect(f"{prompt[0].rstrip()} ")
                self.type(line[prompt.end() :] or ("10000" if line.startswith("Port") else ""))
            else:
                self.expect(f"{line}\n")
        if not serving:
            self.expect("$ ")
        return serving

    def type(self, line):
        """Type a line, with the port in use, and expect its echo."""
        typed = re.sub(r"\b10000\b", self.port or "0", line)
        os.write(self.descriptor, f"{typed}\n".encode())
        self.expect(f"{line if self.port else typed}\n")

    def expect(self, expected):
        """Read the expected text. Raises AssertionError if something else is shown, or nothing."""
        deadline = time.monotonic() + WAIT
        while not self.text.startswith(expected):
            whole_lines = self.text[: self.text.rfind("\n") + 1]
            assert expected.startswith(whole_lines), f"{self.text!r} came, not {expected!r}"
            assert time.monotonic() < deadline, f"{self.text!r} came, and no {expected!r}"
            self.read()
        self.text = self.text[len(expected) :]

    def interrupt(self):
        """Press Ctrl-C. Expect that only the log was shown, and that the server ends."""
        os.write(self.descriptor, b"\x03")
        deadline = time.monotonic() + WAIT
        while not LOG_AND_INTERRUPT.fullmatch(self.text):
            assert time.monotonic() < deadline, f"{self.text!r} came"
            self.read()

    def read(self):
        """Read what is shown within a second, with 10000 in place of the port in use."""
        if select.select([self.descriptor], [], [], 1)[0]:
            data = self.decode(os.read(self.descriptor, 65536))
            self.text = (self.text + data).replace("\r\n", "\n")
        if not self.port and (found := re.search(r"listening on \S+:(\d+)\n", self.text)):
            self.port = found[1]
        if self.port:
            self.text = re.sub(rf"\b{self.port}\b", "10000", self.text)


@posix
def test_sessions():
    """The sessions in README.md happen as they are shown."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert blocks
    if not shutil.which("nc") and any(re.search(r"\bnc\b", block) for block in blocks):
        pytest.skip("nc is not installed")
    port, terminals, servers = None, [], []
    try:
        for block in blocks:
            terminals.append(Terminal(None if SERVER.search(block) else port))
            if terminals[-1].play(block):
                servers.append(terminals[-1])
                port = terminals[-1].port
        for server in servers:
            server.interrupt()
    finally:
        for terminal in terminals:
            terminal.close()


@pytest.mark.parametrize("name", CALCULATORS)
def test_client_in_the_readme(name):
    """The client in README.md works as it stands there, with another port."""
    (text,) = CLIENT.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    with Server(name) as server:
        text, ports = re.subn(r"\b10000\b", str(server.port), text)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=WAIT)
    assert ports == 1
    assert done.stdout.split() == [b"2", b"80.5"]
    assert done.stderr == b""


@pytest.mark.skipif(sys.platform != "linux", reason="what README.md says about Linux")
def test_listen_0_does_not_refuse():
    """With listen(0), Linux connects a second client and queues it: it can send, and then waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address, WAIT), listener.accept()[0]:
            second = socket.create_connection(address, WAIT)
            second.sendall(b"1+1\n")
            assert not select.select([second], [], [], 0)[0]
            served, _ = listener.accept()
            with second, served:
                assert served.recv(4) == b"1+1\n"
