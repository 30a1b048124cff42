"""Other programs get along with the servers: nc, ncat, socat, telnet, and HAProxy."""

import contextlib
import os
import re
import shutil
import socket
import subprocess

import pytest
from support import CALCULATORS, ROOT, WAIT, Server, Terminal, ask, posix, read_all, run, until

LINES = ["12*(3+4)-7/2", "2**10", "1/0", "1+1"]
REPLIES = ["80.5", "1024", "error: division by zero", "2"]
PIPES = {  # the words in front of host and port
    "nc": ["nc", "-N"],  # OpenBSD's
    "nc.traditional": ["nc.traditional", "-q", "30"],  # Debian's
    "busybox": ["busybox", "nc"],
    "ncat": ["ncat"],
    "socat": ["socat", "-t", "30", "-"],
}
TERMINALS = {**PIPES, "telnet": ["telnet"]}  # Telnet ends its lines in CR LF.
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")


def command(program, server):
    """Return the words that connect a program to the server; skips if it is not installed."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    if program == "nc" and "Shutdown" not in run("nc", "-h")[2]:
        pytest.skip("this nc has no option -N that closes its sending side")
    address = [server.host, server.port]
    if program == "socat":
        address = [f"TCP:{server.host}:{server.port}"]
    return [*TERMINALS[program], *address]


@pytest.mark.parametrize("program", PIPES)
@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_on_a_pipe(name, program, running):
    """Lines piped through a program are answered, also the last one that has no end."""
    words = command(program, running(name))
    status, output, _ = run(*words, input="\n".join(LINES).encode())
    assert (status, output.decode().splitlines()) == (0, REPLIES)


@pytest.mark.parametrize("program", PIPES)
def test_echo_on_a_pipe(program, running):
    """server4 gives a program every byte back, while it still sends."""
    data = bytes(range(256)) * 4000
    assert run(*command(program, running("server4")), input=data)[1] == data


@posix
@pytest.mark.parametrize("program", TERMINALS)
@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_at_a_terminal(name, program):
    """A person who types into a program sees each reply before typing the next line."""
    with Server(name) as server, Terminal(*command(program, server)) as terminal:
        for line, reply in zip(LINES, REPLIES):
            terminal.type(f"{line}\r")
            terminal.shows(f"\n{reply}\r\n")


@pytest.fixture
def stack():
    """Give a stack of what ends with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@posix
@pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")
def test_haproxy(stack, tmp_path):
    """Behind the HAProxy of README.md clients are spread, and only a dead server's are lost."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```haproxy\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    servers = [stack.enter_context(Server("server3")) for _ in range(3)]
    for number, server in enumerate(servers, 10001):
        text = text.replace(f"127.0.0.1:{number}\n", f"127.0.0.1:{server.port}\n")
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    text = text.replace("bind 127.0.0.1:10000\n", f"bind fd@{listener.fileno()}\n")
    configuration, log = tmp_path / "calculators.cfg", tmp_path / "log"
    configuration.write_text(text)
    process = subprocess.Popen(
        [HAPROXY, "-db", "-f", configuration],
        stderr=stack.enter_context(log.open("wb")),
        pass_fds=[listener.fileno()],
    )
    stack.callback(process.wait)
    stack.callback(process.kill)

    def connect():
        return stack.enter_context(socket.create_connection(listener.getsockname(), WAIT))

    def served(sock):
        with contextlib.suppress(AssertionError, ConnectionError):
            return ask(sock, "6 * 7") == "42"
        return False

    clients = [connect() for _ in servers]
    assert all(map(served, clients)), log.read_text()
    servers[0].process.kill()
    servers[0].process.wait()  # Until it has gone, it can still listen.
    assert sorted(map(served, clients)) == [False, True, True]
    newcomers = [connect() for _ in range(4)]
    assert all(map(served, newcomers))
    newcomers[0].sendall(b"1 + 1")
    newcomers[0].shutdown(socket.SHUT_WR)
    assert read_all(newcomers[0]) == b"2\n"
    until(lambda: "one is DOWN" in log.read_text(), "the dead server is found")
