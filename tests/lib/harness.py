"""What the Python test scripts of cluster/ and bench/ share: counted checks, clusters by deploy/local/cluster,
a PostgreSQL client of the simple query protocol, and the figures of the nodes' processes.

    import harness
    t = harness.Check()
    with harness.Cluster(nodes=3, flags=["--lease", "300ms"]) as c:
        t.check("one row", c.sql("SELECT 1"), [("1",)])
    t.finish()

Standard library only. Everything that was started is stopped, whatever happens.
"""
import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

ROOT = os.environ.get("SPAN_ROOT") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("SPAN_BUILD") or os.path.join(ROOT, "build", "release")
BIN = os.environ.get("SPANLITE_BIN") or os.path.join(BUILD, "spanlite")
TICKS = os.sysconf("SC_CLK_TCK")


def program(name):
    """A C program of tests/."""
    path = os.path.join(BUILD, "tests", name)
    if not os.access(path, os.X_OK) and not path.endswith(".so"):
        sys.exit(f"{path} is not there: ninja -C {BUILD} cluster_tests clients_tests bench_tests")
    return path


def say(text):
    print(text, flush=True)


# The runner ends a test that takes too long by SIGTERM: what was started is stopped then, too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


# ---- checks ----------------------------------------------------------------------------------------

class Check:
    def __init__(self):
        self.passed = self.failed = 0

    def ok(self, what, good, detail=""):
        if good:
            self.passed += 1
            say(f"ok   {what}")
        else:
            self.failed += 1
            say(f"FAIL {what}" + (f": {detail}" if detail else ""))
        return bool(good)

    def check(self, what, got, want):
        return self.ok(what, got == want, f"got {got!r}, wanted {want!r}")

    def matches(self, what, text, pattern):
        return self.ok(what, re.search(pattern, text), f"{text[-2000:]!r} does not match /{pattern}/")

    def finish(self):
        say(f"{self.passed} passed, {self.failed} failed")
        sys.exit(0 if self.failed == 0 and self.passed > 0 else 1)


def eventually(seconds, condition, every=0.02):
    """True as soon as the condition holds; False after so many seconds. Errors of the network count as not yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, SqlError):
            if condition():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(every)


# ---- SQL -------------------------------------------------------------------------------------------

class SqlError(Exception):
    def __init__(self, fields):
        super().__init__(f"{fields.get('C', '?????')}: {fields.get('M', '')}")
        self.sqlstate = fields.get("C", "")
        self.message = fields.get("M", "")


class Sql:
    """One connection; query() gives a list of tuples of str or None, dicts() a list of dicts."""

    def __init__(self, address, timeout=30.0):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        body = struct.pack("!i", 196608) + b"user\0spanlite\0database\0spanlite\0\0"
        self.socket.sendall(struct.pack("!i", len(body) + 4) + body)
        self.parameters = {}
        self.columns = []
        self.tags = []
        self._finish()

    def _message(self):
        head = self.file.read(5)
        if len(head) < 5:
            raise ConnectionError("the node closed the connection")
        size = struct.unpack("!i", head[1:])[0] - 4
        body = self.file.read(size)
        if len(body) < size:
            raise ConnectionError("the node closed the connection")
        return head[:1], body

    def _finish(self):
        """Reads up to ReadyForQuery."""
        rows, error = [], None
        while True:
            kind, body = self._message()
            if kind == b"Z":
                break
            if kind == b"E":
                error = SqlError({f[:1].decode(): f[1:].decode(errors="replace") for f in body.split(b"\0") if f})
                if body.startswith(b"SFATAL"):
                    raise error
            elif kind == b"S":
                name, value = body.split(b"\0")[:2]
                self.parameters[name.decode()] = value.decode()
            elif kind == b"C":
                self.tags.append(body[:-1].decode())
            elif kind == b"T":
                self.columns, at = [], 2
                for _ in range(struct.unpack("!h", body[:2])[0]):
                    end = body.index(b"\0", at)
                    self.columns.append(body[at:end].decode())
                    at = end + 19
                rows = []
            elif kind == b"D":
                row, at = [], 2
                for _ in range(struct.unpack("!h", body[:2])[0]):
                    size = struct.unpack("!i", body[at:at + 4])[0]
                    at += 4
                    row.append(None if size < 0 else body[at:at + size].decode())
                    at += max(size, 0)
                rows.append(tuple(row))
        if error:
            raise error
        return rows

    def query(self, text):
        self.tags = []
        data = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(data) + 4) + data)
        return self._finish()

    def dicts(self, text):
        rows = self.query(text)
        return [dict(zip(self.columns, row)) for row in rows]

    def close(self):
        with contextlib.suppress(OSError):
            self.file.close()
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- clusters --------------------------------------------------------------------------------------

class Cluster:
    """A cluster in a folder of its own. Nodes are numbered from 1."""

    def __init__(self, nodes=3, flags=(), epsilon=None, throwaway=False, node_flags=(), preload=None, env=(), keep=False,
                 wait=60, transport=None, spread=False):
        self.dir = tempfile.mkdtemp(prefix="cluster-")
        self.keep = keep
        self.flags = list(flags)
        command = ["up", "--nodes", str(nodes), "--wait", str(wait)]
        command += ["--epsilon", epsilon] if epsilon else []
        command += ["--throwaway"] if throwaway else []
        command += ["--spread"] if spread else []
        command += ["--transport", transport] if transport else []
        for number, flag in node_flags:
            command += ["--node-flag", str(number), flag]
        command += ["--preload", preload] if preload else []
        for name, value in env:
            command += ["--env", f"{name}={value}"]
        atexit.register(self.close)
        self.control(*command, flags=self.flags)
        self.count = nodes

    def control(self, *words, flags=()):
        """deploy/local/cluster WORDS; its output. Raises RuntimeError with its complaint."""
        command = [os.path.join(ROOT, "deploy", "local", "cluster"), *words, "--dir", self.dir]
        command += ["--", *flags] if flags else []
        env = dict(os.environ, SPANLITE_BIN=BIN, SPANLITE_CLUSTER_DIR=self.dir)
        p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
        if p.returncode != 0:
            raise RuntimeError(f"cluster {' '.join(words)}: {p.stderr.strip() or p.stdout.strip()}")
        return p.stdout

    def state(self):
        with open(os.path.join(self.dir, "cluster.json")) as f:
            return json.load(f)

    def node(self, number):
        return next(n for n in self.state()["nodes"] if n["id"] == number)

    def numbers(self):
        return [n["id"] for n in self.state()["nodes"]]

    def pid(self, number):
        return self.node(number)["pid"]

    def url(self, *numbers):
        """libpq URL of the nodes given, of all without any."""
        state = self.state()
        hosts = [n["sql"] for n in state["nodes"] if not numbers or n["id"] in numbers]
        if state.get("transport") == "ipc":
            hosts = [urllib.parse.quote(self.dir, safe="") + ":" + h.rsplit(":", 1)[1] for h in hosts]
        return "postgresql://spanlite@" + ",".join(hosts) + "/spanlite"

    def connect(self, number=None, timeout=30.0):
        if number:
            return Sql(self.node(number)["sql"], timeout)
        last = None
        for n in self.state()["nodes"]:
            try:
                return Sql(n["sql"], timeout)
            except (OSError, SqlError) as e:
                last = e
        raise last

    def sql(self, text, number=None, timeout=30.0):
        with self.connect(number, timeout) as s:
            return s.query(text)

    def dicts(self, text, number=None, timeout=30.0):
        with self.connect(number, timeout) as s:
            return s.dicts(text)

    def kill(self, *numbers):
        """SIGKILL, directly: returns the CLOCK_MONOTONIC time in ns just before the first."""
        pids = [self.pid(n) for n in numbers]
        at = time.monotonic_ns()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            eventually(10, lambda p=pid: process_state(p) in (None, "Z", "X"), 0.002)
        return at

    def start(self, *numbers):
        return self.control("start", *map(str, numbers))

    def http(self, number, path="/v1/node", timeout=5.0):
        with urllib.request.urlopen(f"http://{self.node(number)['http']}{path}", timeout=timeout) as r:
            return r.read().decode()

    def status(self, number):
        return json.loads(self.http(number, "/v1/node"))

    def ranges(self, number=None):
        """SHOW RANGES: one dict a range, as its leader tells it."""
        return self.dicts("SHOW RANGES", number)

    def is_settled(self):
        """Every node answers, every range has a leader, and every node agrees about it."""
        for n in self.numbers():
            status = self.status(n)
            if not status["ready"] or not all(link["up"] for link in status["links"]):
                return False
        rows = self.ranges()
        return len(rows) > 0 and all(r["leader"] not in (None, "", "0") for r in rows)

    def is_balanced(self):
        """Leaderships are spread, as placement.balance does."""
        leads = [self.status(n)["leads"] for n in self.numbers()]
        return max(leads) - min(leads) <= 2

    def log(self, number):
        with open(self.node(number)["log"], errors="replace") as f:
            return f.read()

    def close(self):
        if self.dir is None:
            return
        path, self.dir = self.dir, None
        if os.path.exists(os.path.join(path, "cluster.json")):
            command = [os.path.join(ROOT, "deploy", "local", "cluster"), "down", "--wait", "10", "--dir", path]
            env = dict(os.environ, SPANLITE_CLUSTER_DIR=path)
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=env)
        if self.keep:
            say(f"kept: {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and self.dir is not None:
            for n in self.state()["nodes"]:
                with contextlib.suppress(OSError):
                    tail = open(n["log"], errors="replace").read().splitlines()[-15:]
                    say(f"--- node {n['id']}:\n" + "\n".join("  | " + line for line in tail))
        self.close()


# ---- processes -------------------------------------------------------------------------------------

def process_state(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def cpu_by_thread(pid):
    """{thread name: (seconds of CPU, involuntary + voluntary switches)}; threads of one name are added up."""
    out = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/stat") as f:
                text = f.read()
            with open(f"/proc/{pid}/task/{task}/status") as f:
                switches = sum(int(line.split()[1]) for line in f if "ctxt_switches" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = text[text.index("(") + 1:text.rindex(")")]
        fields = text.rsplit(")", 1)[1].split()
        try:  # in ns, where the kernel tells
            with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                seconds = int(f.read().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            seconds = (int(fields[11]) + int(fields[12])) / TICKS
        # A pool's threads are numbered: "session-12" and "nng:poll:epoll".
        name = re.sub(r"[-:/ ]?\d+$", "", name)
        was = out.get(name, (0.0, 0))
        out[name] = (was[0] + seconds, was[1] + switches)
    return out


def cpu_of(pid):
    """Seconds of CPU of a whole process, ended threads included."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ---- the bank --------------------------------------------------------------------------------------

def spanlite(*words, timeout=600, url=None):
    """`spanlite WORDS`: (exit status, stdout, stderr)."""
    env = dict(os.environ)
    if url:
        env["SPANLITE_URL"] = url
    p = subprocess.run([BIN, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env,
                       timeout=timeout, check=False)
    return p.returncode, p.stdout, p.stderr


def bank_init(cluster, accounts, ranges, balance=1000):
    status, _, err = spanlite("workload", "bank", "init", "--accounts", accounts, "--ranges", ranges, "--balance", balance,
                              "--quiet", url=cluster.url())
    if status != 0:
        raise RuntimeError(f"bank init: {err.strip()}")


class BankRun:
    """`workload bank run` in the background; stop() ends it and gives its JSON result (ok: False if it had none)."""

    def __init__(self, cluster, clients=16, seconds=100000, ledger=True, acks=None, audit_ms=1000, timeout_ms=10000,
                 extra=()):
        command = [BIN, "workload", "bank", "run", "--clients", str(clients), "--seconds", str(seconds), "--json",
                   "--quiet", "--audit-ms", str(audit_ms), "--timeout-ms", str(timeout_ms)]
        command += ["--ledger"] if ledger else []
        command += ["--acks", acks] if acks else []
        env = dict(os.environ, SPANLITE_URL=cluster.url())
        self.process = subprocess.Popen([*command, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=env)
        atexit.register(self._kill)

    def _kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def running(self):
        return self.process.poll() is None

    def stop(self, timeout=120):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        return self.wait(timeout)

    def wait(self, timeout=3600):
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            out, err = self.process.communicate()
            err += f"\n(killed: it did not end within {timeout} s)"
        atexit.unregister(self._kill)
        result = {"ok": False}
        with contextlib.suppress(ValueError):
            result = json.loads(out)
        result["exit_status"] = self.process.returncode
        result["stderr"] = err.strip()
        return result


def bank_check(cluster, acks=None, ledger=True):
    words = ["workload", "bank", "check", "--json"]
    words += ["--ledger"] if ledger else []
    words += ["--acks", acks] if acks else []
    status, out, err = spanlite(*words, url=cluster.url())
    result = {"ok": False}
    with contextlib.suppress(ValueError):
        result = json.loads(out)
    result["exit_status"] = status
    result["stderr"] = err.strip()
    return result


def split_points(top, ranges):
    """Where `bank init` cuts a table of ids 1 .. top (deploy/workload/bank.c)."""
    return [top // ranges * i + top % ranges * i // ranges + 1 for i in range(1, ranges)]


def quantile(values, q):
    """Nearest rank."""
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


def median(values):
    return statistics.median(values) if values else float("nan")
