"""Run a script on this system without what Windows or macOS lack.

    python3 tests/elsewhere.py python3 server3.py 0

The first argument, the interpreter, is not used: so these words can stand before any command that
starts a script. The names that another system does not have are deleted, its missing modules
cannot be imported, and some calls fail in the way that they do on Windows.
"""

import argparse  # noqa: F401  (as is shutil: it looks at sys.platform when it is imported)
import errno
import faulthandler
import os
import runpy
import select
import shutil  # noqa: F401
import signal
import socket
import stat
import sys

MISSING = {
    signal: ("SIGALRM", "SIGKILL", "SIGPIPE", "alarm", "pthread_sigmask", "setitimer"),
    socket: ("AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL", "SO_REUSEPORT", "TCP_USER_TIMEOUT"),
    select: ("epoll", "kqueue", "poll"),
    os: ("fork", "get_blocking", "set_blocking", "sysconf"),
}
MISSING_MODULES = ("fcntl", "pty", "readline", "resource", "termios")
SELECT_LIMIT = 512  # sockets in a list
PATIENCE = 60  # seconds after which a script that still runs has failed, and is ended
PEEK = getattr(socket, "MSG_PEEK", 0) | getattr(socket, "MSG_DONTWAIT", 0)

real_accept = socket.socket.accept
real_bind = socket.socket.bind
real_select = select.select
real_set_blocking = os.set_blocking
real_write = os.write


def select_sockets(reading, writing, exceptional, timeout=None):
    """Call select as Windows has it: for sockets, at least one, and at most 512 in a list."""
    for sockets in (reading, writing, exceptional):
        if len(sockets) > SELECT_LIMIT:
            raise ValueError("too many file descriptors in select()")
        for one in sockets:
            descriptor = one if isinstance(one, int) else one.fileno()
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    if not (reading or writing or exceptional):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return real_select(reading, writing, exceptional, timeout)


def accept_connected(listener):
    """Accept a connection, which inherits from the listener that its calls do not wait.

    When the client has reset it already, this raises ConnectionResetError, as Windows does. With
    IPv6 it returns no address, as macOS does.
    """
    sock, peer = real_accept(listener)
    if listener.gettimeout() == 0:
        real_set_blocking(sock.fileno(), False)
    try:
        sock.recv(1, PEEK)
    except BlockingIOError:
        pass  # It is connected, and silent.
    except ConnectionResetError:
        if listener.family == socket.AF_INET6:
            return sock, None
        sock.close()
        raise
    return sock, peer


def bind(sock, address):
    """Bind a socket. Connections at the same address are no obstacle."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    real_bind(sock, address)


def write(descriptor, data):
    """Write to a descriptor. A pipe that nobody reads any more is an invalid argument."""
    try:
        return real_write(descriptor, data)
    except BrokenPipeError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None


def main():
    """Take away what is missing elsewhere, and run the script as the main program."""
    _, _, script, *arguments = sys.argv
    for module, names in MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in dir(socket):
        if name.startswith("TCP_KEEP"):
            delattr(socket, name)
    sys.modules.update(dict.fromkeys(MISSING_MODULES))  # None: an ImportError
    sys.platform = "win32"
    select.select = select_sockets
    socket.socket.accept = accept_connected
    socket.socket.bind = bind
    os.write = write
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
