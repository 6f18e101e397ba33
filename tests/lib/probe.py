"""Writes to every range of a bank all the time (tests/clients/range_probe.c), to see how long one takes none."""
import os
import subprocess

import harness

LEDGER_TOP = (2**64 - 1) >> 2


class Ranges:
    """The ranges that hold rows, and a statement for each that writes a row of it without changing the bank."""

    def __init__(self, cluster, accounts, ranges):
        rows = {r["range_id"]: r for r in cluster.ranges()}
        at = harness.split_points(accounts, ranges)
        self.ids, self.statements = [], []
        for i in range(ranges):
            lo, hi = ([1] + at)[i], (at + [accounts + 1])[i] - 1
            self._add(rows, "accounts", i, at, f"UPDATE accounts SET balance = balance WHERE id = {{{lo}:{hi}}}")
        at = harness.split_points(LEDGER_TOP, ranges)
        for i in range(ranges):
            lo, hi = ([LEDGER_TOP // 2**20] + at)[i], ([LEDGER_TOP // 2**20] + at)[i] + 1000
            # From an account to itself and of nothing: the books are not changed by it.
            self._add(rows, "transfers", i, at,
                      f"INSERT INTO transfers VALUES ({{{lo}:{hi}}}, 1, 1, 0) ON CONFLICT (id) DO UPDATE SET amount = 0")

    def _add(self, rows, name, i, at, statement):
        for number, row in rows.items():
            if (row["start_key"] == f"/{name}/{at[i - 1]}") if i > 0 else (row["end_key"] == f"/{name}/{at[0]}"):
                if number not in self.ids:
                    self.ids.append(number)
                    self.statements.append(statement)
                return
        raise RuntimeError(f"no range of {name} part {i} in SHOW RANGES: {list(rows.values())}")


def leaders(cluster, number=None):
    """{range id: node that leads it}, as node `number` knows it."""
    return {r["range_id"]: int(r["leader"] or 0) for r in cluster.ranges(number)}


def longest_gaps(lines, kill_us, ids, led):
    """{range: longest time in ms between acknowledged writes, from half a second before the kill to the end}."""
    acks, first, last = {}, kill_us - 500000, kill_us
    for line in lines:
        index, _, answered, state = line.split()
        last = max(last, int(answered))
        if state == "ok" and int(answered) >= first:
            acks.setdefault(int(index), []).append(int(answered))
    out = {}
    for i, number in enumerate(ids):
        if number in led:
            times = [first] + sorted(acks.get(i, [])) + [last]
            out[number] = max(b - a for a, b in zip(times, times[1:])) / 1000
    return out


class Probe:
    """range_probe in the background, through the nodes given. Use as a context; lines() afterwards."""

    def __init__(self, cluster, ranges, nodes, interval_ms, name="probe"):
        path = os.path.join(cluster.dir, name)
        with open(path + ".sql", "w") as f:
            f.write("\n".join(ranges.statements) + "\n")
        self.command = [harness.program("range_probe"), cluster.url(*nodes), path + ".sql", "--interval-ms", str(interval_ms)]
        self.path, self.ids, self.process = path + ".out", ranges.ids, None

    def __enter__(self):
        with open(self.path, "w") as out:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)

    def lines(self):
        with open(self.path) as f:
            return f.read().splitlines()

    def errors(self):
        """{SQLSTATE, "late" or "lost": count} of what was not acknowledged."""
        out = {}
        for line in self.lines():
            state = line.split()[3]
            if state != "ok":
                out[state] = out.get(state, 0) + 1
        return out

    def gaps(self, from_us, led):
        return longest_gaps(self.lines(), from_us, self.ids, led)
