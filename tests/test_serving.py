"""Service: whom each server serves, the lines of servers 1 to 3, and the echo of server4."""

import contextlib
import os
import re
import select
import signal
import socket
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    CALCULATORS,
    CROWDED,
    SERVERS,
    WAIT,
    Server,
    answered,
    ask,
    close_with_reset,
    crowd,
    load,
    posix,
    read_all,
    read_line,
    until,
)

TOO_LONG = b"error: line longer than 1024 bytes\n"
calculators = pytest.mark.parametrize("name", CALCULATORS)
crowded = pytest.mark.parametrize("name", CROWDED)
servers = pytest.mark.parametrize("name", SERVERS)


@contextlib.contextmanager
def sending(client, data):
    """Send the data in a thread, then close the sending side; give the thread."""

    def send():
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield thread
    thread.join(WAIT)


def exchange(client, data):
    """Send the data, close the sending side, and return all that comes back."""
    with sending(client, data):
        return read_all(client)


# --- server1: one client at a time --------------------------------------------------------------


def test_server1_refuses_others_while_it_has_a_client():
    """Others cannot connect, and do not wait; when the client has left, the next is served."""
    with Server("server1") as server:
        with server.connect() as client:
            assert answered(server, client)
            for _ in range(3):
                with pytest.raises(ConnectionError):
                    server.connect()
            assert answered(server, client)
        server.connect_when_free().close()


@posix
def test_server1_resets_those_who_connect_in_the_same_instant():
    """Of twelve clients that the kernel has connected already, one is served."""
    with Server("server1") as server:
        server.process.send_signal(signal.SIGSTOP)
        with crowd(server, 12) as clients:
            for client in clients[::2]:
                client.sendall(b"1 + 1\n")
            server.process.send_signal(signal.SIGCONT)
            assert read_line(clients[0]) == "2"
            for client in clients[1:]:
                with pytest.raises(ConnectionError):
                    client.recv(1)
            assert answered(server, clients[0])
        server.connect_when_free().close()


def test_server1_serves_a_client_that_has_waited_for_the_close():
    """It may connect again at once, 300 times in a row."""
    with Server("server1") as server:
        for number in range(300):
            with server.connect() as client:
                assert exchange(client, b"%d\n" % number) == b"%d\n" % number


def test_server1_ends_when_another_program_has_taken_the_port():
    """It serves its client to the end, then says in one line that it cannot listen again."""
    with Server("server1") as server, server.connect() as client:
        assert answered(server, client)
        with socket.create_server(("127.0.0.1", server.port)):
            assert answered(server, client)
            client.close()
            assert server.process.wait(WAIT) == 1
        line = f"server1: cannot listen on 127.0.0.1:{server.port}: "
        assert re.fullmatch(rf"\S+ connected\n\S+ disconnected\n{line}.+\n", server.log())


@servers
def test_the_port_of_a_killed_server_can_be_used_again_at_once(name):
    """Its client is still connected when the next server listens at the same port."""
    with Server(name) as server, server.connect() as client:
        assert answered(server, client)
        server.process.kill()
        server.process.wait(WAIT)
        with Server(name, server.port) as successor, successor.connect() as client:
            assert answered(successor, client)


# --- servers 2 to 4: many at once ---------------------------------------------------------------


@crowded
def test_many_chat_at_once_while_others_are_silent_slow_or_stopped(name):
    """All get their own replies, in order, beside one that floods and never reads."""
    with Server(name) as server, crowd(server, 151) as (stopped, *clients):
        silent, slow, chatting = clients[::3], clients[1::3], clients[2::3]
        stopped.setblocking(False)
        for client in slow:
            client.sendall(b"4")  # the beginning of a line
        for turn in range(20):
            with contextlib.suppress(BlockingIOError):
                while True:
                    stopped.send(b"9**1000\n" * 1000)
            for number, client in enumerate(chatting):
                client.sendall(b"%d\n" % (1000 * number + turn))
        for number, client in enumerate(chatting):
            for turn in range(20):
                assert read_line(client) == str(1000 * number + turn)
        assert [ask(client, "7") for client in silent] == ["7"] * 50
        assert [ask(client, "2") for client in slow] == ["42"] * 50


@servers
def test_a_client_that_resets_is_logged_and_hurts_nobody(name):
    """The log says why it has left; those who are there, and the next one, are served."""
    with Server(name) as server, crowd(server, 3 if name in CROWDED else 1) as clients:
        assert all(answered(server, client) for client in clients)
        host, port = clients[0].getsockname()
        close_with_reset(clients[0])
        until(lambda: f"\n{host}:{port} disconnected: " in server.log(), "the log says so")
        assert all(answered(server, client) for client in clients[1:])
        server.connect_when_free().close()


# --- servers 1 to 3: one line in, one line out --------------------------------------------------

ERROR = rb"error: [ -~]+\n"
CONVERSATION = [  # lines, and patterns of their replies
    (b"1+1\n", rb"2\n"),
    (b"\n", ERROR),
    (b"2 * 3 \r\n", rb"6\n"),
    (b"\xff\x00\xc3\n", ERROR),
    (b"1" + b"+1" * 511 + b" \n", rb"512\n"),  # 1,024 bytes
    (b"1" + b"+1" * 512 + b"\n", TOO_LONG),
    (b"1/0\n", rb"error: division by zero\n"),
    (b"1\n" + b"8" * 3000 + b"\n" + b"3\n", rb"1\n" + TOO_LONG + rb"3\n"),
    (b"4", rb"4\n"),  # the last line, without an end
]
LINES = b"".join(line for line, _ in CONVERSATION)
REPLIES = re.compile(b"".join(pattern for _, pattern in CONVERSATION))
SERVER3 = load("server3")


@calculators
@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, len(LINES)])
def test_every_line_gets_its_reply_in_whatever_segments_it_comes(name, size, running):
    """Lines come in pieces of a size, from a byte each to all of them in one."""
    with running(name).connect_when_free() as client:
        for begin in range(0, len(LINES), size):
            client.sendall(LINES[begin : begin + size])
        client.shutdown(socket.SHUT_WR)
        assert REPLIES.fullmatch(read_all(client))


@settings(deadline=None)
@given(st.sets(st.integers(1, len(LINES) - 1)))
def test_the_replies_are_the_same_wherever_the_lines_are_cut(cuts):
    """Servers 1 to 3 hold the same conversation, so one of them is enough."""
    conversation = SERVER3.Conversation()
    cuts = [0, *sorted(cuts), len(LINES)]
    replies = [conversation.feed(LINES[a:b]) for a, b in zip(cuts, cuts[1:])]
    assert REPLIES.fullmatch(b"".join(replies) + conversation.end())


@calculators
@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b"", b""),
        (b"1+1", b"2\n"),
        (b"1+1\n", b"2\n"),
        (b"1+1\n2+2\r", b"2\n4\n"),
        (b"%1024d" % 5, b"5\n"),
        (b"%1025d" % 5, TOO_LONG),
        (b"8" * 5000, TOO_LONG),
    ],
    ids=["nothing", "unended", "ended", "second", "1024", "1025", "5000"],
)
def test_the_last_line_needs_no_end(name, sent, received, running):
    """It is answered when the client closes its sending side, and then comes the end."""
    with running(name).connect_when_free() as client:
        assert exchange(client, sent) == received


@calculators
def test_thousands_of_lines_are_answered_in_order_without_waiting(name, running):
    """A client may send all its lines before it reads a reply."""
    numbers = range(10_000)
    with running(name).connect_when_free() as client:
        replies = exchange(client, b"".join(b"%d+1\n" % number for number in numbers))
    assert replies == b"".join(b"%d\n" % (number + 1) for number in numbers)


@servers
def test_a_client_that_reads_late_gets_all_that_it_is_owed(name, running):
    """It sends until all buffers, in both directions, are full, and reads only then."""
    numbers = range(6000)
    lines = b"".join(b"10**999+%0990d\n" % number for number in numbers)
    replies = b"".join(b"1%0999d\n" % number for number in numbers)
    with running(name).connect_when_free() as client:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            client.setsockopt(socket.SOL_SOCKET, option, 65536)
        with sending(client, lines) as thread:
            full = lambda: not select.select([], [client], [], 0.2)[1]  # noqa: E731
            until(lambda: full() or not thread.is_alive(), "the server waits for the client")
            assert read_all(client) == (lines if name == "server4" else replies)


IN_PARTS = """
import random, runpy, socket, sys
def send(sock, data):
    if random.random() < 0.5:
        raise BlockingIOError
    return super(socket.socket, sock).send(data[:100])
socket.socket.send = send
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["server3", "server4"])
def test_replies_that_the_kernel_takes_in_parts_arrive_whole(name):
    """A client that has sent everything stays connected until it has them all."""
    lines = b"10**999+1\n" * 20 + b"10**999"
    replies = b"1%0999d\n" % 1 * 20 + b"1%0999d\n" % 0
    prefix = (sys.executable, "-c", IN_PARTS)
    with Server(name, prefix=prefix) as server, server.connect() as client:
        assert exchange(client, lines) == (lines if name == "server4" else replies)


# --- server4: every byte comes back -------------------------------------------------------------


def test_server4_gives_every_byte_back(running):
    """Single ones as they come, without an end of line, and megabytes in order up to the end."""
    data = os.urandom(8_000_000)
    with running("server4").connect() as client:
        for number in range(256):
            client.sendall(bytes([number]))
            assert client.recv(9) == bytes([number])
        assert exchange(client, data) == data


# --- The sockets --------------------------------------------------------------------------------


@servers
def test_accepted_connections_send_at_once_and_notice_vanished_clients(name):
    """Small replies do not wait for an acknowledgement; the silent are probed within 15 minutes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(load(name).listen("127.0.0.1", 0))
        stack.enter_context(socket.create_connection(listener.getsockname()))
        sock = stack.enter_context(listener.accept()[0])
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
        if idle:  # The system lets a program say so.
            idle, interval, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (idle, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes <= 15 * 60


@posix
@servers
def test_urgent_data_disturbs_nothing(name, running):
    """A byte sent out of band is no part of a line, nor of the echo."""
    server = running(name)
    with server.connect_when_free() as client:
        client.send(b"!", socket.MSG_OOB)
        assert answered(server, client)
