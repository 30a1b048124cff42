"""The servers' command line: the question for the port, the arguments, the banner, the end."""

import contextlib
import errno
import itertools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from support import (
    POSIX,
    ROOT,
    SERVERS,
    WAIT,
    Server,
    Terminal,
    address_in_use,
    ask,
    load,
    needs_ipv6,
    posix,
    read_all,
    run,
    until,
)

# A server told to listen at this address names the port that it wanted, and never takes it.
NO_ADDRESS = ("-b", "a..b")
WITHOUT_STDIN = ("sh", "-c", 'exec "$@" <&-', "sh")
UNREADABLE_STDIN = ("sh", "-c", 'exec "$@" 0>/dev/null', "sh")
DEFAULT_PORT = load("server1").DEFAULT_PORT
QUESTION = f"Port [{DEFAULT_PORT}]: "
NO_PORTS = ("abc", "70000", "65536", "-1", "1.5", "0x10", "", " ", "٣", "9" * 5000, "\x1b[2J")
DROP_ROOT_PORTS = ("setpriv", "--bounding-set=-net_bind_service")

every_server = pytest.mark.parametrize("name", SERVERS)


def spread(cases):
    """Return the cases, each with the name of a server, in turn: main is the same in all four."""
    return list(zip(itertools.cycle(SERVERS), cases))


def stdin_with(data):
    """Return the reading end of a pipe in which data waits, and then the end."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def serves(server, sock=None):
    """Return whether the server answers a client."""
    with sock or server.connect() as sock:
        return ask(sock, "1+1") == ("1+1" if server.name == "server4" else "2")


# --- The question -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    spread([b"", b"\n", b"  \t \r\n", *([WITHOUT_STDIN, UNREADABLE_STDIN] if POSIX else [])]),
)
def test_no_answer_is_port_10000(name, answer):
    """A blank line, the end of input, and an input that is closed all mean port 10000."""
    options = {"input": answer} if isinstance(answer, bytes) else {"prefix": answer}
    status, out, err = run(name, *NO_ADDRESS, **options)
    assert status == 1
    assert out == b""
    assert re.fullmatch(rf"{name}: cannot listen on a\.\.b:10000: .+\n", err)


@pytest.mark.parametrize(
    ("name", "case"),
    spread([(b"0\n", 0), (b" 0 \r\n", 0), (b"0", 0), (b"abc\n70000\n-1\n\xff\n0\n1\n", 4)]),
)
def test_question_on_a_pipe(name, case):
    """The answer is read from a pipe too, without the words of the question, until it is good."""
    answers, complaints = case
    stdin = stdin_with(answers)
    with Server(name, "-b", "127.0.0.1", stdin=stdin) as server:
        os.close(stdin)
        assert server.port != 0
        lines = server.log().splitlines()
        assert len(lines) == complaints
        assert all("port" in line and "Port [" not in line for line in lines)
        assert serves(server)


@every_server
def test_bad_answers_are_named(name):
    """The line after a bad answer quotes it; a blank one afterwards is still the default."""
    status, out, err = run(name, *NO_ADDRESS, input=b"abc\n70000\n\n")
    assert (status, out) == (1, b"")
    first, second, third = err.splitlines()
    assert "abc" in first
    assert "70000" in second
    assert f"a..b:{DEFAULT_PORT}" in third


@pytest.mark.parametrize(
    ("name", "answers"), spread([b"abc\n", b"abc", b"70000\n65536\n", b"\x1b[2J\n"])
)
def test_end_after_a_bad_answer(name, answers):
    """The end of input after a bad answer ends the program with status 2."""
    status, out, err = run(name, input=answers)
    assert (status, out) == (2, b"")
    assert len(err.splitlines()) == len(answers.splitlines())
    assert "Traceback" not in err
    assert "\x1b" not in err


@every_server
def test_question_at_a_terminal(name):
    """At a terminal the question is shown, and again after each bad answer."""
    with Terminal(name, "-b", "127.0.0.1") as terminal:
        terminal.shows(QUESTION)
        for answer in ("abc", "70000"):
            terminal.type(f"{answer}\r")
            shown = terminal.shows(QUESTION)
            assert len(shown.splitlines()) == 3  # what is typed, what is wrong, the question
        terminal.type("0\r")
        terminal.shows(f"{name} listening on 127.0.0.1:")
        status, rest = terminal.interrupt()
        assert status == -signal.SIGINT
        assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("name", "case"), spread([("\x04", 1), ("\r", 1), ("abc\r\x04", 2), ("70000\r\x04", 2)])
)
def test_ctrl_d_at_the_question(name, case):
    """Ctrl-D at the first question means the default, as blank does; after a bad answer it ends."""
    typed, status = case
    with Terminal(name, *NO_ADDRESS) as terminal:
        for key in typed.partition("\r"):
            if key.strip("\r"):
                terminal.shows(QUESTION)
            terminal.type(key)
        ended, _ = terminal.ends()
        assert ended == status
        assert (f"a..b:{DEFAULT_PORT}" in terminal.screen) == (status == 1)
        assert "Traceback" not in terminal.screen


# --- The arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("port", NO_PORTS)
def test_bad_port_argument(port):
    """A PORT that is not a port ends the program with status 2, without a question."""
    status, out, err = run("server3", "--", port, input=b"0\n")
    assert (status, out) == (2, b"")
    assert "Traceback" not in err
    assert "PORT" in err.splitlines()[-1]
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("name", "arguments"), spread([("abc",), ("-1",), ("70000",), ("0", "0"), ("--no-such",)])
)
def test_bad_arguments(name, arguments):
    """Arguments that are wrong end a server with status 2."""
    status, out, err = run(name, *arguments)
    assert (status, out) == (2, b"")
    assert "Traceback" not in err


@every_server
def test_help(name):
    """-h says how to call the program."""
    status, out, err = run(name, "-h")
    assert (status, err) == (0, "")
    assert b"PORT" in out
    assert b"--bind" in out


@every_server
def test_port_zero_is_any_free_port(name):
    """PORT 0 means a free port, each time."""
    with Server(name, "0") as one, Server(name, "0") as other:
        assert len({0, one.port, other.port}) == 3
        assert serves(one)
        assert serves(other)


@every_server
def test_banner(name):
    """The server says where it listens in one line, at once, and nothing more on that stream."""
    with Server(name) as server:  # which reads that line from a pipe
        assert server.banner == f"{name} listening on 127.0.0.1:{server.port}\n"
        assert server.log() == ""
        assert serves(server)
        server.stop()
        assert server.process.stdout.read() == b""


@pytest.mark.parametrize(
    ("name", "address"), spread(["localhost", "0.0.0.0", "127.0.0.1", "127.1"])
)
def test_bind(name, address):
    """-b takes an address or a host name."""
    with Server(name, "-b", address, "0") as server:
        assert serves(server)


@every_server
@needs_ipv6
def test_bind_to_ipv6(name):
    """-b ::1 works, and the banner has the address in brackets; also between clients."""
    with Server(name, "--bind", "::1", "0") as server:
        assert server.banner == f"{name} listening on [::1]:{server.port}\n"
        assert serves(server)
        assert serves(server, server.connect_to_idle())
        status, _, err = run(name, "-b", "::1", server.port)
        assert status == 1
        assert err.startswith(f"{name}: cannot listen on [::1]:{server.port}: ")


@every_server
def test_port_in_use(name):
    """A port that another program uses gets one line, and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = run(name, port)
    assert (status, out) == (1, b"")
    assert err == f"{name}: cannot listen on 127.0.0.1:{port}: {address_in_use()}\n"


@every_server
def test_port_in_use_by_a_server(name):
    """A port that another server uses gets one line, and status 1. The other serves on."""
    with Server(name) as server:
        status, out, err = run(name, server.port)
        assert (status, out) == (1, b"")
        reason = address_in_use()
        assert err == f"{name}: cannot listen on 127.0.0.1:{server.port}: {reason}\n"
        assert serves(server)


@pytest.mark.parametrize(
    ("name", "address"), spread(["a..b", "192.0.2.1", "::1%no-such", "a" * 64, "no host"])
)
def test_unknown_address(name, address):
    """An address that is not of this machine, or of any, gets one line, and status 1."""
    status, out, err = run(name, "-b", address, "0")
    assert (status, out) == (1, b"")
    shown = f"[{address}]:0" if ":" in address else f"{address}:0"
    assert re.fullmatch(rf"{name}: cannot listen on {re.escape(shown)}: .+\n", err)


@posix
@every_server
def test_port_that_needs_root(name):
    """A port that only root may use gets one line, and status 1."""
    first = pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if first.exists() and int(first.read_text()) < 2:
        pytest.skip("here everybody may use all ports")
    prefix = ()
    if os.geteuid() == 0:
        prefix = DROP_ROOT_PORTS
        if not shutil.which("setpriv"):
            pytest.skip("run as root, and no setpriv")
    status, out, err = run(name, "1", prefix=prefix)
    assert (status, out) == (1, b"")
    assert err == f"{name}: cannot listen on 127.0.0.1:1: {os.strerror(errno.EACCES)}\n"


@posix
@every_server
def test_closed_standard_input(name):
    """A server that has a PORT needs no standard input."""
    with Server(name, "0", prefix=WITHOUT_STDIN) as server:
        assert serves(server)


# --- The log, and the end -----------------------------------------------------------------------


@every_server
def test_log(name):
    """Standard error gets a line when a client connects, and one when it disconnects."""
    with Server(name) as server, server.connect() as sock:
        peer = "{}:{}".format(*sock.getsockname())
        assert ask(sock, b"31337+0")
        sock.close()
        until(lambda: server.log().count("\n") == 2, "two lines")
        assert server.log() == f"{peer} connected\n{peer} disconnected\n"


def clients_of_all_kinds(server):
    """Return clients that the server has accepted: silent, in the middle of a line, not reading."""
    kinds = [b"", b"1+", b"2**10\n" * 200_000]
    clients = []
    for kind in kinds[-1:] if server.name == "server1" else kinds:
        sock = server.connect()
        assert ask(sock, b"0") == "0"
        sock.setblocking(False)
        if kind:
            sock.send(kind)  # so the server is answering when the signal comes, or has to wait
        sock.setblocking(True)
        sock.settimeout(WAIT)
        clients.append(sock)
    return clients


@posix
@every_server
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop(name, number, busy):
    """A signal ends the server as signals do, within a second; its port can be used at once."""
    with Server(name) as server:
        clients = clients_of_all_kinds(server) if busy else []
        status, seconds = server.stop(number)
        assert status == -number
        assert seconds < 1
        assert "Traceback" not in server.log()
        with Server(name, str(server.port)) as next_one:
            assert next_one.port == server.port
            assert serves(next_one)
        for sock in clients:
            with sock, contextlib.suppress(ConnectionResetError):
                read_all(sock)  # it ends


@every_server
def test_ctrl_c_at_the_question(name):
    """Ctrl-C at the question ends the server as the signal does, without a traceback."""
    with Terminal(name, *NO_ADDRESS) as terminal:
        terminal.shows(QUESTION)
        status, rest = terminal.interrupt()
        assert status == -signal.SIGINT
        assert "Traceback" not in rest


@posix
@pytest.mark.parametrize("name", SERVERS)
def test_bad_answer_without_standard_error(name):
    """If standard error is closed, a bad answer is not reported anywhere else."""
    status, out, _ = run(
        name, *NO_ADDRESS, input=b"abc\n\n", prefix=("sh", "-c", 'exec "$@" 2>&-', "sh")
    )
    assert (status, out) == (1, b"")


@every_server
def test_question_without_standard_error(name):
    """If standard error is closed, the question is not written anywhere else."""
    prefix = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    with Terminal(name, *NO_ADDRESS, prefix=prefix) as terminal:
        terminal.type("0\r")
        status, _ = terminal.ends()
        assert status == 1
        assert QUESTION not in terminal.screen


@pytest.mark.parametrize("name", [*SERVERS, "client"])
def test_without_docstrings(name):
    """The scripts run under python -OO, which takes the docstrings away."""
    command = [sys.executable, "-OO", str(ROOT / f"{name}.py"), "-h"]
    done = subprocess.run(command, capture_output=True, timeout=WAIT)
    assert (done.returncode, done.stderr) == (0, b"")
