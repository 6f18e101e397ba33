/* The listener with a fake session and libpq as the client: real sockets on 127.0.0.1, a few real
 * threads. The fake session understands a handful of words; see fake_run(). */
#include "base/alloc.h"
#include "base/limits.h"
#include "coordinator/pg_listener.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The fake session. */

static atomic_int sessions_open;
static atomic_int rollbacks;
static atomic_int blocked;
static atomic_bool unblock;
static _Atomic uint64_t held_until;
static atomic_int idle_checks;

struct fake {
    char status;
    atomic_bool cancel;
    bool implicit_failed;
};

struct pg_stmt {
    char *sql;
};

struct pg_portal {
    char *sql;
    char *param;
    unsigned next;
    unsigned rows;
};

static bool fake_open(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                      struct pg_session *out);

static void nap(void)
{
    struct timespec ts = {0, 1000000};
    (void)nanosleep(&ts, NULL);
}

static bool fail(struct fake *f, const struct pg_sink *sink, const char *state, const char *message)
{
    struct pg_error e = {
        .severity = "ERROR", .sqlstate = state, .message = message, .hint = "none"};
    pg_sink_error(sink, &e);
    if (f->status == 'T') {
        f->status = 'E';
    }
    return false;
}

static bool text_row(const struct pg_sink *sink, const char *text)
{
    struct pg_value v = {.text = slice_str(text)};
    return pg_sink_data_row(sink, &v, 1) == SPAN_OK;
}

static const struct pg_column one_column = {.name = "n", .type_oid = PG_OID_INT8};

/* One statement: begin, commit, rollback, fail, block, gate NS, commit NS, abort NS, rows N,
 * anything else echoes 1. */
static bool fake_run(struct fake *f, const char *sql, const struct pg_sink *sink)
{
    unsigned long n = 0;
    if (strcmp(sql, "begin") == 0) {
        f->status = 'T';
        pg_sink_command_complete(sink, "BEGIN");
    } else if (strcmp(sql, "commit") == 0 || strcmp(sql, "rollback") == 0) {
        pg_sink_command_complete(sink, f->status == 'E' || sql[0] == 'r' ? "ROLLBACK" : "COMMIT");
        f->status = 'I';
    } else if (strcmp(sql, "fail") == 0) {
        return fail(f, sink, "22012", "division by zero");
    } else if (strcmp(sql, "block") == 0) {
        atomic_fetch_add(&blocked, 1);
        while (!atomic_load(&unblock) && !atomic_exchange(&f->cancel, false)) {
            nap();
        }
        atomic_fetch_sub(&blocked, 1);
        return atomic_load(&unblock) ? (pg_sink_command_complete(sink, "DO"), true)
                                     : fail(f, sink, "57014", "canceling statement");
    } else if (sscanf(sql, "gate %lu", &n) == 1) {
        pg_sink_gate(sink, n);
        pg_sink_command_complete(sink, "GATE");
    } else if (sscanf(sql, "commit %lu", &n) == 1) {
        pg_sink_commit_begins(sink);
        pg_sink_gate(sink, n);
        pg_sink_command_complete(sink, "COMMIT");
    } else if (sscanf(sql, "abort %lu", &n) == 1) {
        pg_sink_commit_begins(sink);
        pg_sink_gate(sink, n);
        return fail(f, sink, "40001", "restart transaction");
    } else {
        pg_sink_row_description(sink, &one_column, 1);
        if (sscanf(sql, "rows %lu", &n) != 1) {
            n = 1;
        }
        for (unsigned long i = 0; i < n; i++) {
            char text[32];
            (void)snprintf(text, sizeof(text), "%lu", i + 1);
            if (!text_row(sink, text)) {
                return false;
            }
        }
        pg_sink_command_complete(sink, "SELECT 1");
    }
    return true;
}

static void fake_free(void *s)
{
    struct fake *f = s;
    if (f->status != 'I') {
        atomic_fetch_add(&rollbacks, 1);
    }
    span_free(f);
    atomic_fetch_sub(&sessions_open, 1);
}

static bool fake_simple(void *s, struct slice sql, const struct pg_sink *sink)
{
    char text[64];
    (void)snprintf(text, sizeof(text), "%.*s", sql.size > 63 ? 63 : (int)sql.size,
                   (const char *)sql.data);
    if (text[0] == '\0') {
        pg_sink_empty_query(sink);
        return true;
    }
    return fake_run(s, text, sink);
}

static bool fake_parse(void *s, struct slice sql, const uint32_t *oids, size_t oid_count,
                       const struct pg_sink *sink, struct pg_stmt **out)
{
    (void)s;
    (void)oids;
    (void)oid_count;
    (void)sink;
    *out = SPAN_NEW(struct pg_stmt);
    (*out)->sql = span_asprintf("%.*s", (int)sql.size, (const char *)sql.data);
    return true;
}

static bool fake_describe(void *s, struct pg_stmt *stmt, const struct pg_sink *sink)
{
    (void)s;
    (void)stmt;
    uint32_t oid = PG_OID_INT8;
    pg_sink_parameter_description(sink, &oid, 1);
    pg_sink_row_description(sink, &one_column, 1);
    return true;
}

static bool fake_bind(void *s, struct pg_stmt *stmt, const struct pg_value *values, size_t count,
                      const struct pg_sink *sink, struct pg_portal **out)
{
    (void)s;
    (void)sink;
    *out = SPAN_NEW(struct pg_portal);
    (*out)->sql = span_strdup(stmt->sql);
    (*out)->param = count == 0 ? span_strdup("7")
                               : span_asprintf("%.*s", (int)values[0].text.size,
                                               (const char *)values[0].text.data);
    return true;
}

static bool fake_describe_portal(void *s, struct pg_portal *p, const struct pg_sink *sink)
{
    (void)s;
    (void)p;
    pg_sink_row_description(sink, &one_column, 1);
    return true;
}

static bool fake_execute(void *s, struct pg_portal *p, uint32_t max, const struct pg_sink *sink)
{
    (void)max;
    if (strcmp(p->sql, "echo") == 0) {
        bool ok = text_row(sink, p->param);
        pg_sink_command_complete(sink, "SELECT 1");
        return ok;
    }
    return fake_run(s, p->sql, sink);
}

static void fake_stmt_free(void *s, struct pg_stmt *stmt)
{
    (void)s;
    span_free(stmt->sql);
    span_free(stmt);
}

static void fake_portal_free(void *s, struct pg_portal *p)
{
    (void)s;
    span_free(p->sql);
    span_free(p->param);
    span_free(p);
}

static bool fake_sync(void *s, bool failed, const struct pg_sink *sink)
{
    (void)s;
    (void)failed;
    (void)sink;
    return true;
}

static char fake_status(const void *s)
{
    return ((const struct fake *)s)->status;
}

static void fake_cancel(void *s)
{
    atomic_store(&((struct fake *)s)->cancel, true);
}

static bool fake_idle(void *s, uint64_t mono, const struct pg_sink *sink)
{
    (void)mono;
    struct fake *f = s;
    atomic_fetch_add(&idle_checks, 1);
    if (f->status == 'E') { /* the fake's way of an idle timeout */
        struct pg_error e = {.severity = "FATAL", .sqlstate = "25P03", .message = "idle too long"};
        pg_sink_error(sink, &e);
        return false;
    }
    return true;
}

static const struct pg_session_ops fake_ops = {
    .free = fake_free,
    .simple = fake_simple,
    .parse = fake_parse,
    .describe_stmt = fake_describe,
    .bind = fake_bind,
    .describe_portal = fake_describe_portal,
    .execute = fake_execute,
    .stmt_free = fake_stmt_free,
    .portal_free = fake_portal_free,
    .sync = fake_sync,
    .txn_status = fake_status,
    .cancel = fake_cancel,
    .idle_check = fake_idle,
};

static bool fake_open(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                      struct pg_session *out)
{
    (void)ctx;
    if (strcmp(st->database, "nowhere") == 0) {
        struct pg_error e = {
            .severity = "FATAL", .sqlstate = "3D000", .message = "database does not exist"};
        pg_sink_error(sink, &e);
        return false;
    }
    struct fake *f = SPAN_NEW(struct fake);
    f->status = 'I';
    atomic_fetch_add(&sessions_open, 1);
    *out = (struct pg_session){&fake_ops, f};
    return true;
}

/* Harness. */

static bool gate_hold(void *ctx, uint64_t not_before)
{
    (void)ctx;
    atomic_store(&held_until, not_before);
    return not_before != 666;
}

static void gate_refusal(void *ctx, char *out, size_t size)
{
    (void)ctx;
    (void)snprintf(out, size, "the clock is out");
}

static struct pg_listener *start_with(struct pg_listener_config cfg, unsigned *port)
{
    static const char *const addresses[] = {"127.0.0.1:0"};
    struct span_error err = {0};
    struct pg_listener *l = NULL;
    cfg.addresses = addresses;
    cfg.address_count = 1;
    cfg.factory.open = fake_open;
    cfg.server_version = "0.1.0";
    cfg.hold = gate_hold;
    cfg.hold_refusal = gate_refusal;
    cfg.tick_ms = cfg.tick_ms == 0 ? 50 : cfg.tick_ms;
    cr_assert_eq(pg_listener_open(&cfg, &l, &err), SPAN_OK, "%s", err.text);
    *port = pg_listener_port(l, 0);
    return l;
}

static struct pg_listener *start(unsigned *port)
{
    return start_with((struct pg_listener_config){0}, port);
}

static PGconn *dial_db(unsigned port, const char *db)
{
    char url[128];
    (void)snprintf(url, sizeof(url), "host=127.0.0.1 port=%u user=root dbname=%s", port, db);
    return PQconnectdb(url);
}

static PGconn *dial(unsigned port)
{
    PGconn *c = dial_db(port, "bank");
    cr_assert_eq(PQstatus(c), CONNECTION_OK, "%s", PQerrorMessage(c));
    return c;
}

static void expect(PGconn *c, const char *sql, ExecStatusType status, const char *tag)
{
    PGresult *r = PQexec(c, sql);
    cr_assert_eq(PQresultStatus(r), status, "%s: %s", sql, PQerrorMessage(c));
    if (tag != NULL) {
        cr_assert_str_eq(PQcmdStatus(r), tag);
    }
    PQclear(r);
}

/* Polls a condition for up to 10 s. */
#define EVENTUALLY(cond)                                                                           \
    do {                                                                                           \
        int left = 10000;                                                                          \
        while (!(cond) && left-- > 0) {                                                            \
            nap();                                                                                 \
        }                                                                                          \
        cr_assert(cond);                                                                           \
    } while (0)

static int raw_dial(unsigned port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    cr_assert_eq(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

/* Everything until the server closes. */
static size_t raw_read_all(int fd, char *to, size_t max)
{
    size_t n = 0;
    for (ssize_t got; n < max && (got = recv(fd, to + n, max - n, 0)) > 0;) {
        n += (size_t)got;
    }
    return n;
}

Test(pg_listener, serves_queries_errors_and_transactions_to_libpq, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    cr_assert_str_eq(PQparameterStatus(c, "server_version"), "15.0 (spanlite 0.1.0)");
    cr_assert_eq(PQserverVersion(c), 150000);
    expect(c, "select", PGRES_TUPLES_OK, "SELECT 1");
    expect(c, "fail", PGRES_FATAL_ERROR, NULL);
    cr_assert_eq(PQtransactionStatus(c), PQTRANS_IDLE);
    expect(c, "begin", PGRES_COMMAND_OK, "BEGIN");
    cr_assert_eq(PQtransactionStatus(c), PQTRANS_INTRANS);
    expect(c, "fail", PGRES_FATAL_ERROR, NULL);
    cr_assert_eq(PQtransactionStatus(c), PQTRANS_INERROR);
    expect(c, "commit", PGRES_COMMAND_OK, "ROLLBACK");
    expect(c, "", PGRES_EMPTY_QUERY, NULL);
    PQfinish(c);
    EVENTUALLY(atomic_load(&sessions_open) == 0);
    cr_assert_eq(atomic_load(&rollbacks), 0);
    pg_listener_free(l);
}

Test(pg_listener, serves_prepared_statements_in_text_and_binary, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    PQclear(PQprepare(c, "s", "echo", 0, NULL));
    PGresult *r = PQprepare(c, "s", "echo", 0, NULL);
    cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "42P05");
    PQclear(r);
    const char *value = "12345";
    r = PQexecPrepared(c, "s", 1, &value, NULL, NULL, 0);
    cr_assert_str_eq(PQgetvalue(r, 0, 0), "12345");
    PQclear(r);
    const char bin[8] = {0, 0, 0, 0, 0, 0, 1, 2};
    const char *const values[] = {bin};
    int length = 8;
    int format = 1;
    r = PQexecPrepared(c, "s", 1, values, &length, &format, 1);
    cr_assert_eq(PQresultStatus(r), PGRES_TUPLES_OK, "%s", PQerrorMessage(c));
    cr_assert_eq(PQfformat(r, 0), 1);
    cr_assert_eq(PQgetlength(r, 0, 0), 8);
    cr_assert_eq(memcmp(PQgetvalue(r, 0, 0), bin, 8), 0);
    PQclear(r);
    r = PQdescribePrepared(c, "s");
    cr_assert_eq(PQparamtype(r, 0), (Oid)PG_OID_INT8);
    PQclear(r);
    r = PQexecPrepared(c, "missing", 0, NULL, NULL, NULL, 0);
    cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "26000");
    PQclear(r);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, answers_a_pipeline_in_order_and_skips_to_sync_after_an_error, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    PQenterPipelineMode(c);
    for (int i = 0; i < 100; i++) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%d", i);
        const char *value = text;
        PQsendQueryParams(c, i == 50 ? "fail" : "echo", 1, NULL, &value, NULL, NULL, 0);
    }
    PQpipelineSync(c);
    for (int i = 0; i < 100; i++) {
        PGresult *r = PQgetResult(c);
        if (i < 50) {
            cr_assert_eq(atoi(PQgetvalue(r, 0, 0)), i);
        } else {
            cr_assert_eq(PQresultStatus(r), i == 50 ? PGRES_FATAL_ERROR : PGRES_PIPELINE_ABORTED);
        }
        PQclear(r);
        cr_assert_null(PQgetResult(c));
    }
    PGresult *r = PQgetResult(c);
    cr_assert_eq(PQresultStatus(r), PGRES_PIPELINE_SYNC);
    PQclear(r);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, cancels_a_blocked_statement_by_key, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    PQsendQuery(c, "block");
    EVENTUALLY(atomic_load(&blocked) == 1);
    PGcancel *cancel = PQgetCancel(c);
    char why[256];
    cr_assert_eq(PQcancel(cancel, why, sizeof(why)), 1, "%s", why);
    PQfreeCancel(cancel);
    PGresult *r = PQgetResult(c);
    cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "57014");
    PQclear(r);
    cr_assert_null(PQgetResult(c));
    expect(c, "select", PGRES_TUPLES_OK, NULL);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, lets_others_work_while_many_statements_block_then_lets_threads_go, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start_with((struct pg_listener_config){.idle_thread_ms = 50}, &port);
    PGconn *blockers[40];
    for (int i = 0; i < 40; i++) {
        blockers[i] = dial(port);
        PQsendQuery(blockers[i], "block");
    }
    EVENTUALLY(atomic_load(&blocked) == 40);
    PGconn *c = dial(port);
    expect(c, "commit", PGRES_COMMAND_OK, "COMMIT");
    cr_assert_geq(pg_listener_threads(l), 41);
    atomic_store(&unblock, true);
    for (int i = 0; i < 40; i++) {
        PGresult *r = PQgetResult(blockers[i]);
        cr_assert_eq(PQresultStatus(r), PGRES_COMMAND_OK);
        PQclear(r);
    }
    EVENTUALLY(pg_listener_threads(l) <= 3); /* idle connections keep no thread */
    for (int i = 0; i < 40; i++) {
        PQfinish(blockers[i]);
    }
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, serves_two_hundred_connections_and_refuses_beyond_the_limit, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start_with((struct pg_listener_config){.sessions_max = 200}, &port);
    static PGconn *all[200];
    for (int i = 0; i < 200; i++) {
        all[i] = dial(port);
    }
    PGconn *more = dial_db(port, "bank");
    cr_assert_eq(PQstatus(more), CONNECTION_BAD);
    cr_assert_not_null(strstr(PQerrorMessage(more), "too many clients"), "%s",
                       PQerrorMessage(more));
    PQfinish(more);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 200; i++) {
            PQsendQuery(all[i], "rows 3");
        }
        for (int i = 0; i < 200; i++) {
            PGresult *r = PQgetResult(all[i]);
            cr_assert_eq(PQntuples(r), 3);
            PQclear(r);
            cr_assert_null(PQgetResult(all[i]));
        }
    }
    for (int i = 0; i < 200; i++) {
        PQfinish(all[i]);
    }
    EVENTUALLY(pg_listener_connections(l) == 0);
    PQfinish(dial(port));
    pg_listener_free(l);
}

Test(pg_listener, rolls_back_when_the_client_leaves_in_a_transaction, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    expect(c, "begin", PGRES_COMMAND_OK, NULL);
    (void)shutdown(PQsocket(c), SHUT_RDWR); /* no Terminate message */
    EVENTUALLY(atomic_load(&rollbacks) == 1);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, cancels_the_statement_of_a_client_that_left, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    PQsendQuery(c, "block");
    EVENTUALLY(atomic_load(&blocked) == 1);
    (void)shutdown(PQsocket(c), SHUT_RDWR);
    EVENTUALLY(atomic_load(&blocked) == 0);
    EVENTUALLY(pg_listener_connections(l) == 0);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, holds_every_answer_at_the_gate_and_sends_nothing_when_it_cannot, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    expect(c, "gate 12345", PGRES_COMMAND_OK, "GATE");
    cr_assert_eq(atomic_load(&held_until), 12345);
    PQfinish(c);

    static const struct {
        const char *sql;
        const char *code;
        const char *text;
    } cases[] = {
        {"gate 666", "57P03", "the clock is out"},
        {"commit 666", "40003", "may have committed"}, /* done, and nobody may be told */
        {"abort 666", "57P03", "the clock is out"},    /* a commit that failed is not unknown */
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        c = dial(port);
        PQsendQuery(c, cases[i].sql);
        PGresult *r = PQgetResult(c);
        cr_assert_neq(PQresultStatus(r), PGRES_COMMAND_OK);
        cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), cases[i].code);
        cr_assert(strstr(PQresultErrorMessage(r), cases[i].text) != NULL);
        PQclear(r);
        while ((r = PQgetResult(c)) != NULL) {
            PQclear(r);
        }
        cr_assert_eq(PQstatus(c), CONNECTION_BAD);
        PQfinish(c);
    }
    pg_listener_free(l);
}

Test(pg_listener, streams_a_large_result_to_a_slow_reader, .timeout = 120)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    PQsendQuery(c, "rows 500000");
    PQsetSingleRowMode(c);
    long n = 0;
    for (PGresult *r; (r = PQgetResult(c)) != NULL;) {
        n += PQntuples(r);
        PQclear(r);
    }
    cr_assert_eq(n, 500000);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, drops_a_client_that_never_reads, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start_with((struct pg_listener_config){.write_timeout_ms = 100}, &port);
    PGconn *c = dial(port);
    PQsendQuery(c, "rows 100000000");
    EVENTUALLY(pg_listener_connections(l) == 0);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, refuses_an_oversized_statement_and_goes_on, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    for (size_t size = LIMIT_STATEMENT_BYTES + 1; size < 32 * MIB; size *= 4) {
        char *sql = span_malloc(size + 1);
        memset(sql, 'x', size);
        sql[size] = '\0';
        PGresult *r = PQexec(c, sql);
        cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "54000");
        cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY),
                         "statement is longer than 1 MiB");
        PQclear(r);
        r = PQexecParams(c, sql, 0, NULL, NULL, NULL, NULL, 0);
        cr_assert_str_eq(PQresultErrorField(r, PG_DIAG_SQLSTATE), "54000");
        PQclear(r);
        span_free(sql);
        expect(c, "select", PGRES_TUPLES_OK, NULL);
    }
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, answers_garbage_with_an_error_and_closes, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    int fd = raw_dial(port);
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    cr_assert_gt(send(fd, http, sizeof(http) - 1, 0), 0);
    char answer[512];
    size_t n = raw_read_all(fd, answer, sizeof(answer));
    cr_assert_gt(n, 5);
    cr_assert_eq(answer[0], 'E');
    cr_assert_not_null(memmem(answer, n, "08P01", 5));
    (void)close(fd);
    EVENTUALLY(pg_listener_connections(l) == 0);
    pg_listener_free(l);
}

Test(pg_listener, drops_a_client_that_says_nothing, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l =
        start_with((struct pg_listener_config){.startup_timeout_ms = 100}, &port);
    int fd = raw_dial(port);
    char c;
    cr_assert_eq(recv(fd, &c, 1, 0), 0);
    (void)close(fd);
    pg_listener_free(l);
}

Test(pg_listener, gives_the_session_its_idle_checks_and_closes_when_told, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial(port);
    EVENTUALLY(atomic_load(&idle_checks) > 2);
    expect(c, "begin", PGRES_COMMAND_OK, NULL);
    PGresult *r = PQexec(c, "fail");
    PQclear(r);
    EVENTUALLY(pg_listener_connections(l) == 0);
    r = PQexec(c, "select");
    cr_assert_eq(PQstatus(c), CONNECTION_BAD);
    cr_assert_not_null(strstr(PQerrorMessage(c), "idle too long"), "%s", PQerrorMessage(c));
    PQclear(r);
    PQfinish(c);
    pg_listener_free(l);
}

Test(pg_listener, reports_a_database_that_is_not_there, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *c = dial_db(port, "nowhere");
    cr_assert_eq(PQstatus(c), CONNECTION_BAD);
    cr_assert_not_null(strstr(PQerrorMessage(c), "database does not exist"));
    PQfinish(c);
    EVENTUALLY(pg_listener_connections(l) == 0);
    pg_listener_free(l);
}

static void *drain_main(void *l)
{
    pg_listener_drain(l, 10000);
    return NULL;
}

Test(pg_listener, drains_idle_ones_at_once_and_lets_transactions_finish, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *idle = dial(port);
    PGconn *busy = dial(port);
    expect(busy, "begin", PGRES_COMMAND_OK, NULL);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, drain_main, l), 0);
    EVENTUALLY(pg_listener_connections(l) == 1);
    PGresult *r = PQexec(idle, "select");
    cr_assert_not_null(strstr(PQerrorMessage(idle), "shutting down"), "%s", PQerrorMessage(idle));
    PQclear(r);
    PGconn *late = dial_db(port, "bank");
    cr_assert_eq(PQstatus(late), CONNECTION_BAD);
    expect(busy, "commit", PGRES_COMMAND_OK, "COMMIT");
    pthread_join(thread, NULL);
    cr_assert_eq(atomic_load(&sessions_open), 0);
    PQfinish(idle);
    PQfinish(busy);
    PQfinish(late);
    pg_listener_free(l);
}

Test(pg_listener, cancels_what_is_left_when_the_grace_is_over, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    PGconn *open = dial(port);
    PGconn *stuck = dial(port);
    expect(open, "begin", PGRES_COMMAND_OK, NULL);
    PQsendQuery(stuck, "block");
    EVENTUALLY(atomic_load(&blocked) == 1);
    pg_listener_drain(l, 50);
    cr_assert_eq(atomic_load(&sessions_open), 0);
    cr_assert_eq(atomic_load(&rollbacks), 1);
    PQfinish(open);
    PQfinish(stuck);
    pg_listener_free(l);
}

Test(pg_listener, names_the_address_when_the_port_is_taken_or_nonsense, .timeout = 60)
{
    unsigned port;
    struct pg_listener *l = start(&port);
    char address[32];
    (void)snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    const char *const taken[] = {address};
    struct pg_listener_config cfg = {.addresses = taken, .address_count = 1, .server_version = "0"};
    struct pg_listener *second = NULL;
    struct span_error err = {0};
    cr_assert_eq(pg_listener_open(&cfg, &second, &err), SPAN_EXISTS);
    cr_assert_not_null(strstr(err.text, address));
    cr_assert_not_null(strstr(err.text, "in use"));
    static const char *const bad[] = {"localhost", "127.0.0.1:", "127.0.0.1:99999", "1.2.3.4:5x"};
    for (size_t i = 0; i < 4; i++) {
        cfg.addresses = &bad[i];
        cr_assert_eq(pg_listener_open(&cfg, &second, &err), SPAN_INVALID, "%s", bad[i]);
        cr_assert_not_null(strstr(err.text, bad[i]));
    }
    pg_listener_free(l);
}

static struct pg_listener *open_with_folder(const char *dir, unsigned port, span_status *st)
{
    char address[32];
    struct span_error err = {0};
    struct pg_listener *l = NULL;
    (void)snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    const char *addresses[] = {address, dir};
    struct pg_listener_config cfg = {.addresses = addresses,
                                     .address_count = 2,
                                     .factory.open = fake_open,
                                     .server_version = "0.1.0",
                                     .hold = gate_hold};
    *st = pg_listener_open(&cfg, &l, &err);
    return l;
}

Test(pg_listener, serves_a_unix_socket_beside_the_port)
{
    char dir[] = "/tmp/pg_listener_test.XXXXXX";
    char url[128];
    char path[64];
    span_status st;
    cr_assert_not_null(mkdtemp(dir));
    struct pg_listener *l = open_with_folder(dir, 0, &st);
    cr_assert_eq(st, SPAN_OK);
    unsigned port = pg_listener_port(l, 0);
    (void)snprintf(url, sizeof(url), "host=%s port=%u user=root dbname=bank", dir, port);
    (void)snprintf(path, sizeof(path), "%s/.s.PGSQL.%u", dir, port);
    PGconn *c = PQconnectdb(url);
    cr_assert_eq(PQstatus(c), CONNECTION_OK, "%s", PQerrorMessage(c));
    PQfinish(c);
    pg_listener_free(l);
    cr_assert_neq(access(path, F_OK), 0, "the file goes with the listener");

    /* What a killed process left is replaced. */
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    (void)close(fd);
    l = open_with_folder(dir, port, &st);
    cr_assert_eq(st, SPAN_OK);
    c = PQconnectdb(url);
    cr_assert_eq(PQstatus(c), CONNECTION_OK, "%s", PQerrorMessage(c));
    PQfinish(c);
    pg_listener_free(l);

    /* A live one is not. */
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(bind(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    cr_assert_eq(listen(fd, 1), 0);
    l = open_with_folder(dir, port, &st);
    cr_assert_eq(st, SPAN_EXISTS);
    cr_assert_null(l);
    (void)close(fd);
    (void)unlink(path);
    (void)rmdir(dir);
}
