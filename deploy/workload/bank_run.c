/* bank run: one thread, one epoll descriptor, all clients (bank_client.c); the progress line, the
 * acknowledgement file and the report. One thread because the load generator shares the machine
 * with the nodes it loads: at 16 clients it spends a fraction of what a thread per client would. */
#include "base/alloc.h"
#include "base/limits.h"
#include "deploy/workload/bank_client.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#define DRAIN_NS  (20 * SEC_NS) /* time for what is under way at the end, look-ups included */
#define NOBODY_NS (5 * SEC_NS)  /* of it, while no client has a connection */
#define EVENTS    64

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = interrupted + 1;
}

struct run {
    struct bank_shared s;
    struct bank_client *clients;
    unsigned count; /* transferring clients, then the auditor */
    int acks_fd;
    bool progress;
    uint64_t next_second;
    uint64_t seen_committed; /* at the last progress line */
    uint64_t connected_at;   /* when a client last had a connection */
    bool nobody_told;
    bool final_audit_ok;
    bool final_audit_done;
};

/* The file is appended to once a turn: what a client was told is there before the next turn. */
static span_status write_told(struct run *r, bool sync, struct span_error *err)
{
    struct buf *b = &r->s.told;
    size_t done = 0;
    while (r->acks_fd >= 0 && done < b->size) {
        ssize_t n = write(r->acks_fd, b->data + done, b->size - done);
        if (n < 0 && errno != EINTR) {
            return span_fail(err, SPAN_IO, "%s: %s", r->s.o->acks, strerror(errno));
        }
        done += n > 0 ? (size_t)n : 0;
    }
    buf_clear(b);
    if (sync && r->acks_fd >= 0 && fdatasync(r->acks_fd) != 0 && errno != EINVAL) {
        return span_fail(err, SPAN_IO, "%s: %s", r->s.o->acks, strerror(errno));
    }
    return SPAN_OK;
}

static double ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

static void progress(struct run *r)
{
    struct bank_shared *s = &r->s;
    if (s->now < r->next_second) {
        return;
    }
    double span = (double)(s->now - (r->next_second - SEC_NS)) / 1e9;
    double rate = (double)(s->committed - r->seen_committed) / span;
    uint64_t since = s->now - s->last_ack;
    if (r->progress) {
        /* It has to stay within 80 columns: a line that wraps is not overwritten by \r. */
        (void)fprintf(stderr,
                      "\r%4.0f s %6.0f/s  p50 %.1f p99 %.1f ms  retries %" PRIu64
                      "  unknown %" PRIu64,
                      (double)(s->now - s->start) / 1e9, rate, ms(hist_quantile(&s->second, 0.5)),
                      ms(hist_quantile(&s->second, 0.99)), s->retries, s->unknown);
        if (since > SEC_NS) {
            (void)fprintf(stderr, "  NOTHING for %.1f s", (double)since / 1e9);
        } else {
            (void)fprintf(stderr, "  audits %" PRIu64 " %s", s->audits,
                          s->mismatches == 0 ? "equal" : "DIFFER");
        }
        (void)fputs("\x1b[K", stderr);
    }
    r->seen_committed = s->committed;
    hist_init(&s->second);
    r->next_second = s->now + SEC_NS;
}

static int wait_ms(struct run *r, uint64_t end)
{
    const struct heap_node *first = heap_min(&r->s.timers);
    uint64_t at = r->next_second < end ? r->next_second : end;
    uint64_t check = r->s.now + 100 * MS_NS; /* statement timeouts */
    at = at < check ? at : check;
    if (first != NULL && first->key < at) {
        at = first->key;
    }
    return at <= r->s.now ? 0 : (int)((at - r->s.now + MS_NS - 1) / MS_NS);
}

static void turn(struct run *r, uint64_t end, uint64_t *next_check)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(r->s.epoll_fd, events, EVENTS, wait_ms(r, end));
    r->s.now = workload_now_ns();
    for (int i = 0; i < n; i++) {
        bank_client_ready(events[i].data.ptr);
    }
    for (struct heap_node *t; (t = heap_min(&r->s.timers)) != NULL && t->key <= r->s.now;) {
        bank_client_wake(
            (struct bank_client *)(void *)((char *)t - offsetof(struct bank_client, timer)));
    }
    if (r->s.now >= *next_check) {
        *next_check = r->s.now + 100 * MS_NS;
        for (unsigned i = 0; i < r->count; i++) {
            const struct bank_client *c = &r->clients[i];
            bank_client_check_timeout(&r->clients[i]);
            if (c->state != BANK_DOWN && c->state != BANK_DIALING && c->state != BANK_DONE) {
                r->connected_at = r->s.now;
            }
        }
    }
}

/* No node is there to say what became of the transfers under way: an end that is not waited for to
 * the last. */
static bool is_alone(struct run *r)
{
    const struct bank_shared *s = &r->s;
    uint64_t since = r->connected_at > s->stop_at ? r->connected_at : s->stop_at;
    if (!s->stopping || s->now < since + SEC_NS) {
        return false;
    }
    if (!r->nobody_told) {
        r->nobody_told = true;
        (void)fprintf(stderr,
                      "%sspanlite workload: no node answers; %u client%s wait for the outcome of "
                      "what was under way, %u s at most\n",
                      r->progress ? "\r\x1b[K" : "", s->active, s->active == 1 ? "" : "s",
                      (unsigned)(NOBODY_NS / SEC_NS));
    }
    return s->now >= since + NOBODY_NS;
}

static span_status loop(struct run *r, struct span_error *err)
{
    struct bank_shared *s = &r->s;
    uint64_t next_check = 0;
    uint64_t next_sync = s->now + SEC_NS;
    uint64_t end = s->stop_at;
    while (s->active != 0) {
        turn(r, end, &next_check);
        span_status st = write_told(r, s->now >= next_sync, err);
        if (st != SPAN_OK) {
            return st;
        }
        next_sync = s->now >= next_sync ? s->now + SEC_NS : next_sync;
        progress(r);
        bool enough = s->o->transfers_max != 0 && s->committed + s->declined >= s->o->transfers_max;
        if (!s->stopping && (s->now >= s->stop_at || interrupted != 0 || enough)) {
            s->stopping = true;
        }
        if (s->stopping && end == s->stop_at) {
            uint64_t gap = s->now - s->last_ack; /* a silence that lasted to the end counts too */
            s->gap_max = gap > s->gap_max ? gap : s->gap_max;
            end = s->now + DRAIN_NS;
            s->stop_at = s->now;
        }
        if (s->stopping && (s->now >= end || is_alone(r) || interrupted > 1)) {
            for (unsigned i = 0; i < r->count; i++) {
                bank_client_abandon(&r->clients[i]);
            }
        }
    }
    return write_told(r, true, err);
}

/* After everything, with a statement that goes on to other nodes until one answers. */
static span_status final_audit(struct run *r, PGconn **conn, struct span_error *err)
{
    PGresult *res = NULL;
    struct bank_shared *s = &r->s;
    span_status st = cluster_url_exec(
        s->o->url, conn, "SELECT count(*), sum(balance) FROM accounts", 30000, &res, err);
    if (st != SPAN_OK) {
        return st;
    }
    uint64_t count = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
    int64_t total = strtoll(PQgetvalue(res, 0, 1), NULL, 10);
    PQclear(res);
    r->final_audit_done = true;
    r->final_audit_ok =
        count == s->info.accounts && total == (int64_t)s->info.accounts * s->info.balance;
    s->audits++;
    if (!r->final_audit_ok) {
        s->mismatches++;
        if (s->trouble[0] == '\0') {
            (void)snprintf(s->trouble, sizeof(s->trouble),
                           "the last audit found %" PRIu64 " accounts holding %" PRId64
                           ", there are %" PRIu64 " holding %" PRId64,
                           count, total, s->info.accounts,
                           (int64_t)s->info.accounts * s->info.balance);
        }
    }
    return SPAN_OK;
}

static bool is_ok(const struct run *r)
{
    return r->s.fatal[0] == '\0' && r->s.mismatches == 0 && r->s.violations == 0 &&
           r->final_audit_ok && r->s.committed != 0;
}

static void report_json(const struct run *r, double seconds)
{
    const struct bank_shared *s = &r->s;
    const struct hist *h = &s->latency;
    (void)printf(
        "{\"transactions_per_s\": %.1f, \"p50_ms\": %.3f, \"p95_ms\": %.3f, \"p99_ms\": %.3f, "
        "\"max_ms\": %.3f, \"retries\": %" PRIu64 ", \"unknown\": %" PRIu64 ", \"audits\": %" PRIu64
        ", \"ok\": %s, ",
        (double)s->committed / seconds, ms(hist_quantile(h, 0.5)), ms(hist_quantile(h, 0.95)),
        ms(hist_quantile(h, 0.99)), ms(h->max), s->retries, s->unknown, s->audits,
        is_ok(r) ? "true" : "false");
    (void)printf(
        "\"transactions\": %" PRIu64 ", \"seconds\": %.3f, \"clients\": %u, \"declined\": %" PRIu64
        ", \"resolved\": %" PRIu64 ", \"reconnects\": %" PRIu64 ", \"stale_audits\": %" PRIu64
        ", \"mismatches\": %" PRIu64 ", \"violations\": %" PRIu64 ", \"longest_gap_ms\": %.1f}\n",
        s->committed, seconds, s->o->clients, s->declined, s->resolved, s->reconnects,
        s->stale_audits, s->mismatches, s->violations, ms(s->gap_max));
}

static void report_text(const struct run *r, double seconds)
{
    const struct bank_shared *s = &r->s;
    const struct hist *h = &s->latency;
    (void)printf("transfers          %" PRIu64 " in %.1f s by %u clients\n", s->committed, seconds,
                 s->o->clients);
    (void)printf("transfers/s        %.0f\n", (double)s->committed / seconds);
    (void)printf("latency            p50 %.2f  p95 %.2f  p99 %.2f  max %.1f ms\n",
                 ms(hist_quantile(h, 0.5)), ms(hist_quantile(h, 0.95)), ms(hist_quantile(h, 0.99)),
                 ms(h->max));
    (void)printf("longest silence    %.0f ms\n", ms(s->gap_max));
    (void)printf("retries            %" PRIu64 "\n", s->retries);
    (void)printf("declined           %" PRIu64 " (not enough money)\n", s->declined);
    (void)printf("reconnects         %" PRIu64 "\n", s->reconnects);
    (void)printf("outcome unknown    %" PRIu64 ", %" PRIu64 " learned by SHOW TRANSACTION STATUS\n",
                 s->unknown, s->resolved);
    (void)printf("audits             %" PRIu64 " (%" PRIu64 " in the past), %s\n", s->audits,
                 s->stale_audits, s->mismatches == 0 ? "every total equal" : "TOTALS DIFFER");
    (void)printf("verdict            %s\n", is_ok(r) ? "ok" : "NOT OK");
}

static int finish(struct run *r, PGconn **conn)
{
    struct bank_shared *s = &r->s;
    struct span_error err = {0};
    double seconds = (double)(s->stop_at - s->start) / 1e9;
    if (r->progress) {
        (void)fputs("\r\x1b[K", stderr);
    }
    span_status st = final_audit(r, conn, &err);
    if (s->o->json) {
        report_json(r, seconds);
    } else {
        report_text(r, seconds);
    }
    (void)fflush(stdout);
    if (st != SPAN_OK) {
        (void)fprintf(stderr, "spanlite workload: the last audit could not be made: %s\n",
                      err.text);
    }
    if (s->trouble[0] != '\0') {
        (void)fprintf(stderr, "spanlite workload: %s\n", s->trouble);
    }
    if (s->fatal[0] != '\0') {
        (void)fprintf(stderr, "spanlite workload: %s\n", s->fatal);
    }
    if (s->committed == 0 && s->fatal[0] == '\0') {
        (void)fputs("spanlite workload: no transfer was acknowledged\n", stderr);
    }
    return is_ok(r) ? 0 : 1;
}

static span_status prepare(struct run *r, const struct bank_options *o, PGconn **conn,
                           struct span_error *err)
{
    struct bank_shared *s = &r->s;
    span_status st = bank_info_read(o->url, conn, &s->info, err);
    if (st != SPAN_OK) {
        return st;
    }
    if (o->acks != NULL) {
        r->acks_fd = open(o->acks, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (r->acks_fd < 0) {
            return span_fail(err, SPAN_IO, "%s: %s", o->acks, strerror(errno));
        }
    }
    if (o->history != NULL) {
        char header[96];
        (void)snprintf(header, sizeof(header), ",\"accounts\":%" PRIu64 ",\"balance\":%" PRId64,
                       s->info.accounts, s->info.balance);
        st = history_file_open(o->history, "bank", header, &s->history, err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll_fd < 0) {
        return span_fail(err, SPAN_IO, "epoll: %s", strerror(errno));
    }
    return SPAN_OK;
}

static void start_clients(struct run *r)
{
    struct bank_shared *s = &r->s;
    s->now = workload_now_ns();
    s->start = s->now;
    s->last_ack = s->now;
    s->stop_at = s->now + (uint64_t)(s->o->seconds * 1e9);
    r->next_second = s->now + SEC_NS;
    r->count = s->o->clients + (s->o->audit_ms != 0 ? 1 : 0);
    r->clients = span_calloc(r->count, sizeof(*r->clients));
    for (unsigned i = 0; i < r->count; i++) {
        bank_client_init(&r->clients[i], s, i, i == s->o->clients);
    }
}

int bank_run(const struct bank_options *o)
{
    struct run *r = SPAN_NEW(struct run);
    struct span_error err = {0};
    PGconn *conn = NULL;
    int code;
    struct sigaction sa = {.sa_handler = on_signal};
    struct sigaction old_int;
    struct sigaction old_term;
    r->acks_fd = -1;
    r->s.o = o;
    r->s.epoll_fd = -1;
    r->progress = !o->quiet && isatty(STDERR_FILENO);
    heap_init(&r->s.timers);
    hist_init(&r->s.latency);
    hist_init(&r->s.second);
    buf_init(&r->s.told);
    interrupted = 0;
    (void)sigaction(SIGINT, &sa, &old_int);
    (void)sigaction(SIGTERM, &sa, &old_term);
    span_status st = prepare(r, o, &conn, &err);
    if (st == SPAN_OK) {
        start_clients(r);
        st = loop(r, &err);
        code = st == SPAN_OK ? finish(r, &conn) : bank_fail(&err);
    } else {
        code = bank_fail(&err);
    }
    (void)sigaction(SIGINT, &old_int, NULL);
    (void)sigaction(SIGTERM, &old_term, NULL);
    if (history_file_close(r->s.history, st == SPAN_OK, &err) != SPAN_OK) {
        code = bank_fail(&err);
    }
    for (unsigned i = 0; i < r->count; i++) {
        bank_client_deinit(&r->clients[i]);
    }
    span_free(r->clients);
    PQfinish(conn);
    if (r->acks_fd >= 0) {
        (void)close(r->acks_fd);
    }
    if (r->s.epoll_fd >= 0) {
        (void)close(r->s.epoll_fd);
    }
    heap_deinit(&r->s.timers);
    buf_deinit(&r->s.told);
    span_free(r);
    return code;
}
