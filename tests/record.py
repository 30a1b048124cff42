"""Record the pictures of the README: real sessions of the real scripts, as animated SVG.

    python3 tests/record.py

writes .github/server1.svg, .github/server3.svg and the still .github/chat.svg. It needs tmux,
which is the terminals, and port 10000. It types, looks at the screens after each key, and draws
what it saw: each row that was seen is a text, which an animation shows for its time.
"""

import html
import itertools
import os
import pathlib
import re
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEY, THINK, HOLD = 0.08, 0.6, 4  # seconds: after a key, before a line, for the last screen
ENVIRONMENT = {"PATH": os.environ["PATH"], "PS1": "$ ", "LANG": "C.UTF-8", "HISTFILE": "/dev/null"}
ROWS = 12  # of each terminal
TERMINALS = {  # name: columns, and the left, the top, the width and the height in the picture
    "server": (36, 1, 1, 332, 532),
    "client 1": (62, 345, 1, 556, 260),
    "client 2": (62, 345, 273, 556, 260),
}
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 902 534" width="902" height="534" role="img">
<title>%s</title>
<style>
text { font: 14px Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre }
rect { fill: #0d1117; stroke: #30363d }
.said { fill: #9fb0c3 } .typed { fill: #fff } .error { fill: #ff7b72 }
.moves { animation: %.2fs step-end infinite } .gone { visibility: hidden }
@media (prefers-reduced-motion: reduce) { .moves { animation: none } }
"""


class Recording:
    """Three terminals, and what they have shown."""

    def __init__(self, socket):
        self.socket = socket
        self.last = {}  # by terminal: its last line that is not blank
        self.frames = []  # at each change: the time, and all rows, by terminal and number
        commands = ["start-server", ";", "set-option", "-g", "status", "off"]
        for name, (columns, *_) in TERMINALS.items():
            commands += [";", "new-session", "-d", "-s", name, "-x", str(columns), "-y", str(ROWS)]
            commands += ["sh", "-i"]
        self.tmux(*commands)

    def tmux(self, *arguments):
        """Run tmux commands; return what they print."""
        command = ["tmux", "-f", "/dev/null", "-S", self.socket, *arguments]
        return subprocess.check_output(command, cwd=ROOT, env=ENVIRONMENT, encoding="utf-8")

    def look(self):
        """Look at the terminals. If they have changed, add a frame."""
        rows = {}
        for name, (columns, *_) in TERMINALS.items():
            # With -J, a line that takes two rows is one line, and so has one colour.
            ask = ["display-message", "-p", "-t", name, "#{cursor_x} #{cursor_y}", ";"]
            cursor, *lines = self.tmux(*ask, "capture-pane", "-pJ", "-t", name).splitlines()
            screen = []
            for line in map(str.rstrip, lines):
                self.last[name] = line or self.last.get(name)
                parts = re.findall(f".{{1,{columns}}}", line) or [""]
                screen += [(colour(line), part) for part in parts]
            x, y = map(int, cursor.split())
            screen[y] = screen[y][0], screen[y][1].ljust(x) + "█"
            rows.update(((name, number), row) for number, row in enumerate(screen))
        if not self.frames or rows != self.frames[-1][1]:
            self.frames.append((time.monotonic(), rows))

    def wait(self, names, last):
        """Look until the last line of these terminals is `last`."""
        deadline = time.monotonic() + 10
        while self.look() or any(self.last[name] != last for name in names):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waiting for {last!r}, the last lines are {self.last}")
            time.sleep(0.02)

    def enter(self, then, texts):
        """Type {terminal: text}, all at once, and wait until their last line is `then`."""
        time.sleep(THINK)
        lines = [f"{text}\r" for text in texts.values()]  # Enter sends CR.
        for keys in itertools.zip_longest(*lines, fillvalue=""):
            for name, key in zip(texts, keys):
                self.tmux("send-keys", "-t", name, "-l", "--", key)
            time.sleep(KEY)
            self.look()
        self.wait(texts, then)

    def start(self, server):
        """Start a server on the port that it proposes."""
        self.wait(TERMINALS, "$")
        self.enter("Port [10000]:", {"server": f"python3 {server}.py"})
        self.enter(f"{server} listening on 127.0.0.1:10000", {"server": ""})

    def connect(self, client, then=">"):
        """Start a client, which connects to the host and the port that it proposes."""
        self.enter("Host [127.0.0.1]:", {client: "python3 client.py"})
        self.enter("Port [10000]:", {client: ""})
        self.enter(then, {client: ""})


def one_at_a_time(recording):
    """server1: a second client is refused, and served after the first has left."""
    recording.start("server1")
    recording.connect("client 1")
    recording.enter(">", {"client 1": "2 + 3 * 4"})
    recording.connect("client 2", then="$")  # refused
    time.sleep(2)
    recording.enter(">", {"client 1": "2 ** 64"})
    recording.enter("$", {"client 1": "bye"})
    recording.connect("client 2")
    recording.enter(">", {"client 2": "6 * 7"})


def both_at_once(recording):
    """server3: two clients are served at the same time."""
    recording.start("server3")
    recording.connect("client 1")
    recording.connect("client 2")
    recording.enter(">", {"client 1": "2 + 3 * 4", "client 2": "0.1 + 0.2"})
    recording.enter(">", {"client 1": "2 ** 100", "client 2": "(1 + 2) / 4"})
    recording.enter(">", {"client 1": "-7 // 2", "client 2": "1 / 0"})


def colour(line):
    """Return the class of a line: what was typed, an error, or what else the scripts said."""
    classes = {"$": "typed", ">": "typed", "client:": "error", "error:": "error"}
    return classes.get(line.partition(" ")[0], "said")


def stretches(frames, length):
    """Yield all that rows have shown: terminal, row, class, text, and from when to when."""
    for place in frames[0][1]:
        shown = [(seconds - frames[0][0], rows[place]) for seconds, rows in frames]
        changes = [next(same) for _, same in itertools.groupby(shown, key=lambda item: item[1])]
        for (begin, (kind, text)), (end, _) in zip(changes, [*changes[1:], (length, None)]):
            if text:
                yield *place, kind, text, begin, end


def draw(title, frames):
    """Return the SVG of the frames. Where nothing is animated, it shows the last one."""
    length = frames[-1][0] - frames[0][0] + HOLD
    style, shapes = [HEAD % (title, length)], ["</style>"]
    for name, (_, left, top, width, height) in TERMINALS.items():
        shapes.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6"/>')
        shapes.append(f'<text class="said" x="{left + 12}" y="{top + 21}">{name}</text>')
    for name, row, kind, text, begin, end in stretches(frames, length):
        if (begin, end) != (0, length):
            steps = {0: "hidden", begin: "visible", end: "hidden"}.items()
            steps = "".join(f"{100 * at / length:.2f}%{{visibility:{how}}}" for at, how in steps)
            kind += f' moves{" gone" * (end < length)}" style="animation-name:k{len(style)}'
            style.append(f"@keyframes k{len(style)}{{{steps}}}")
        x, y = TERMINALS[name][1] + 12, TERMINALS[name][2] + 46 + row * 18
        shapes.append(f'<text x="{x}" y="{y}" class="{kind}">{html.escape(text)}</text>')
    return "\n".join([*style, *shapes, "</svg>\n"])


def main():
    """Record both sessions and write the pictures."""
    for name, session in (("server1", one_at_a_time), ("server3", both_at_once)):
        with tempfile.TemporaryDirectory() as directory:
            recording = Recording(f"{directory}/tmux")
            try:
                session(recording)
            finally:
                recording.tmux("kill-server")
        (ROOT / f".github/{name}.svg").write_text(draw(session.__doc__, recording.frames), "utf-8")
    (ROOT / ".github/chat.svg").write_text(draw(session.__doc__, recording.frames[-1:]), "utf-8")


if __name__ == "__main__":
    main()
