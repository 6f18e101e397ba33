/* Writes to every range all the time and notes each answer, so that the longest time without an
 * acknowledged write can be read off for a range whose leader is killed meanwhile.
 *
 *   range_probe URL FILE [--interval-ms 10] [--timeout-ms 300] [--connections 2] [--seconds S]
 *
 * FILE has a line a range: a statement that writes one row of that range in autocommit. "{LO:HI}"
 * in it becomes a random whole number between the two, so that one locked row is not taken for a
 * range that is away. Each range has connections of its own, spread over the nodes of the URL
 * (which should be nodes that stay); their writes are staggered so that one of them is sent every
 * interval. A write without an answer in time is given up with its connection: what is measured is
 * when the range takes writes again, not how long a statement may wait.
 *
 * Output: "RANGE SENT ANSWERED SQLSTATE" a line, RANGE counted from 0, times CLOCK_MONOTONIC in
 * microseconds, SQLSTATE "ok", or "lost", "late" for writes without an answer; also what a node
 * says to a connection at rest that it closes (57P01). Ends by itself after
 * S seconds or at SIGTERM, with exit code 0. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "tests/lib/pq_loop.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANGES_MAX      512
#define CONNECTIONS_MAX 4096

struct probe {
    struct pq_conn conn;
    unsigned range;
    uint64_t next; /* when the next write is due */
};

static struct {
    uint64_t interval_ns;
    uint64_t timeout_ns;
    unsigned per_range;
    double seconds;
    char *sql[RANGES_MAX];
    unsigned ranges;
    struct probe *probes;
    unsigned count;
    struct rng rng;
    volatile sig_atomic_t stop;
} g = {.interval_ns = 10 * MS_NS, .timeout_ns = 300 * MS_NS, .per_range = 2, .seconds = 1e9};

static void on_signal(int sig)
{
    (void)sig;
    g.stop = 1;
}

static void note(const struct probe *p, const char *what)
{
    (void)printf("%u %" PRIu64 " %" PRIu64 " %s\n", p->range, p->conn.sent_ns / 1000,
                 workload_now_ns() / 1000, what);
}

/* Replaces each {LO:HI}. */
static void expand(const char *sql, char *out, size_t size)
{
    size_t n = 0;
    while (*sql != '\0' && n + 32 < size) {
        uint64_t lo;
        uint64_t hi;
        int used = 0;
        if (*sql == '{' && sscanf(sql, "{%" SCNu64 ":%" SCNu64 "}%n", &lo, &hi, &used) == 2 &&
            used > 0 && lo <= hi) {
            n += (size_t)snprintf(out + n, size - n, "%" PRIu64, rng_between(&g.rng, lo, hi));
            sql += used;
        } else {
            out[n++] = *sql++;
        }
    }
    out[n] = '\0';
}

static void write_row(struct probe *p)
{
    char sql[1024];
    uint64_t now = pq_loop_now(p->conn.loop);
    uint64_t period = g.interval_ns * g.per_range;
    p->next += period;
    if (p->next < now) {
        p->next = now + period;
    }
    expand(g.sql[p->range], sql, sizeof sql);
    pq_conn_send(&p->conn, sql);
    pq_conn_wake_at(&p->conn, now + g.timeout_ns);
}

static void on_event(struct pq_conn *c, enum pq_event event, const PGresult *result)
{
    struct probe *p = c->ctx;
    uint64_t now = pq_loop_now(c->loop);
    switch (event) {
    case PQ_CONNECTED:
        pq_conn_wake_at(c, p->next > now ? p->next : now);
        break;
    case PQ_ANSWER: {
        const char *state = pq_sqlstate(result);
        note(p, state[0] == '\0' ? "ok" : state);
        pq_conn_wake_at(c, p->next > now ? p->next : now);
        break;
    }
    case PQ_LOST:
        note(p, c->why[0] == '\0' ? "lost" : c->why);
        break;
    case PQ_WAKE:
        if (c->state == PQ_IDLE) {
            write_row(p);
        } else if (c->state == PQ_BUSY) {
            note(p, "late");
            pq_conn_drop(c);
        }
        break;
    }
}

static int complain(const char *what, const char *which)
{
    (void)fprintf(stderr, "range_probe: %s%s\n", what, which);
    return 2;
}

static int read_file(const char *path)
{
    char line[1024];
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        return complain("cannot open ", path);
    }
    while (fgets(line, sizeof line, f) != NULL && g.ranges < RANGES_MAX) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '\0') {
            g.sql[g.ranges++] = span_strdup(line);
        }
    }
    (void)fclose(f);
    return g.ranges == 0 ? complain("no statement in ", path) : 0;
}

static int take_flags(int argc, char **argv)
{
    for (int i = 3; i < argc; i += 2) {
        char *end = NULL;
        double v = i + 1 < argc ? strtod(argv[i + 1], &end) : -1;
        if (end == NULL || *end != '\0' || !(v > 0) || !(v < 1e9)) {
            return complain("not a number after ", argv[i]);
        }
        if (strcmp(argv[i], "--interval-ms") == 0) {
            g.interval_ns = (uint64_t)(v * 1e6);
        } else if (strcmp(argv[i], "--timeout-ms") == 0) {
            g.timeout_ns = (uint64_t)(v * 1e6);
        } else if (strcmp(argv[i], "--connections") == 0) {
            g.per_range = (unsigned)v;
        } else if (strcmp(argv[i], "--seconds") == 0) {
            g.seconds = v;
        } else {
            return complain("unknown flag ", argv[i]);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static char out[1 << 20];
    struct span_error err = {0};
    struct cluster_url *url = NULL;
    if (argc < 3) {
        return complain("usage: range_probe URL FILE [flags]", "");
    }
    int code = take_flags(argc, argv);
    if (code == 0) {
        code = read_file(argv[2]);
    }
    if (code != 0) {
        return code;
    }
    if (cluster_url_parse(argv[1], &url, &err) != SPAN_OK) {
        return complain(err.text, "");
    }
    (void)setvbuf(stdout, out, _IOFBF, sizeof out);
    struct sigaction sa = {.sa_handler = on_signal};
    (void)sigaction(SIGTERM, &sa, NULL);
    (void)sigaction(SIGINT, &sa, NULL);
    rng_init(&g.rng, rng_os_u64());
    struct pq_loop *loop = pq_loop_new(url);
    g.count = g.ranges * g.per_range;
    if (g.count > CONNECTIONS_MAX) {
        return complain("too many connections", "");
    }
    g.probes = span_calloc(g.count, sizeof *g.probes);
    uint64_t start = pq_loop_now(loop);
    for (unsigned i = 0; i < g.count; i++) {
        struct probe *p = &g.probes[i];
        p->range = i / g.per_range;
        p->next = start + g.interval_ns * (i % g.per_range) +
                  g.interval_ns * p->range / g.ranges; /* not all at once */
        pq_conn_init(&p->conn, loop, i % g.per_range + p->range, on_event, p);
    }
    while (g.stop == 0 && (double)(pq_loop_now(loop) - start) < g.seconds * 1e9) {
        pq_loop_turn(loop, 100 * MS_NS);
    }
    for (unsigned i = 0; i < g.count; i++) {
        pq_conn_deinit(&g.probes[i].conn);
    }
    for (unsigned i = 0; i < g.ranges; i++) {
        span_free(g.sql[i]);
    }
    span_free(g.probes);
    pq_loop_free(loop);
    cluster_url_free(url);
    return fflush(stdout) == 0 ? 0 : 1;
}
