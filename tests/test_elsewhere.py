"""The scripts where the system lacks what Windows or macOS lack: see elsewhere.py.

This finds what a script should not have relied on. It does not replace a run on those systems.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys

import pytest
from outside import admitted, all_answered, crowd, receive, reset
from support import ROOT, SERVERS, WAIT, Server, load, needs_ipv6, read_all, run, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows lacks all that itself")

PREFIX = (sys.executable, str(ROOT / "tests" / "elsewhere.py"))
SELECT_LIMIT = 512  # sockets in a list, the listening one among them
FULL = b"error: server full\n"


def served(server):
    """Return a client that the server has answered. Raises AssertionError if it serves none."""
    return until(lambda: admitted(server), "a client is served")


def test_names_are_missing(tmp_path):
    """The runner takes the names and the modules away, and select fails as on Windows."""
    script = tmp_path / "script.py"
    script.write_text(
        "import select, signal, socket, sys\n"
        "for module in (signal, socket):\n"
        "    for name in sys.argv[1:]:\n"
        "        assert not hasattr(module, name), name\n"
        "for name in ('fcntl', 'readline', 'resource', 'termios', 'pty'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "    except ImportError:\n"
        "        continue\n"
        "    raise AssertionError(name)\n"
        "with socket.create_server(('127.0.0.1', 0)) as listener:\n"
        "    assert select.select([listener], [], [], 0) == ([], [], [])\n"
        "    for lists, kind in (\n"
        "        (([], [], []), OSError),\n"
        "        (([], [2], []), OSError),\n"
        "        (([listener] * 513, [], []), ValueError),\n"
        "    ):\n"
        "        try:\n"
        "            select.select(*lists, 0)\n"
        "        except kind:\n"
        "            continue\n"
        "        raise AssertionError(lists)\n"
    )
    names = "SIGALRM setitimer SIGKILL MSG_DONTWAIT SO_REUSEPORT TCP_KEEPIDLE TCP_KEEPALIVE"
    names += " TCP_KEEPINTVL TCP_KEEPCNT TCP_USER_TIMEOUT AF_UNIX"
    command = [*PREFIX, sys.executable, str(script), *names.split()]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=WAIT)
    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_server_answers_logs_and_ends(name, number):
    """It starts, answers, logs who connects and disconnects, and ends by the signal."""
    with Server(name, prefix=PREFIX) as server:
        with served(server) as client:
            peer = "{}:{}".format(*client.getsockname())
            until(lambda: f"{peer} connected\n" in server.log(), "it is logged")
            all_answered(server, [client])
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        until(lambda: f"{peer} disconnected\n" in server.log(), "it is logged")
        with served(server) as client:
            assert server.stop(number)[0] == -number
            with contextlib.suppress(ConnectionError):
                assert read_all(client) == b""
        lines = server.log().splitlines()
        assert all(line.endswith(("connected", "disconnected")) for line in lines), lines


def test_server1_refuses_a_second_client():
    """While server1 has a client, another is refused. The next is served as soon as it leaves."""
    with Server("server1", prefix=PREFIX) as server:
        for _ in range(30):
            with served(server) as first:
                with pytest.raises(ConnectionRefusedError):
                    server.connect()
                all_answered(server, [first])


@pytest.mark.parametrize("name", ["server3", "server4"])
def test_a_full_house(name):
    """As many are served as select takes. One more is told so, and there is room again."""
    house = min(load(name).MAX_CLIENTS, SELECT_LIMIT - 1)
    with Server(name, prefix=PREFIX) as server, crowd(server, house, exactly=True) as clients:
        all_answered(server, clients)
        for early in (b"", b"1 + 1\n" * 1000):
            with server.connect() as late:
                with contextlib.suppress(ConnectionError):
                    late.sendall(early)
                assert receive(late, len(FULL)) == FULL
        all_answered(server, clients)
        assert server.log().count("refused: server full") == 2
        assert server.log().count(" connected") == house
        for leave in (socket.socket.close, reset):
            leave(clients.pop())
            clients.append(served(server))
            with server.connect() as late:
                assert read_all(late) == FULL
        all_answered(server, clients)
        assert "waiting" not in server.log()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
@pytest.mark.parametrize("name", SERVERS)
def test_clients_that_leave_before_they_are_accepted(name, host):
    """Sixty connect to a server that is stopped, and reset: the next client is served at once."""
    with Server(name, "-b", host, "0", prefix=PREFIX) as server:
        server.process.send_signal(signal.SIGSTOP)
        with crowd(server, 60) as clients:
            for client in clients:
                reset(client)
        server.process.send_signal(signal.SIGCONT)
        with served(server) as client:
            all_answered(server, [client])
        assert "waiting" not in server.log()
        assert "Traceback" not in server.log()
        assert ("unknown connected" in server.log()) == (host == "::1")


# --- The client, on a pipe ----------------------------------------------------------------------


def test_client_copies_every_byte():
    """What the client reads from a pipe comes back from server4, byte for byte."""
    data = random.Random(1).randbytes(3_000_000) + b"\x1a\r\n\x1a\n\r\n\0\xff"
    with Server("server4", prefix=PREFIX) as server:
        status, output, errors = run("client", server.host, server.port, prefix=PREFIX, input=data)
    assert (status, errors) == (0, "")
    assert output == data


def test_client_whose_output_nobody_reads():
    """When the reader of its output has gone, the client ends without a word."""
    with Server("server4", prefix=PREFIX) as server:
        client = subprocess.Popen(
            [*PREFIX, sys.executable, str(ROOT / "client.py"), server.host, str(server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            client.stdin.write(b"first\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"first\n"
            client.stdout.close()
            client.stdin.write(b"second\n")
            client.stdin.flush()
            assert client.wait(WAIT) == 1
            assert client.stderr.read() == b""
        finally:
            client.kill()
            client.wait()
            client.stdin.close()
            client.stdout.close()
            client.stderr.close()


def test_client_without_a_server():
    """A refused connection is one line, and status 1."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        status, output, errors = run("client", "127.0.0.1", port, prefix=PREFIX)
    assert (status, output) == (1, b"")
    assert errors.startswith(f"client: cannot connect to 127.0.0.1:{port}: ")
    assert errors.count("\n") == 1
