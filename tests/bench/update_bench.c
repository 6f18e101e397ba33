/* Single-row statements in autocommit, each client waiting for its answer: latency and rate.
 *
 *   update_bench URL ROWS [--clients 16] [--seconds 10] [--warm-up 2] [--sql TEXT] [--json]
 *
 * TEXT is the statement, with "?" for a random row number 1 .. ROWS; by default
 * "UPDATE accounts SET balance = balance WHERE id = ?". One thread, one epoll loop. A statement
 * that fails with a retryable SQLSTATE is counted and sent again with another row; its latency does
 * not count, the second one's does. Exit code 0, 1 after another error, 2 wrong usage. */
#include "base/alloc.h"
#include "base/hist.h"
#include "base/limits.h"
#include "base/rng.h"
#include "tests/lib/pq_loop.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct client {
    struct pq_conn conn;
    uint64_t sent;
};

static struct {
    uint64_t rows;
    unsigned clients;
    double seconds;
    double warm_up;
    const char *sql;
    bool json;
    struct rng rng;
    struct hist hist;
    uint64_t counted_from;
    uint64_t errors;
    uint64_t lost;
    char fatal[512];
} g = {.clients = 16,
       .seconds = 10,
       .warm_up = 2,
       .sql = "UPDATE accounts SET balance = balance WHERE id = ?"};

static void send_one(struct client *c)
{
    char sql[1024];
    const char *mark = strchr(g.sql, '?');
    if (mark == NULL) {
        (void)snprintf(sql, sizeof sql, "%s", g.sql);
    } else {
        (void)snprintf(sql, sizeof sql, "%.*s%" PRIu64 "%s", (int)(mark - g.sql), g.sql,
                       1 + rng_below(&g.rng, g.rows), mark + 1);
    }
    c->sent = workload_now_ns();
    pq_conn_send(&c->conn, sql);
}

static void on_event(struct pq_conn *conn, enum pq_event event, const PGresult *result)
{
    struct client *c = conn->ctx;
    if (event == PQ_LOST) {
        g.lost++;
        return;
    }
    if (event == PQ_ANSWER) {
        const char *state = pq_sqlstate(result);
        uint64_t now = workload_now_ns();
        if (state[0] == '\0' && c->sent >= g.counted_from) {
            hist_add(&g.hist, now - c->sent);
        } else if (state[0] != '\0') {
            g.errors++;
            if (!cluster_sqlstate_is_retryable(state)) {
                (void)snprintf(g.fatal, sizeof g.fatal, "%s", PQresultErrorMessage(result));
                return;
            }
        }
    }
    if (conn->state == PQ_IDLE) {
        send_one(c);
    }
}

static int complain(const char *what, const char *which)
{
    (void)fprintf(stderr, "update_bench: %s%s\n", what, which);
    return 2;
}

static int take_flags(int argc, char **argv)
{
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            g.json = true;
            continue;
        }
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value == NULL) {
            return complain("no value after ", argv[i]);
        }
        if (strcmp(argv[i], "--clients") == 0) {
            g.clients = (unsigned)strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "--seconds") == 0) {
            g.seconds = strtod(value, NULL);
        } else if (strcmp(argv[i], "--warm-up") == 0) {
            g.warm_up = strtod(value, NULL);
        } else if (strcmp(argv[i], "--sql") == 0) {
            g.sql = value;
        } else {
            return complain("unknown flag ", argv[i]);
        }
        i++;
    }
    if (g.clients == 0 || g.clients > LIMIT_SESSIONS || !(g.seconds > 0) || !(g.warm_up >= 0)) {
        return complain("clients, seconds and warm-up must be positive numbers", "");
    }
    return 0;
}

static void report(double seconds)
{
    const struct hist *h = &g.hist;
    double p50 = (double)hist_quantile(h, 0.5) / 1e6;
    double p95 = (double)hist_quantile(h, 0.95) / 1e6;
    double p99 = (double)hist_quantile(h, 0.99) / 1e6;
    double max = (double)h->max / 1e6;
    double rate = (double)h->count / seconds;
    (void)printf(g.json
                     ? "{\"statements_per_s\": %.1f, \"p50_ms\": %.3f, \"p95_ms\": %.3f, "
                       "\"p99_ms\": %.3f, \"max_ms\": %.3f, "
                     : "statements/s       %.0f\nlatency            p50 %.2f  p95 %.2f  p99 %.2f  "
                       "max %.1f ms\n",
                 rate, p50, p95, p99, max);
    (void)printf(g.json ? "\"statements\": %" PRIu64 ", \"clients\": %u, \"errors\": %" PRIu64
                          ", \"lost\": %" PRIu64 "}\n"
                        : "statements         %" PRIu64 " by %u clients, %" PRIu64
                          " refused, %" PRIu64 " connections lost\n",
                 h->count, g.clients, g.errors, g.lost);
}

int main(int argc, char **argv)
{
    struct span_error err = {0};
    struct cluster_url *url = NULL;
    g.rows = argc < 3 ? 0 : strtoull(argv[2], NULL, 10);
    if (g.rows == 0) {
        return complain("usage: update_bench URL ROWS [flags]", "");
    }
    int code = take_flags(argc, argv);
    if (code != 0) {
        return code;
    }
    if (cluster_url_parse(argv[1], &url, &err) != SPAN_OK) {
        return complain(err.text, "");
    }
    rng_init(&g.rng, rng_os_u64());
    hist_init(&g.hist);
    struct pq_loop *loop = pq_loop_new(url);
    struct client *clients = span_calloc(g.clients, sizeof *clients);
    uint64_t start = pq_loop_now(loop);
    g.counted_from = start + (uint64_t)(g.warm_up * 1e9);
    uint64_t end = g.counted_from + (uint64_t)(g.seconds * 1e9);
    for (unsigned i = 0; i < g.clients; i++) {
        pq_conn_init(&clients[i].conn, loop, i, on_event, &clients[i]);
    }
    while (pq_loop_now(loop) < end && g.fatal[0] == '\0') {
        pq_loop_turn(loop, 10 * MS_NS);
    }
    for (unsigned i = 0; i < g.clients; i++) {
        pq_conn_deinit(&clients[i].conn);
    }
    span_free(clients);
    pq_loop_free(loop);
    cluster_url_free(url);
    if (g.fatal[0] != '\0') {
        return complain(g.fatal, "") - 1;
    }
    report(g.seconds);
    return 0;
}
