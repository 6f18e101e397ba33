/* Threads of the listener under load, for TSan (Criterion does not run there) and for the cost of a
 * message: clients query, disconnect in the middle, cancel each other, and the listener drains
 * while they do. Usage: pg_listener_stress [seconds] [clients] [seed]. Prints messages/s and CPU us
 * a message. Exit 1: an answer was wrong or a session was left. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "coordinator/pg_listener.h"

#include <libpq-fe.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#define CLIENTS_MAX 64

struct fake {
    char status;
    atomic_bool cancel;
};

struct pg_stmt {
    int unused;
};

struct pg_portal {
    int unused;
};

static atomic_int sessions;
static atomic_bool stop;
static atomic_ulong messages;
static atomic_int wrong;
static unsigned port;
static bool rough; /* disconnects and cancels too */

static void f_free(void *s)
{
    atomic_fetch_sub(&sessions, 1);
    span_free(s);
}

/* Echoes the statement; "wait" ends by cancel or after 20 ms. */
static bool f_simple(void *s, struct slice sql, const struct pg_sink *k)
{
    static const struct pg_column column = {.name = "echo", .type_oid = PG_OID_TEXT};
    struct fake *f = s;
    struct pg_value v = {.text = sql};
    for (int i = 0; i < 20 && slice_eq(sql, slice_str("wait")); i++) {
        struct timespec ms = {0, 1000000};
        (void)nanosleep(&ms, NULL);
        if (atomic_exchange(&f->cancel, false)) {
            struct pg_error e = {.severity = "ERROR", .sqlstate = "57014", .message = "canceled"};
            pg_sink_error(k, &e);
            return false;
        }
    }
    pg_sink_row_description(k, &column, 1);
    if (pg_sink_data_row(k, &v, 1) != SPAN_OK) {
        return false;
    }
    pg_sink_command_complete(k, "SELECT 1");
    return true;
}

static char f_status(const void *s)
{
    return ((const struct fake *)s)->status;
}

static void f_cancel(void *s)
{
    atomic_store(&((struct fake *)s)->cancel, true);
}

static bool f_idle(void *s, uint64_t mono, const struct pg_sink *k)
{
    (void)s;
    (void)mono;
    (void)k;
    return true;
}

static bool f_sync(void *s, bool failed, const struct pg_sink *k)
{
    (void)s;
    (void)failed;
    (void)k;
    return true;
}

static const struct pg_session_ops ops = {.free = f_free,
                                          .simple = f_simple,
                                          .sync = f_sync,
                                          .txn_status = f_status,
                                          .cancel = f_cancel,
                                          .idle_check = f_idle};

static bool f_open(void *ctx, const struct pg_startup *st, const struct pg_sink *k,
                   struct pg_session *out)
{
    (void)ctx;
    (void)st;
    (void)k;
    struct fake *f = SPAN_NEW(struct fake);
    f->status = 'I';
    atomic_fetch_add(&sessions, 1);
    *out = (struct pg_session){&ops, f};
    return true;
}

static void no_notice(void *ctx, const char *text)
{
    (void)ctx;
    (void)text;
}

static PGconn *dial(void)
{
    char url[96];
    (void)snprintf(url, sizeof(url), "host=127.0.0.1 port=%u user=root", port);
    PGconn *c = PQconnectdb(url);
    if (PQstatus(c) != CONNECTION_OK) {
        PQfinish(c);
        return NULL;
    }
    (void)PQsetNoticeProcessor(c, no_notice, NULL);
    return c;
}

static void one(PGconn *c, struct rng *r)
{
    char text[32];
    bool wait = rough && rng_below(r, 50) == 0;
    (void)snprintf(text, sizeof(text), wait ? "wait" : "x%u", (unsigned)rng_below(r, 1000000));
    if (wait) {
        char why[256];
        PGcancel *cancel = PQgetCancel(c);
        (void)PQsendQuery(c, text);
        (void)PQcancel(cancel, why, sizeof(why));
        PQfreeCancel(cancel);
        for (PGresult *res; (res = PQgetResult(c)) != NULL;) {
            PQclear(res);
        }
    } else {
        PGresult *res = PQexec(c, text);
        if (PQresultStatus(res) == PGRES_TUPLES_OK && strcmp(PQgetvalue(res, 0, 0), text) != 0) {
            atomic_fetch_add(&wrong, 1);
        }
        PQclear(res);
    }
    atomic_fetch_add_explicit(&messages, 1, memory_order_relaxed);
}

static void *client(void *arg)
{
    struct rng r;
    rng_init(&r, *(const uint64_t *)arg);
    PGconn *c = NULL;
    while (!atomic_load(&stop)) {
        if (c == NULL || PQstatus(c) != CONNECTION_OK) {
            PQfinish(c);
            c = dial();
            if (c == NULL) {
                continue;
            }
        }
        one(c, &r);
        if (rough && rng_below(&r, 200) == 0) {
            (void)PQsendQuery(c, "wait");
            (void)shutdown(PQsocket(c), SHUT_RDWR);
        }
    }
    PQfinish(c);
    return NULL;
}

static double cpu_us(int who)
{
    struct rusage u;
    (void)getrusage(who, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int phase(const char *name, int seconds, int clients, uint64_t seed)
{
    static const char *const addresses[] = {"127.0.0.1:0"};
    struct pg_listener_config cfg = {.addresses = addresses,
                                     .address_count = 1,
                                     .factory = {f_open, NULL},
                                     .server_version = "0",
                                     .tick_ms = 5,
                                     .idle_thread_ms = 20};
    struct pg_listener *l = NULL;
    struct span_error err = {0};
    pthread_t threads[CLIENTS_MAX];
    uint64_t seeds[CLIENTS_MAX];
    if (pg_listener_open(&cfg, &l, &err) != SPAN_OK) {
        (void)fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    port = pg_listener_port(l, 0);
    atomic_store(&stop, false);
    atomic_store(&messages, 0);
    double cpu = cpu_us(RUSAGE_SELF);
    for (int i = 0; i < clients; i++) {
        seeds[i] = seed + (uint64_t)i;
        (void)pthread_create(&threads[i], NULL, client, &seeds[i]);
    }
    struct timespec nap = {seconds, 0};
    (void)nanosleep(&nap, NULL);
    unsigned long n = atomic_load(&messages);
    cpu = cpu_us(RUSAGE_SELF) - cpu;
    pg_listener_drain(l, 10); /* while they go on */
    atomic_store(&stop, true);
    for (int i = 0; i < clients; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    pg_listener_free(l);
    (void)printf("%-6s %d clients: %.0f messages/s, %.1f us CPU a message, client included\n", name,
                 clients, (double)n / seconds, cpu / (double)(n == 0 ? 1 : n));
    if (atomic_load(&sessions) != 0 || atomic_load(&wrong) != 0) {
        (void)fprintf(stderr, "%d sessions left, %d answers wrong\n", atomic_load(&sessions),
                      atomic_load(&wrong));
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 2;
    int clients = argc > 2 ? atoi(argv[2]) : 16;
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : rng_os_u64();
    clients = clients < 1 ? 1 : clients > CLIENTS_MAX ? CLIENTS_MAX : clients;
    seconds = seconds < 1 ? 1 : seconds;
    (void)printf("seed %llu\n", (unsigned long long)seed);
    int code = phase("plain", seconds, clients, seed);
    rough = true;
    return phase("rough", seconds, clients, seed) | code;
}
