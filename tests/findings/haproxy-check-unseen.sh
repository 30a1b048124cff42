#!/bin/bash
# Software: haproxy 2.6.12-1+deb12u4 (Debian 12, amd64), Python 3 standard library for the backend.
# Behaviour: in mode tcp a plain "check" (connect check, no tcp-check rules) never shows up in the
#   backend program. haproxy delays the last ACK of the handshake and then sends a reset, so the
#   kernel has no finished connection to give to accept(). haproxy still reports the server as UP.
# Expected from memory: each check is accepted like any client that connects and leaves, so recv()
#   gives b"" or raises ConnectionResetError.
# Contrast: with "tcp-check send" a real connection is made and the backend receives the bytes.
# Output seen: "connect check: status UP L4OK, accepted 0" and
#   "tcp-check send: status UP L7OK, accepted some, first data b'ping\n'".
set -euo pipefail
version=2.6.12-1+deb12u4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
apt-get download -qq "haproxy=$version" liblua5.3-0 libopentracing1 libopentracing-c-wrapper0 2>apt.log \
  || { cat apt.log; echo "changed: haproxy $version cannot be downloaded"; exit 1; }
for package in *.deb; do dpkg -x "$package" tree; done
export LD_LIBRARY_PATH="$folder/tree/usr/lib/x86_64-linux-gnu"
cat > try.py <<'PY'
import socket, subprocess, threading, time
def run(title, rules):
    seen = []
    backend = socket.create_server(("127.0.0.1", 0))
    def serve():
        while True:
            conn, _ = backend.accept()
            time.sleep(0.1)
            with conn:
                try: seen.append(conn.recv(100))
                except OSError as error: seen.append(type(error).__name__)
    threading.Thread(target=serve, daemon=True).start()
    with open("h.cfg", "w") as conf:
        conf.write("global\n stats socket unix@st.sock\ndefaults\n mode tcp\n timeout connect 2s\n"
                   " timeout client 5s\n timeout server 5s\nlisten l\n bind unix@l.sock\n"
                   "%s server s1 127.0.0.1:%d check inter 300ms\n"
                   % (rules, backend.getsockname()[1]))
    proxy = subprocess.Popen(["tree/usr/sbin/haproxy", "-db", "-f", "h.cfg"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(3)
        with socket.socket(socket.AF_UNIX) as ask:
            ask.connect("st.sock")
            ask.sendall(b"show stat\n")
            rows = [line.split(",") for line in ask.makefile().read().splitlines() if line]
        row = dict(zip(rows[0], next(r for r in rows if r[1] == "s1")))
    finally:
        proxy.terminate()
        proxy.wait()
    print("%s: status %s %s, accepted" % (title, row["status"], row["check_status"]),
          "some, first data %r" % seen[0] if seen else 0)
run("connect check", "")
run("tcp-check send", " option tcp-check\n tcp-check connect\n tcp-check send ping\\n\n")
PY
got=$(python3 try.py)
want="connect check: status UP L4OK, accepted 0
tcp-check send: status UP L7OK, accepted some, first data b'ping\n'"
echo "$got"
[ "$got" = "$want" ] || { echo "changed: expected:"; echo "$want"; exit 1; }
