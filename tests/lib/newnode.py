"""A node beside a cluster of deploy/local: started with --join, stopped whatever happens."""
import atexit
import os
import socket
import subprocess
import time

import harness


def free_base(span=140):
    """Ports P .. P+span-1 of 127.0.0.1 that nobody uses now."""
    for base in range(31000, 32000 - span, span):
        sockets = []
        try:
            for port in range(base, base + span):
                s = socket.socket()
                sockets.append(s)
                s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no free ports")


class NewNode:
    def __init__(self, cluster, number, flags=()):
        self.cluster, self.number, self.flags = cluster, number, list(flags)
        base = free_base()
        self.peer, self.sql, self.http = (f"tcp://127.0.0.1:{base + 4}", f"127.0.0.1:{base}", f"127.0.0.1:{base + 1}")
        self.data = os.path.join(cluster.dir, f"new{number}")
        self.log_path = os.path.join(cluster.dir, f"new{number}.log")
        self.process = None
        atexit.register(self.kill)

    def peers(self):
        known = [f"{n['id']}={n['peer']}" for n in self.cluster.state()["nodes"]]
        return ",".join([*known, f"{self.number}={self.peer}"])

    def start(self, peers=None, join=True, data=None):
        command = [harness.BIN, "start", "--id", str(self.number), "--data", data or self.data, "--cluster",
                   self.cluster.state()["name"], "--peers", peers or self.peers(), "--sql-listen", self.sql,
                   "--http-listen", self.http, *(["--join"] if join else []), *self.cluster.flags, *self.flags]
        self.log_file = open(self.log_path, "a")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file, stderr=self.log_file)

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def query(self, text):
        with harness.Sql(self.sql) as s:
            return s.query(text)

    def wait_ready(self, seconds=30):
        return harness.eventually(seconds, lambda: self.query("SELECT 1") == [("1",)], 0.1)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode


def wait_exit(process, seconds):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    return process.poll()
