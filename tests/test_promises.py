"""What the project promises, one short test for each promise: read this first.

The other files have the corners, each of one subject.
"""

import contextlib
import re
import signal
import socket
import subprocess

import pytest
from support import (
    CALCULATORS,
    CROWDED,
    SERVERS,
    WAIT,
    Server,
    Terminal,
    answered,
    ask,
    command,
    crowd,
    linux,
    load,
    posix,
    read_all,
    run,
    set_limit,
    until,
)

every_server = pytest.mark.parametrize("name", SERVERS)
every_crowded_server = pytest.mark.parametrize("name", CROWDED)


# --- The command line of the servers ------------------------------------------------------------


@every_server
def test_it_says_where_it_listens_and_who_comes_and_goes(name):
    """The first line is on standard output, the log on standard error, without a client's text."""
    with Server(name) as server:
        with server.connect() as client:
            ask(client, "secret")
            host, port = client.getsockname()
        lines = [f"{host}:{port} connected\n", f"{host}:{port} disconnected\n"]
        until(lambda: server.log() == "".join(lines), "the log")


@every_server
@pytest.mark.parametrize("answer", [b"\n", b""])
def test_it_asks_for_its_port_and_blank_means_10000(name, answer):
    """The question is on standard error if standard output is no terminal."""
    status, output, errors = run(name, "-b", "a..b", input=answer)  # no address: it never listens
    assert (status, output) == (1, b"")
    assert errors.startswith(f"Port [10000]: {name}: cannot listen on a..b:10000: ")


@every_server
@pytest.mark.parametrize("arguments", [["70000"], []])
def test_what_is_no_port_gets_one_line(name, arguments):
    """An argument as well as an answer: no traceback, no second question."""
    status, output, errors = run(name, *arguments, input=b"70000\n10001\n")
    assert (status, output) == (1, b"")
    line = f"{name}: '70000' is not a port (a number from 0 to 65535)\n"
    assert errors.removeprefix("Port [10000]: ") == line


@every_server
def test_a_port_in_use_gets_one_line(name):
    """With the address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        status, _, errors = run(name, port := other.getsockname()[1])
    assert status == 1
    assert re.fullmatch(rf"{name}: cannot listen on 127\.0\.0\.1:{port}: .+\n", errors)


@posix
@every_server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_and_the_port_is_free(name, number):
    """With a client inside; without a traceback; another server can listen at the same port."""
    with Server(name) as server, server.connect() as client:
        assert answered(server, client)
        status, seconds = server.stop(number)
        assert (status, "Traceback" in server.log()) == (-number, False)
        assert seconds < 5
        with Server(name, server.port) as again:
            assert again.port == server.port


# --- Servers 1 to 3: one line in, one line out --------------------------------------------------


@pytest.mark.parametrize("name", CALCULATORS)
def test_every_line_gets_one_reply_in_order(name, running):
    """However TCP cuts the lines, and whatever is in them; the last one may have no end."""
    with running(name).connect_when_free() as client:
        for piece in (b"12*(3+4)", b"-7/2\n2**6", b"4\n\n1/0\n1", b"\xff\n", b" " * 2000, b"\n2-3"):
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).decode().splitlines() == [
            "80.5",
            "18446744073709551616",
            "error: expected a number, found 'end of line'",
            "error: division by zero",
            r"error: expected an operator, found '\ufffd'",
            "error: line longer than 1024 bytes",
            "-1",
        ]


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("-2**2", "-4"),
        ("2**3**2", "512"),
        ("\ufeff.5 +\xa02.\r", "2.5"),
        ("1e-07", "1e-07"),
        ("007", "7"),
        ("-0.0", "-0.0"),
        ("9**9**9", "error: number too large"),
        ("1e999", "error: the result is not a finite number"),
        ("2^3", "error: expected an operator, found '^'"),
        ("2*\u22123", r"error: expected a number, found '\u2212'"),
        ("(1", "error: expected an operator or ')', found 'end of line'"),
    ],
)
def test_the_arithmetic_is_pythons(text, reply):
    """And what is none of it is refused with a reason."""
    assert load("server1").reply(text.encode()).decode() == f"{reply}\n"


# --- Server 4: every byte comes back ------------------------------------------------------------


def test_every_byte_comes_back(running):
    """Also when it is more than the kernel takes, and what is owed at the end."""
    data = bytes(range(256)) * 40_000
    assert run("client", running("server4").port, input=data) == (0, data, "")


# --- Who is served ------------------------------------------------------------------------------


def test_server1_serves_one_client_and_refuses_the_others():
    """When the client leaves, the next that comes is served, at once after the server's close."""
    with Server("server1") as server:
        for _ in range(3):
            with server.connect() as client:
                assert answered(server, client)
                with pytest.raises(ConnectionError):
                    server.connect()
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""


@every_crowded_server
def test_many_chat_at_once(name, running):
    """Also while others say nothing, or half a line."""
    with crowd(running(name), 50) as clients:
        clients[0].sendall(b"1 +")
        for number, client in enumerate(clients[1:25] * 2):
            assert answered(running(name), client, 10_000 + number)


@every_crowded_server
def test_one_more_than_it_takes_is_told(name):
    """The others notice nothing, and one that leaves makes room."""
    with Server(name) as server, crowd(server, load(name).MAX_CLIENTS) as clients:
        with server.connect() as one_more, server.connect() as another:  # Both stay.
            assert read_all(one_more) == read_all(another) == b"error: server full\n"
        clients[0].shutdown(socket.SHUT_WR)
        assert clients[0].recv(1) == b""
        with server.connect() as next_one:
            assert answered(server, next_one)
        assert all(answered(server, client) for client in clients[1::100])


@every_crowded_server
def test_a_client_that_does_not_read_slows_nobody(name, running):
    """Its replies wait, and it is not read from."""
    server = running(name)
    with server.connect(timeout=0.1) as lazy, server.connect() as other:
        with contextlib.suppress(socket.timeout):
            while True:
                lazy.sendall(b"9**999\n" * 1000)
        assert answered(server, other)


@linux
@every_server
def test_without_descriptors_it_waits_and_then_serves(name):
    """It says so, and lives on."""
    with Server(name) as server:
        set_limit(server.pid, "NOFILE", 4)
        server.connect().close()  # accept() may have taken a descriptor before the limit was set
        until(lambda: "waiting: Too many open files\n" in server.log(), "the log")
        set_limit(server.pid, "NOFILE", 1024)
        server.connect_when_free().close()


@every_server
def test_a_client_that_vanishes_is_noticed(name):
    """The kernel probes silent clients, and a small reply need not wait for another packet."""
    listener = load(name).listen("127.0.0.1", 0)
    client = socket.create_connection(listener.getsockname())
    with listener, client, listener.accept()[0] as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 120


# --- The client ---------------------------------------------------------------------------------


@every_server
def test_on_a_pipe_it_copies_both_ways(name, running):
    """Standard input goes to the server, its replies to standard output, to the last byte."""
    expected = b"12\n34" if name == "server4" else b"12\n34\n"
    assert run("client", running(name).port, input=b"12\n34") == (0, expected, "")


def test_it_tells_when_the_server_closes_early():
    """Before all of the input was sent: status 1, and a line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command("client", port), **pipes) as client:
            listener.accept()[0].close()
            line = b"client: the server has closed the connection"
            assert client.stderr.read().rstrip() == line
            assert client.wait(WAIT) == 1


def test_at_a_terminal_it_shows_each_reply():
    """After the two questions; an empty answer means what is in brackets."""
    with Server("server3") as server, Terminal("client") as terminal:
        terminal.shows("Host [127.0.0.1]: ")
        terminal.type("\r")
        terminal.shows("Port [10000]: ")
        terminal.type(f"{server.port}\r")
        terminal.shows(f"Connected to 127.0.0.1:{server.port}. ")
        terminal.shows("> ")
        terminal.type("6*7\r")
        terminal.shows("6*7\r\n42\r\n> ")
        terminal.type("bye\r")
        assert terminal.ends() == (0, "bye\r\n")


def test_a_refusal_says_that_server1_may_have_a_client():
    """And `host:port` is refused with a hint, since a lone number is a port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    status, _, errors = run("client", port)
    assert (status, errors.count("\n"), "server1" in errors) == (1, 1, True)
    status, _, errors = run("client", "localhost:10000")
    assert (status, errors.count("\n"), "two words" in errors) == (1, 1, True)
