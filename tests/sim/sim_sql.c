/* SQL clients and their schedules; see sim_sql.h. */
#include "tests/sim/sim_sql.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "coordinator/answer_gate.h"
#include "coordinator/kv_session.h"
#include "sql/pgwire/pg_conn.h"
#include "sql/session.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct sim_sql {
    struct sim_world *w;
    node_id node;
    struct kv_env *env;
    struct schema_cache *cache;
    struct pg_conn *conn;
    void (*op_done)(struct gateway_op *op); /* the session's own */
    bool done;
    char txn_id[200];
};

/* ---- a session's world ---- */

static void client_now(void *ctx, struct tt_now *out)
{
    struct sim_sql *c = ctx;
    *out = cluster_clock(c->w->c, c->node);
}

static uint64_t client_mono_ns(void *ctx)
{
    struct tt_now now;
    client_now(ctx, &now);
    return now.mono_ns;
}

static void client_sleep(void *ctx, uint64_t ns)
{
    struct sim_sql *c = ctx;
    cluster_run_for(c->w->c, ns);
}

/* The session may free op in here. */
static void client_op_done(struct gateway_op *op)
{
    struct sim_sql *c = op->owner;
    c->done = true;
    c->op_done(op);
}

static bool client_is_done(void *ctx)
{
    const struct sim_sql *c = ctx;
    return c->done;
}

/* Done when it returns: the session finds that it need not sleep. */
static span_status client_post(void *ctx, struct gateway_op *op)
{
    struct sim_sql *c = ctx;
    if (op->done != client_op_done) {
        c->op_done = op->done;
        op->done = client_op_done;
    }
    op->owner = c;
    c->done = false;
    cluster_op(c->w->c, c->node, op);
    if (!cluster_run_until(c->w->c, client_is_done, c, 60 * SEC_NS)) {
        cluster_fail(c->w->c, "an operation of a SQL client did not end in 60 s");
    }
    if (!c->done && cluster_alive(c->w->c, c->node)) {
        cluster_crash(c->w->c, c->node, SIM_CRASH_KILL); /* the run has failed: ends what is open */
    }
    while (!c->done && cluster_step(c->w->c)) { /* it was still on its way */
    }
    return SPAN_OK;
}

static bool client_session(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                           struct pg_session *out)
{
    struct sim_sql *c = ctx;
    struct span_error err = {0};
    struct sql_session_options opt = {.user = st->user,
                                      .database = st->database,
                                      .application_name = st->application_name,
                                      .seed = rng_u64(cluster_rng(c->w->c)) | 1,
                                      .mono_ns = client_mono_ns,
                                      .sleep = client_sleep,
                                      .clock_ctx = c};
    (void)sink;
    struct sql_session *s = sql_session_new(kv_session_new(c->env), c->cache, &opt, &err);
    INVARIANT(s != NULL);
    *out = sql_session_pg(s);
    return true;
}

/* ---- the wire ---- */

static void put_message(struct buf *to, char type, const void *body, size_t size)
{
    if (type != 0) {
        buf_append_byte(to, (uint8_t)type);
    }
    sim_be32(to, (uint32_t)size + 4);
    buf_append(to, body, size);
}

static void feed(struct sim_sql *c, const struct buf *message)
{
    pg_conn_feed(c->conn, buf_slice(message));
    while (pg_conn_step(c->conn) == PG_CONN_MORE) {
    }
}

struct sim_sql *sim_sql_open(struct sim_world *w, node_id node)
{
    static const char pairs[] = "\0\3\0\0user\0sim\0";
    struct sim_sql *c = SPAN_NEW(struct sim_sql);
    struct buf m = {0};
    c->w = w;
    c->node = node;
    struct kv_env_options eo = {.node = node,
                                .seed = rng_u64(cluster_rng(w->c)),
                                .now = client_now,
                                .now_ctx = c,
                                .post = client_post,
                                .post_ctx = c};
    c->env = kv_env_new(&eo);
    c->cache = schema_cache_new();
    struct pg_conn_config pc = {
        .factory = {.open = client_session, .ctx = c}, .server_version = "0.1.0", .pid = 1};
    c->conn = pg_conn_new(&pc);
    put_message(&m, 0, pairs, sizeof pairs);
    feed(c, &m);
    pg_conn_flushed(c->conn);
    buf_deinit(&m);
    return c;
}

void sim_sql_close(struct sim_sql *c)
{
    pg_conn_free(c->conn);
    schema_cache_free(c->cache);
    kv_env_free(c->env);
    span_free(c);
}

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void take_row(struct slice body, struct sim_answer *out)
{
    uint32_t size = body.size >= 6 ? be32(body.data + 2) : UINT32_MAX;
    if (out->rows++ == 0 && size != UINT32_MAX && size <= body.size - 6) {
        (void)snprintf(out->value, sizeof out->value, "%.*s", (int)size,
                       (const char *)body.data + 6);
    }
}

static void take_error(struct slice body, struct sim_answer *out)
{
    for (size_t at = 0; at < body.size && body.data[at] != 0;) {
        const char *text = (const char *)body.data + at + 1;
        if (body.data[at] == 'C') {
            (void)snprintf(out->error, sizeof out->error, "%.5s", text);
        }
        at += 2 + strlen(text);
    }
}

static void take_status(struct sim_sql *c, struct slice body)
{
    const char *name = (const char *)body.data;
    if (strcmp(name, "spanlite.txn_id") == 0) {
        (void)snprintf(c->txn_id, sizeof c->txn_id, "%s", name + strlen(name) + 1);
    }
}

static void take_output(struct sim_sql *c, struct sim_answer *out)
{
    struct slice bytes = pg_conn_out(c->conn);
    for (size_t at = 0; at + 5 <= bytes.size;) {
        uint32_t size = be32(bytes.data + at + 1);
        struct slice body = slice_of(bytes.data + at + 5, size - 4);
        switch (bytes.data[at]) {
        case 'D':
            take_row(body, out);
            break;
        case 'E':
            take_error(body, out);
            break;
        case 'S':
            take_status(c, body);
            break;
        default:
            break;
        }
        at += 1 + size;
    }
}

void sim_sql_run(struct sim_sql *c, struct sim_answer *out, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    REQUIRE(n > 0 && (size_t)n < sizeof text);
    struct buf m = {0};
    *out = (struct sim_answer){0};
    if (!world_failed(c->w)) {
        put_message(&m, 'Q', text, (size_t)n + 1);
        feed(c, &m);
        take_output(c, out);
        out->not_before_ns = pg_conn_not_before(c->conn);
    }
    cluster_say(c->w->c, "sql at node %u: %s: %s%s", c->node, text,
                out->error[0] == 0 ? "ok " : out->error, out->value);
    buf_deinit(&m);
}

void sim_sql_leave(struct sim_sql *c)
{
    struct tt_now now = cluster_clock(c->w->c, c->node);
    struct tt_ts t = tt_ts_of(pg_conn_not_before(c->conn));
    uint64_t wait_ns;
    while (!world_failed(c->w) && !tt_is_none(t) &&
           answer_gate_look(&now, t, &wait_ns) == GATE_WAIT) {
        cluster_run_for(c->w->c, wait_ns + 1);
        now = cluster_clock(c->w->c, c->node);
    }
    pg_conn_flushed(c->conn);
}

const char *sim_sql_txn_id(const struct sim_sql *c)
{
    return c->txn_id;
}

/* ---- common to the schedules ---- */

/* Until it succeeds. */
static void must(struct sim_sql *c, const char *sql)
{
    struct sim_answer a = {0};
    for (int tries = 0; tries < 20 && !world_failed(c->w); tries++) {
        sim_sql_run(c, &a, "%s", sql);
        sim_sql_leave(c);
        if (a.error[0] == 0) {
            return;
        }
    }
    cluster_fail(c->w->c, "a SQL client was told %s: %s", a.error, sql);
}

/* The first two tables get the numbers of the bank's, whose rows are no rows of SQL. */
static void make_table(struct sim_sql *c)
{
    must(c, "CREATE TABLE accounts (id INTEGER PRIMARY KEY)");
    must(c, "CREATE TABLE journal (id INTEGER PRIMARY KEY)");
    must(c, "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE)");
}

/* ---- D0 ---- */

/* Whoever is answered what shows a commit is answered after its timestamp. */
static void check_left(struct sim_sql *c, const char *what, uint64_t commit_ns)
{
    sim_sql_leave(c);
    if (cluster_now(c->w->c) <= commit_ns && !world_failed(c->w)) {
        cluster_fail(c->w->c,
                     "answer gate: %s at node %u left %llu us before the timestamp of the commit "
                     "that it shows",
                     what, c->node, (unsigned long long)(commit_ns - cluster_now(c->w->c)) / 1000);
    }
}

void sim_sql_answers(struct sim_world *w)
{
    struct sim_sql *writer = sim_sql_open(w, 1);
    struct sim_sql *reader = sim_sql_open(w, 2);
    struct sim_answer a;
    struct sim_answer b;
    make_table(writer);
    must(reader, "SELECT * FROM users");
    for (int i = 0; i < 20 && !world_failed(w); i++) {
        sim_sql_run(writer, &a, "BEGIN; INSERT INTO users VALUES (%d, 'a%d'); COMMIT", i, i);
        if (a.error[0] == 0 && a.not_before_ns != 0) {
            if (i % 2 == 0) {
                sim_sql_run(reader, &b, "INSERT INTO users VALUES (%d, 'b%d')", i, i);
            } else {
                sim_sql_run(reader, &b, "SHOW TRANSACTION STATUS '%s'", sim_sql_txn_id(writer));
            }
            if (strcmp(b.error, "23505") == 0) {
                check_left(reader, "an error", a.not_before_ns);
            } else if (strcmp(b.value, "committed") == 0) {
                check_left(reader, "a transaction's status", a.not_before_ns);
            }
            sim_sql_leave(reader);
        }
        sim_sql_leave(writer);
    }
    sim_sql_close(reader);
    sim_sql_close(writer);
}

/* ---- G1 ---- */

#define USERS 8

/* Every unique index equals its table and has no doubles. */
static void check_unique(struct sim_sql *c)
{
    char emails[USERS][sizeof((struct sim_answer *)0)->value] = {{0}};
    struct sim_answer a;
    for (int i = 0; i < USERS && !world_failed(c->w); i++) {
        sim_sql_run(c, &a, "SELECT email FROM users WHERE id = %d", i);
        sim_sql_leave(c);
        if (a.error[0] != 0 || a.rows == 0) {
            continue;
        }
        (void)snprintf(emails[i], sizeof emails[i], "%s", a.value);
        for (int k = 0; k < i; k++) {
            if (strcmp(emails[k], emails[i]) == 0) {
                cluster_fail(c->w->c, "unique: rows %d and %d both have email %s", k, i, a.value);
            }
        }
        sim_sql_run(c, &a, "SELECT id FROM users WHERE email = '%s'", emails[i]);
        sim_sql_leave(c);
        if (a.error[0] == 0 && (a.rows != 1 || atoi(a.value) != i)) {
            cluster_fail(c->w->c, "unique: the index has row %s for email %s of row %d", a.value,
                         emails[i], i);
        }
    }
}

static void write_at_random(struct sim_sql *c)
{
    struct rng *r = cluster_rng(c->w->c);
    struct sim_answer a;
    unsigned id = (unsigned)rng_below(r, USERS);
    unsigned email = (unsigned)rng_below(r, USERS + 2);
    switch (rng_below(r, 4)) {
    case 0:
        sim_sql_run(c, &a, "INSERT INTO users VALUES (%u, 'e%u')", id, email);
        break;
    case 1:
        sim_sql_run(c, &a, "DELETE FROM users WHERE id = %u", id);
        break;
    default:
        sim_sql_run(c, &a, "UPDATE users SET email = 'e%u' WHERE id = %u", email, id);
        break;
    }
    sim_sql_leave(c);
    if (a.error[0] != 0 && strcmp(a.error, "23505") != 0 && strncmp(a.error, "40", 2) != 0) {
        cluster_fail(c->w->c, "a SQL client was told %s", a.error);
    }
}

void sim_sql_unique(struct sim_world *w)
{
    struct sim_sql *clients[2] = {sim_sql_open(w, 1), sim_sql_open(w, 2)};
    make_table(clients[0]);
    for (int i = 0; i < 60 && !world_failed(w); i++) {
        write_at_random(clients[rng_below(cluster_rng(w->c), 2)]);
    }
    check_unique(clients[1]);
    sim_sql_close(clients[0]);
    sim_sql_close(clients[1]);
}
