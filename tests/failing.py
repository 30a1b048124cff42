"""Run a server whose system calls fail now and then.

    python3 tests/failing.py accept,recv python3 server3.py 0

The first argument names the calls. When the server listens, every third of each fails, with one
error after the other, until each that the system knows has been raised. A line on standard error
says when there is none left. The second argument, the interpreter, is not used: so these words can
stand before any command that starts a script.
"""

import errno
import itertools
import os
import runpy
import select
import socket
import sys

DONE = "every error has been raised"

real_listen = socket.socket.listen
real_write = os.write
listens = False
failing = set()  # the names of the calls that have not raised every error


def listen(listener, backlog):
    """Listen, and from then on let calls fail."""
    global listens
    real_listen(listener, backlog)
    listens = True


def sometimes(name, call):
    """Return the call in a form that raises each error once. close() does its work first."""
    errors = iter(errno.errorcode)
    calls = itertools.count(1)
    failing.add(name)

    def replacement(*arguments):
        error = None
        if listens and next(calls) % 3 == 0:
            error = next(errors, None)
            if error is None and name in failing:
                failing.remove(name)
                if not failing:
                    real_write(2, f"{DONE}\n".encode())
        if error is None or name == "close":
            result = call(*arguments)
        if error:
            raise OSError(error, os.strerror(error))
        return result

    return replacement


def main():
    """Replace the calls, and run the script as the main program."""
    _, names, _, script, *arguments = sys.argv
    socket.socket.listen = listen
    for name in names.split(","):
        owner = {"select": select, "write": os}.get(name, socket.socket)
        setattr(owner, name, sometimes(name, getattr(owner, name)))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
