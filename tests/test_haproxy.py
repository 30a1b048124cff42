"""The HAProxy configuration in README.md: clients go to several servers, and not to a dead one."""

import contextlib
import os
import re
import shutil
import socket
import subprocess

import pytest
from support import ROOT, WAIT, Server, ask, until

BLOCK = re.compile(r"^```haproxy\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BIND = re.compile(r"\bbind 127\.0\.0\.1:10000\b")
BACKEND = re.compile(r"(\bserver (\w+) 127\.0\.0\.1:)\d+\b")
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")


def clients(server):
    """Return how many clients a server has by its log."""
    log = server.log()
    return log.count(" connected\n") - log.count(" disconnected")


def answers(sock):
    """Tell whether the connection is still served."""
    try:
        return ask(sock, "6 * 7") == "42"
    except (AssertionError, ConnectionError):
        return False


@pytest.fixture
def stack():
    """Give a stack of what ends with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")
def test_three_servers_behind_one_port(stack, tmp_path):
    """Three clients get a server each. If a server is killed, only its own client is lost."""
    (text,) = BLOCK.findall((ROOT / "README.md").read_text())
    names = [name for _, name in BACKEND.findall(text)]
    servers = [stack.enter_context(Server("server3")) for _ in names]
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    text, binds = BIND.subn(f"bind fd@{listener.fileno()}", text)
    ports = (server.port for server in servers)
    text = BACKEND.sub(lambda found: f"{found[1]}{next(ports)}", text)
    assert (binds, len(servers)) == (1, 3)
    configuration, log = tmp_path / "haproxy.cfg", tmp_path / "log"
    configuration.write_text(text)
    options = {"stderr": stack.enter_context(log.open("wb")), "pass_fds": [listener.fileno()]}
    checked = subprocess.run([HAPROXY, "-c", "-f", configuration], **options)
    assert checked.returncode == 0, log.read_text()
    haproxy = subprocess.Popen([HAPROXY, "-db", "-f", configuration], **options)
    stack.callback(haproxy.wait)
    stack.callback(haproxy.kill)

    def connect():
        return stack.enter_context(socket.create_connection(listener.getsockname(), timeout=WAIT))

    socks = []
    for _ in servers:
        socks.append(connect())
        assert answers(socks[-1]), log.read_text()
    until(lambda: [clients(server) for server in servers] == [1, 1, 1], "a client for each")
    servers[0].process.kill()
    assert sorted(map(answers, socks)) == [False, True, True]
    until(lambda: f"/{names[0]} is DOWN" in log.read_text(), "the killed server is taken out")
    assert all(answers(connect()) for _ in range(4))
    until(lambda: sum(map(clients, servers[1:])) == 6, "the others serve all")
