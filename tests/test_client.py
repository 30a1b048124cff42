"""client.py on a pipe, at a terminal, and in a window whose streams have no descriptor."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import support
from support import WAIT, Server, Terminal, ask, close_with_reset, posix, run, until

CLIENT = support.load("client")
HERE = "127.0.0.1"
QUESTIONS = "Host [127.0.0.1]: ", "Port [10000]: "
CLOSED = "client: the server has closed the connection"


@contextlib.contextmanager
def start(*arguments, prefix=(), **options):
    """Start a client on pipes, and kill it when it takes too long."""
    options = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), **options}
    command = support.command("client", *arguments, prefix=prefix)
    with subprocess.Popen(command, bufsize=0, **options) as client:
        watchdog = threading.Timer(WAIT, client.kill)
        watchdog.start()
        yield client
        watchdog.cancel()


def ending(client):
    """Wait until a client ends, while its standard input may be open; return what run() does."""
    status = client.wait(WAIT)
    return status, client.stdout.read(), client.stderr.read().decode().replace("\r\n", "\n")


@pytest.fixture
def listener():
    """Give a listening socket, for a server that does what the test does."""
    with socket.create_server((HERE, 0)) as sock:
        sock.settimeout(WAIT)
        yield sock


# --- On a pipe ----------------------------------------------------------------------------------


def test_every_piece_is_passed_on_as_it_comes(listener):
    """Both ways, with the end of a line or without; replies also after the end of input."""
    with start(*listener.getsockname()) as client, listener.accept()[0] as sock:
        for piece in (b"1+1\n", b"half ", b"a line", b"\r\n\n", b"\0\xff\x1a"):
            client.stdin.write(piece)
            assert sock.recv(100) == piece
            sock.sendall(piece)
            assert client.stdout.read(100) == piece
        client.stdin.close()
        assert sock.recv(100) == b""
        sock.sendall(b"and more")
        assert client.stdout.read(100) == b"and more"
        sock.close()
        assert ending(client) == (0, b"", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_large_input(unbuffered, running):
    """Neither way waits for the other, with Python's -u as without it."""
    data = os.urandom(32 << 20)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = run("client", HERE, running("server4").port, input=data, env=environment)
    assert done == (0, data, "")


@posix
def test_stopped_and_continued(running, tmp_path):
    """A client that is stopped while it writes, as with Ctrl-Z, loses nothing."""
    path, data, received = tmp_path / "input", os.urandom(1 << 20), b""
    path.write_bytes(data)
    with path.open() as file, start(HERE, running("server4").port, stdin=file) as client:
        while piece := client.stdout.read(10_000):
            received += piece
            client.send_signal(signal.SIGSTOP)
            client.send_signal(signal.SIGCONT)
    assert received == data


def test_server_closes_after_the_input(monkeypatch):
    """That is no lost connection, however soon it comes, and however late."""
    with open(os.devnull) as source, open(os.devnull, "w") as sink, ThreadPoolExecutor() as pool:
        monkeypatch.setattr(sys, "stdin", source)
        monkeypatch.setattr(sys, "stdout", sink)
        for _ in range(300):
            ours, theirs = socket.socketpair()
            ours.settimeout(0)  # relay() lifts it: on a pipe, a server may take any time.
            theirs.settimeout(WAIT)
            with ours:
                client = pool.submit(CLIENT.relay, ours)
                with theirs:
                    assert theirs.recv(1) == b""
                client.result()  # It raises no ConnectionError.


@pytest.mark.parametrize("close", [socket.socket.close, close_with_reset])
def test_server_closes_before_the_end_of_input(close, listener):
    """The client shows what the server said, then one line, and does not wait for input."""
    with start(*listener.getsockname()) as client:
        sock = listener.accept()[0]
        sock.sendall(b"error: server full\n")
        assert client.stdout.read(100) == b"error: server full\n"
        close(sock)
        assert ending(client) == (1, b"", f"{CLOSED}\n")


def test_server_closes_in_the_middle_of_input(listener):
    """If the server leaves while the client sends, there is one line, and status 1."""
    threading.Thread(target=lambda: listener.accept()[0].close()).start()
    done = run("client", *listener.getsockname(), input=bytes(8 << 20))
    assert done == (1, b"", f"{CLOSED}\n")


def test_reader_goes(running):
    """When its reader closes the pipe (| head), the client ends without a word."""
    with start(HERE, running("server4").port) as client:
        client.stdout.close()
        with contextlib.suppress(OSError):  # The client has ended.
            while True:
                client.stdin.write(b"1\n" * 1000)
        assert (client.wait(WAIT), client.stderr.read()) == (1, b"")


@posix
@pytest.mark.parametrize("asking", [True, False])
def test_ctrl_c_on_a_pipe(asking, running):
    """Ctrl-C ends a client on a pipe as a signal does, at a question too."""
    with start(*([] if asking else [HERE, running("server4").port])) as client:
        client.stdin.write(b"\n")
        assert (client.stderr if asking else client.stdout).read(1)
        client.send_signal(signal.SIGINT)
        status, _, err = ending(client)
    assert (status, "Traceback" in err) == (-signal.SIGINT, False)


@posix
@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy never leaves it ignored")
def test_ignored_ctrl_c_stays_ignored(running):
    """In a background job of a script, Ctrl-C is not for the client."""
    prefix = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
    with start(HERE, running("server4").port, prefix=prefix) as client:
        client.stdin.write(b"1\n")
        assert client.stdout.read(100) == b"1\n"
        client.send_signal(signal.SIGINT)
        client.stdin.close()
        assert ending(client) == (0, b"", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", " 127.0.0.1 \r"])
def test_questions_on_a_pipe(host, running):
    """The first two lines are the answers; the rest is for the server, all of it."""
    lines = f"{host}\n{running('server3').port}\n1+2\n2**10\n".encode()
    assert run("client", input=lines) == (0, b"3\n1024\n", "".join(QUESTIONS))


@pytest.mark.parametrize("source", ["", "cat | "])
@pytest.mark.parametrize(("stream", "content"), [("1", "3\n"), ("2", "")])
def test_questions_are_seen(source, stream, content, running, tmp_path):
    """Standard output or error may be a file: the question goes to the other, the terminal."""
    script = f'{source}"$@" {stream}> "{tmp_path}/file"'
    with Terminal("client", prefix=("sh", "-c", script, "sh")) as terminal:
        for question, answer in zip(QUESTIONS, ("", running("server3").port)):
            terminal.shows(question)
            terminal.type(f"{answer}\r")
        terminal.type("1+2\r")
        until(lambda: (tmp_path / "file").read_text() == content, content)


@pytest.mark.parametrize(
    ("arguments", "lines", "words"),
    [
        ([HERE, "abc"], b"", "'abc' is not a port"),
        (["65536"], b"", "'65536' is not a port"),
        ([], b"\nabc\n1\n", "'abc' is not a port"),
        (["localhost:10000"], b"", "two words"),
        (["[::1]:10000"], b"", "two words"),
        (["::1%no-such", "1"], b"", "[::1%no-such]:1: "),
        ([], b"a..b", "a..b:10000: "),
    ],
)
def test_bad_address(arguments, lines, words):
    """What is no address, or does not resolve, gets one line, status 1, and no new question."""
    status, out, err = run("client", *arguments, input=lines)
    assert (status, out) == (1, b"")
    assert re.fullmatch(r"(Host \S+ Port \S+ )?client: .+\n", err)
    assert words in err


def test_refused_by_server1():
    """The line for a refused connection says that server1 refuses while it has a client."""
    with Server("server1") as server, server.connect() as first:
        assert ask(first, "1 + 1") == "2"
        status, out, err = run("client", HERE, server.port)
    assert (status, out) == (1, b"")
    assert re.fullmatch(rf"client: .*{HERE}:{server.port}: .*server1.*\n", err)


# --- At a terminal ------------------------------------------------------------------------------


def test_terminal(running):
    """The questions, where it is connected and how to leave, and then prompts and replies."""
    port = running("server3").port
    with Terminal("client") as terminal:
        for question, answer in zip(QUESTIONS, ("", port)):
            terminal.shows(question)
            terminal.type(f"{answer}\r")
        welcome = terminal.shows("\r\n> ")
        assert all(word in welcome for word in (f"{HERE}:{port}", "bye", "Ctrl-C"))
        for line, reply in (("12*(3+4)-7/2", "80.5"), ("1/0", "error: division by zero")):
            terminal.type(f"{line}\r")
            assert terminal.shows("\r\n> ") == f"{line}\r\n{reply}\r\n> "


@pytest.mark.parametrize("leave", ["bye\r", " exit \r", "quit\r", "\x04", "\x03"])
def test_leaving(leave, running):
    """Each way out ends with status 0, and with the cursor at the beginning of a line."""
    with Terminal("client", HERE, running("server4").port) as terminal:
        terminal.shows("> ")
        terminal.type(leave.replace("\x03", ""))
        status, rest = terminal.interrupt() if leave == "\x03" else terminal.ends()
        assert (status, rest[-2:]) == (0, "\r\n")


def test_ctrl_c_at_a_question():
    """Ctrl-C leaves while the client asks, too."""
    with Terminal("client") as terminal:
        terminal.shows(QUESTIONS[0])
        status, rest = terminal.interrupt()
        assert (status, rest[-2:]) == (0, "\r\n")


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="needs more than a dumb terminal")
def test_editing_and_pasting(running):
    """Where there is readline, the last line comes back, and all lines of a paste get replies."""
    pytest.importorskip("readline")
    with Terminal("client", HERE, running("server3").port) as terminal:
        for typed, replies in (
            ("40+2\r", [42]),
            ("\x1b[A\x7f5\r", [45]),  # the arrow key: 40+2 comes back, and becomes 40+5
            ("10+1\r20+2\x16\n30+3\r", [11, 22, 33]),  # Ctrl-V: \n is a part of the line
        ):
            terminal.shows("> ")
            terminal.type(typed)
            for reply in replies:
                terminal.shows(f"\n{reply}\r")


@pytest.mark.parametrize("close", [socket.socket.close, close_with_reset])
def test_server_has_gone(close, listener):
    """Half a reply is shown, escaped; the next line says that the connection is closed."""
    with Terminal("client", *listener.getsockname()) as terminal, listener.accept()[0] as sock:
        terminal.shows("> ")
        sock.sendall(b"half \xff\x1b[2J")
        sock.shutdown(socket.SHUT_WR)
        terminal.type("1\r")
        assert r"xff\x1b[2J" in terminal.shows("\r\n> ")
        assert sock.recv(100) == b"1\n"
        close(sock)
        terminal.type("2\r")
        assert terminal.ends() == (1, f"2\r\n{CLOSED}\r\n")


class Window(io.StringIO):
    """A stream of a window like IDLE's or Thonny's: a terminal that has no descriptor."""

    def isatty(self):
        """Say that a person sits there."""
        return True


def at_window(monkeypatch, *arguments, typed=""):
    """Run the client in a window; return its last words, if any, and all that the window shows."""
    screen = Window()
    monkeypatch.setattr(CLIENT, "relay", None)  # It is for pipes.
    monkeypatch.setattr(sys, "argv", ["client.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", Window(typed))
    monkeypatch.setattr(sys, "stdout", screen)
    try:
        return CLIENT.main(), screen.getvalue()
    except SystemExit as error:
        return error.code, screen.getvalue()


def test_window(monkeypatch, running):
    """It shows the questions, the chat and its replies, and takes what is typed there."""
    typed = f"\n{running('server3').port}\n1+2\n2**10\nbye\n"
    last, screen = at_window(monkeypatch, typed=typed)
    assert last is None
    assert re.fullmatch(r"Host .*: Port .*: Connected to .*\n> 3\n> 1024\n> ", screen)


def test_control_characters(monkeypatch, running):
    """Those of a reply are shown escaped; letters of any script are shown as they are."""
    lines = ["\x1b]0;owned\x07", "\x9b2J", "a\rb\tc\x7f\0\u202e\u2028"]
    typed = "\n".join([*lines, "héllo ✓ 日本語", "bye\n"])
    _, screen = at_window(monkeypatch, HERE, running("server4").port, typed=typed)
    assert screen.replace("\n", "").isprintable()
    assert all(ascii(line)[1:-1] in screen for line in lines)
    assert "\n> héllo ✓ 日本語\n" in screen


@pytest.mark.parametrize("arguments", ["", "127.0.0.1", "10000", "127.0.0.1 10000"])
def test_address(arguments, monkeypatch):
    """HOST alone means port 10000, a lone number is a port, and no answer means the default."""
    connect = mock.Mock(side_effect=socket.timeout("timed out"))
    monkeypatch.setattr(socket, "create_connection", connect)
    last, _ = at_window(monkeypatch, *arguments.split())
    assert connect.call_args == mock.call((HERE, 10000), timeout=10)
    assert re.fullmatch("client: .+", last)


def test_server_that_never_answers(monkeypatch, listener):
    """A reply that takes more than 10 seconds is given up with one line (here, 0.1 seconds)."""
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda to, timeout: real(to, timeout / 100))
    last, _ = at_window(monkeypatch, *listener.getsockname(), typed="1\n2\n")
    assert re.fullmatch("client: .+", last)
