#!/usr/bin/env python3
"""Checks the layout of the house (STYLE: layers, cores without I/O, folders, sizes).

  tests/lint/check_layers.py                 include directions, include bans, READMEs, file sizes
  tests/lint/check_layers.py --nm BUILD      instead: what the core libraries of a build call
  tests/lint/check_layers.py --self-test     plants violations and expects each to be found

Prints file:line: message for each violation; the exit status is 1 when there is one, 2 on wrong usage.

A layer is the longest row of LAYERS that begins a file's path. It may include itself, base, and what
its row lists; "shard/*" in a row stands for every layer below shard/.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

# layer: layers it may include, besides itself and base
LAYERS = {
    "base": [],
    "truetime": [],
    "txn": ["truetime"],
    "shard/raft": ["truetime"],
    "shard/wal": [],
    "shard/net": [],
    "sql/pgwire": [],
    "sql/vtab": [],
    "shard/engine": ["truetime", "txn", "sql/vtab"],
    "sql": ["truetime", "txn", "sql/vtab", "sql/pgwire"],
    "sql/inspect": ["sql", "sql/vtab", "shard/engine"],
    "shard/range": ["truetime", "txn", "shard/raft", "shard/engine"],
    "shard": ["truetime", "txn", "shard/*"],
    "sql/shell": [],
    "deploy/workload": [],
    "deploy/drill": [],
    "coordinator/route": ["truetime", "txn", "sql"],
    "coordinator": ["truetime", "txn", "coordinator/route", "shard", "shard/net", "sql", "sql/pgwire"],
}
ANYTHING = ("coordinator/main.c",)
MAY_INCLUDE_TESTS = ("coordinator/main.c",)
# (layer, layer it may include) -> the only headers it may include of it
ONLY_HEADERS = {
    ("shard/range", "shard/engine"): {"shard/engine/engine.h"},
    ("coordinator/route", "sql"): {"sql/kv.h"},
    # What the wire asks of a session, which sql/session implements: an interface, no bytes.
    ("sql", "sql/pgwire"): {"sql/pgwire/pg_session.h"},
}
LIBPQ_LAYERS = ("sql/shell", "deploy/workload", "deploy/drill", "coordinator", "tests")

# Protocol cores: no clock, thread, socket, random number or file. Time arrives in the event. Log lines
# and counters (base/log.h, base/metrics.h) are allowed: nothing a core decides can depend on them.
CORES = ("truetime", "txn", "shard/raft", "shard/range", "sql/pgwire", "coordinator/route")
NOT_CORE = {"truetime/clock_os.c", "truetime/clock_os.h", "truetime/clock.c", "truetime/clock.h",
            "truetime/time_master.c", "truetime/time_master.h"}
CORE_LIBRARIES = {"truetime": "libspan_truetime.a", "txn": "libspan_txn.a", "shard/raft": "libspan_raft.a",
                  "shard/range": "libspan_range.a", "sql/pgwire": "libspan_pgwire.a",
                  "coordinator/route": "libspan_route.a"}
BANNED_INCLUDES = re.compile(
    r"^(time|pthread|threads|unistd|fcntl|poll|dirent|signal|semaphore|stdatomic|sched|ftw|glob"
    r"|sys/(socket|time|timex|timerfd|eventfd|epoll|random|stat|mman|file|select|uio|wait|un|ioctl)"
    r"|netdb|netinet/.*|arpa/.*|nng/.*|sqlite3|libpq-fe|openssl/ssl|base/failpoint)\.h$")
BANNED_SYMBOLS = re.compile(
    r"^(clock_gettime|clock|gettimeofday|time|localtime(_r)?|gmtime(_r)?|strftime|adjtimex|ntp_adjtime"
    r"|nanosleep|clock_nanosleep|u?sleep|pthread_.*|mtx_.*|thrd_.*|cnd_.*|sem_.*|nng_.*|sqlite3_.*|PQ.*"
    r"|SSL_.*|write|writev|pwrite(64)?|read|readv|pread(64)?|open(64)?|openat(64)?|creat(64)?|close|fopen(64)?"
    r"|fdopen|fread|fwrite|fputs|fputc|puts|putchar|printf|fprintf|vprintf|vfprintf|__printf_chk"
    r"|__fprintf_chk|__vfprintf_chk|fclose|fsync|fdatasync|rename|unlink|mmap(64)?|munmap|socket|bind"
    r"|listen|accept4?|connect|send|sendto|sendmsg|recv|recvfrom|recvmsg|poll|select|epoll_.*|eventfd.*"
    r"|timerfd_.*|rand(_r)?|random|srand|srandom|drand48|lrand48|arc4random.*|getrandom|getentropy"
    r"|RAND_bytes|fork|vfork|execv[pe]*|system|popen|getenv|signal|sigaction|raise|rng_os_u64|failpoint_.*)$")
FILE_IO_CALLS = re.compile(r"\b(fopen|fdopen|freopen|fprintf|printf|puts|fputs|fwrite|fread|fgets|perror|rand|random"
                           r"|srand|time|clock_gettime|gettimeofday|usleep|sleep|nanosleep|getenv)\s*\(")

LINES_MAX = 1500
NO_README = {".", ".ci"}
NO_README_BELOW = "tests/fuzz/corpus/"  # inputs; the targets' README describes them
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def layer_of(path):
    """The longest row of LAYERS that begins the path; the first folder for what no row knows."""
    best = None
    for layer in LAYERS:
        if path.startswith(layer + "/") and (best is None or len(layer) > len(best)):
            best = layer
    return best or path.split("/")[0]


def may_include(layer, target):
    if target in (layer, "base"):
        return True
    return any(target == a or (a.endswith("/*") and target.startswith(a[:-1])) for a in LAYERS.get(layer, []))


def strip_comments(text):
    """Blanks comments and string contents, keeping line numbers."""
    out = []
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    at = 0
    for m in pattern.finditer(text):
        out.append(text[at:m.start()])
        out.append("\n" * m.group().count("\n") if m.group()[0] == "/" else '""')
        at = m.end()
    out.append(text[at:])
    return "".join(out)


def is_core(path):
    return path not in NOT_CORE and layer_of(path) in CORES


def check_include(path, line, kind, name, root, problems):
    layer = layer_of(path)
    if kind == "<" or not os.path.exists(os.path.join(root, name)):
        if kind == '"':
            problems.append(f"{path}:{line}: \"{name}\" does not exist (includes are written from the repository root)")
        elif is_core(path) and BANNED_INCLUDES.match(name):
            problems.append(f"{path}:{line}: <{name}> in a protocol core: cores do no I/O")
        elif name == "libpq-fe.h" and layer not in LIBPQ_LAYERS and not path.startswith("tests/"):
            problems.append(f"{path}:{line}: libpq is for clients, not for {layer}")
        return
    if path.startswith("tests/"):
        return
    if name.startswith("tests/"):
        if path not in MAY_INCLUDE_TESTS:
            problems.append(f"{path}:{line}: only coordinator/main.c may include tests, not {path}")
        return
    if path in ANYTHING:
        return
    target = layer_of(name)
    only = ONLY_HEADERS.get((layer, target))
    if not may_include(layer, target):
        problems.append(f"{path}:{line}: {layer} may not include {target} ({name})")
    elif only and name not in only:
        problems.append(f"{path}:{line}: {layer} may include of {target} only {', '.join(sorted(only))}, not {name}")
    elif is_core(path) and BANNED_INCLUDES.match(name):
        problems.append(f"{path}:{line}: \"{name}\" in a protocol core: cores do no I/O")


def check_source(root, path, problems):
    with open(os.path.join(root, path), errors="replace") as f:
        text = f.read()
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        problems.append(f"{path}:{LINES_MAX}: {len(lines)} lines, more than {LINES_MAX}: look for the seam")
    for number, line in enumerate(lines, 1):
        m = INCLUDE.match(line)
        if m:
            check_include(path, number, m.group(1), m.group(2), root, problems)
    if is_core(path):
        for number, line in enumerate(strip_comments(text).split("\n"), 1):
            m = FILE_IO_CALLS.search(line)
            if m:
                problems.append(f"{path}:{number}: {m.group(1)}() in a protocol core: cores do no I/O")


def source_dirs(root):
    for folder, dirs, files in os.walk(root):
        rel = os.path.relpath(folder, root)
        dirs[:] = sorted(d for d in dirs if not d.startswith(".") and not (rel == "." and d.startswith("build"))
                         and d != "__pycache__")
        yield rel, sorted(files)


def check_tree(root):
    problems = []
    for rel, files in source_dirs(root):
        if rel not in NO_README and not rel.startswith(NO_README_BELOW) and files and "README.md" not in files:
            problems.append(f"{rel}/README.md:1: missing: every folder says what it is for")
        for name in files:
            path = name if rel == "." else f"{rel}/{name}"
            if name.endswith((".c", ".h")):
                check_source(root, path, problems)
    return problems


def undefined_symbols(archive):
    """(member, symbol) for each symbol that the archive's members leave open."""
    out = subprocess.run(["nm", "-u", "-A", archive], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        # libx.a:member.c.o:                 U symbol
        m = re.match(r"^.*?:([^:]+):\s+[Uw]\s+(\S+)$", line)
        if m:
            yield m.group(1), m.group(2).split("@")[0]


def check_symbols(build):
    problems = []
    found = 0
    for layer, library in CORE_LIBRARIES.items():
        archive = os.path.join(build, library)
        if not os.path.exists(archive):
            problems.append(f"{archive}:1: missing: build the core libraries first")
            continue
        found += 1
        allowed = {os.path.basename(p) + ".o" for p in NOT_CORE if p.startswith(layer + "/")}
        for member, symbol in undefined_symbols(archive):
            if member not in allowed and BANNED_SYMBOLS.match(symbol):
                problems.append(f"{layer}/{member[:-2]}:1: calls {symbol}(): cores do no I/O")
    return problems


# ---- self-test -------------------------------------------------------------------------------------

PLANTED = [
    # path, text, part of the message (None: clean)
    ("base/a.c", '#include "txn/t.h"\n', "base/a.c:1: base may not include txn"),
    ("txn/a.c", '\n#include "shard/raft/r.h"\n', "txn/a.c:2: txn may not include shard/raft"),
    ("txn/b.c", "#include <time.h>\n", "txn/b.c:1: <time.h> in a protocol core"),
    ("txn/c.c", "int f(void)\n{\n    return rand();\n}\n", "txn/c.c:3: rand() in a protocol core"),
    ("txn/ok.c", '#include "truetime/tt.h"\n/* time() and rand() are not called */\n', None),
    ("truetime/clock_os.c", "#include <time.h>\n", None),
    ("shard/raft/a.c", "#include <pthread.h>\n", "<pthread.h> in a protocol core"),
    ("shard/range/a.c", '#include "shard/engine/mvcc.h"\n', "only shard/engine/engine.h"),
    ("shard/range/ok.c", '#include "shard/engine/engine.h"\n', None),
    ("shard/node.c", '#include "shard/raft/r.h"\n#include <pthread.h>\n', None),
    ("sql/shell/a.c", '#include "sql/kv.h"\n', "sql/shell may not include sql"),
    ("sql/a.c", "#include <libpq-fe.h>\n", "libpq is for clients"),
    ("sql/b.c", '#include "sql/pgwire/pg_msg.h"\n', "only sql/pgwire/pg_session.h"),
    ("sql/pgwire/a.c", "#include <sys/socket.h>\n", "<sys/socket.h> in a protocol core"),
    ("coordinator/route/a.c", '#include "sql/schema.h"\n', "only sql/kv.h"),
    ("coordinator/gateway.c", '#include "sql/shell/shell.h"\n', "coordinator may not include sql/shell"),
    ("coordinator/main.c", '#include "sql/shell/shell.h"\n#include "tests/sim/sim.h"\n', None),
    ("coordinator/http.c", '#include "tests/sim/sim.h"\n', "only coordinator/main.c may include tests"),
    ("coordinator/gone.c", '#include "coordinator/nothing.h"\n', "does not exist"),
    ("tests/unit/x_test.c", '#include "shard/raft/r.h"\n#include <time.h>\n', None),
    ("base/long.c", "\n" * (LINES_MAX + 1), "more than 1500"),
]
HEADERS = ["txn/t.h", "truetime/tt.h", "shard/raft/r.h", "shard/engine/mvcc.h", "shard/engine/engine.h",
           "sql/kv.h", "sql/schema.h", "sql/pgwire/pg_msg.h", "sql/shell/shell.h", "tests/sim/sim.h"]


def write(root, path, text):
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w") as f:
        f.write(text)


def self_test():
    good = bad = 0
    with tempfile.TemporaryDirectory() as root:
        for h in HEADERS:
            write(root, h, "\n")
        for path, text, _ in PLANTED:
            write(root, path, text)
        problems = check_tree(root)
        for path, _, want in PLANTED:
            mine = [p for p in problems if p.startswith(path + ":")]
            if (not mine if want is None else any(want in p for p in mine)):
                good += 1
            else:
                bad += 1
                print(f"self-test: {path}: wanted {want or 'nothing'}, got {mine}")
        if any(p.startswith("txn/README.md") for p in problems):
            good += 1
        else:
            bad += 1
            print("self-test: a missing README.md was not found")
        symbols = self_test_symbols(root)
        if symbols == ["txn/t.c:1: calls clock_gettime(): cores do no I/O"]:
            good += 1
        else:
            bad += 1
            print(f"self-test: symbols gave {symbols}")
    print(f"{good} passed, {bad} failed")
    return 1 if bad else 0


def self_test_symbols(root):
    """A core library whose object calls clock_gettime must be found by nm."""
    write(root, "o/t.c", "#include <time.h>\nlong f(void);\nlong f(void)\n{\n    struct timespec t;\n"
          "    clock_gettime(CLOCK_REALTIME, &t);\n    return t.tv_sec;\n}\n")
    obj = os.path.join(root, "o", "t.c.o")
    subprocess.run(["gcc", "-c", os.path.join(root, "o/t.c"), "-o", obj], check=True)
    subprocess.run(["ar", "rc", os.path.join(root, "o/libspan_txn.a"), obj], check=True)
    return [p for p in check_symbols(os.path.join(root, "o")) if "missing" not in p]


def main():
    parser = argparse.ArgumentParser(description="Checks the layout of the house.")
    parser.add_argument("--nm", metavar="BUILD", help="check what the core libraries of a build directory call")
    parser.add_argument("--self-test", action="store_true", help="plant violations and expect them to be found")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    problems = check_symbols(args.nm) if args.nm else check_tree(root)
    for p in sorted(problems):
        print(p)
    if problems:
        print(f"{len(problems)} violations", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
