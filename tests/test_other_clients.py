"""Other clients, such as nc and telnet, get the right answers."""

import shutil
import subprocess
import threading

import pytest
from support import CALCULATORS, WAIT, Server

LINES = b"12*(3+4)-7/2\n2**10\n\n1/0\n1+1"  # the last one has no end
ANSWERS = [
    b"80.5",
    b"1024",
    b"error: an operand is missing before the end of the line",
    b"error: division by zero",
    b"2",
]

CLIENTS = {
    "nc": ["nc", "-N", "{host}", "{port}"],
    "ncat": ["ncat", "{host}", "{port}"],
    "socat": ["socat", "-t", "30", "-", "TCP:{host}:{port}"],
}


def command(client, server):
    """Return the command that connects a client to the server; skips if it is not installed."""
    if not shutil.which(client):
        pytest.skip(f"{client} is not installed")
    return [part.format(host=server.host, port=server.port) for part in CLIENTS[client]]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", CALCULATORS)
def test_lines_on_a_pipe(client, name, running):
    """Lines piped through another client are answered, also the last one that has no end."""
    server = running(name)
    done = subprocess.run(command(client, server), input=LINES, capture_output=True, timeout=WAIT)
    assert done.stdout == b"\n".join([*ANSWERS, b""])
    assert done.returncode == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_echo(client, running):
    """server4 gives every byte back to another client."""
    data = bytes(range(256)) * 4000
    server = running("server4")
    done = subprocess.run(command(client, server), input=data, capture_output=True, timeout=WAIT)
    assert done.stdout == data


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", CALCULATORS)
def test_line_by_line(client, name):
    """Another client shows each reply before the next line is sent."""
    with Server(name) as server:
        converse(command(client, server))


@pytest.mark.parametrize("name", CALCULATORS)
def test_telnet(name):
    """Telnet, which ends its lines in CR LF, gets its replies too."""
    if not shutil.which("telnet"):
        pytest.skip("telnet is not installed")
    with Server(name) as server:
        converse(["telnet", server.host, str(server.port)])


def converse(arguments):
    """Check that a client gets its answers one by one."""
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    watchdog = threading.Timer(WAIT, process.kill)
    watchdog.start()
    try:
        for line, answer in zip(LINES.split(b"\n"), ANSWERS):
            process.stdin.write(line + b"\n")
            while (shown := process.stdout.readline().strip()) != answer:
                assert shown.startswith((b"Trying", b"Connected", b"Escape")), shown
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
