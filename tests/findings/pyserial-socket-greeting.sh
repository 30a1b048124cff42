#!/bin/bash
# Software: pyserial 3.5 (PyPI), serial_for_url("socket://127.0.0.1:PORT").
# Behaviour: open() ends with reset_input_buffer(), so whatever the server sent before open() is
#   done is thrown away: a greeting sent at once on accept is usually lost. And in_waiting is
#   no count for a socket: with 100 bytes ready it is 1.
# Expected from memory: the greeting waits in the socket like for any TCP client (in_waiting gives
#   its length, or 1 for "something is there"), and read() returns it.
# The 0.3 s pause after connect only makes the race certain; nothing else is altered.
# Output seen: "greeting: in_waiting 0, read b''", "after open: in_waiting 1, read 100 bytes".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pyserial==3.5 2>pip.log \
  || { cat pip.log; echo "changed: pyserial 3.5 cannot be installed"; exit 1; }
cat > try.py <<'PY'
import socket, threading, time
import serial
listener = socket.create_server(("127.0.0.1", 0))
opened = threading.Event()
def serve():
    conn, _ = listener.accept()
    conn.sendall(b"hello\n")
    opened.wait(10)
    conn.sendall(b"x" * 100)
    conn.recv(1)
threading.Thread(target=serve, daemon=True).start()
connect = socket.create_connection
def connect_then_pause(*args, **kwargs):
    conn = connect(*args, **kwargs)
    time.sleep(0.3)
    return conn
socket.create_connection = connect_then_pause
port = serial.serial_for_url("socket://127.0.0.1:%d" % listener.getsockname()[1], timeout=1)
print("greeting: in_waiting %d, read %r" % (port.in_waiting, port.read(6)))
opened.set()
time.sleep(0.3)
print("after open: in_waiting %d, read %d bytes" % (port.in_waiting, len(port.read(100))))
port.close()
PY
got=$(venv/bin/python try.py)
want="greeting: in_waiting 0, read b''
after open: in_waiting 1, read 100 bytes"
echo "$got"
[ "$got" = "$want" ] || { echo "changed: expected:"; echo "$want"; exit 1; }
