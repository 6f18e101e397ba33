/* Rule E1 on the wire: the id that a session reports as parameter spanlite.txn_id has left for the
 * client when the commit begins, also when BEGIN, the writes and COMMIT come in one message; or a
 * client whose answer is lost would have nothing to ask with. A session and the connection machine
 * over a store in memory; what leaves and what commits is written down in order. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/pgwire/pg_conn.h"
#include "tests/lib/sql_fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct sql_fixture fixture;
static struct pg_conn *conn;
static struct kv *kv;
static const struct kv_ops *real;
static struct kv_ops ops;
static char id[128];     /* last reported */
static struct buf trace; /* "id" left, "out": output left without one, "commit" */

static void note(const char *what)
{
    buf_printf(&trace, "%s%s", trace.size == 0 ? "" : " ", what);
}

static span_status commit(struct kv *k, struct tt_ts *ts, struct span_error *err)
{
    note("commit");
    return real->commit(k, ts, err);
}

/* The listener's part: everything leaves. */
static span_status flush(void *ctx, struct pg_conn *c)
{
    static const char name[] = "spanlite.txn_id";
    struct slice out = pg_conn_out(c);
    (void)ctx;
    const uint8_t *at = memmem(out.data, out.size, name, sizeof name);
    if (at != NULL) {
        (void)snprintf(id, sizeof id, "%s", (const char *)at + sizeof name);
    }
    note(at != NULL ? "id" : "out");
    pg_conn_flushed(c);
    return SPAN_OK;
}

static void keep_session(void *s)
{
    (void)s; /* the fixture's */
}

static bool open_session(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                         struct pg_session *out)
{
    static struct pg_session_ops kept;
    (void)ctx;
    (void)st;
    (void)sink;
    *out = fixture.c[0].session;
    kept = *out->ops;
    kept.free = keep_session;
    out->ops = &kept;
    return true;
}

static void run(const struct buf *message)
{
    buf_clear(&trace);
    pg_conn_feed(conn, buf_slice(message));
    while (pg_conn_step(conn) == PG_CONN_MORE) {
        if (pg_conn_wants_flush(conn)) {
            (void)flush(NULL, conn);
        }
    }
}

static void put_be32(struct buf *b, uint32_t v)
{
    for (int i = 3; i >= 0; i--) {
        buf_append_byte(b, (uint8_t)(v >> (8 * i)));
    }
}

/* A message of type and body; type 0: none (StartupMessage). */
static void put_message(struct buf *to, char type, const void *body, size_t size)
{
    if (type != 0) {
        buf_append_byte(to, (uint8_t)type);
    }
    put_be32(to, (uint32_t)size + 4);
    buf_append(to, body, size);
}

static void query(const char *sql)
{
    struct buf m = {0};
    put_message(&m, 'Q', sql, strlen(sql) + 1);
    run(&m);
    buf_deinit(&m);
}

static void put_execute(struct buf *to, const char *sql)
{
    struct buf parse = {0};
    buf_append_byte(&parse, 0);
    buf_append(&parse, sql, strlen(sql) + 1);
    buf_append(&parse, "\0\0", 2);
    put_message(to, 'P', parse.data, parse.size);
    put_message(to, 'B', "\0\0\0\0\0\0\0\0", 8);
    put_message(to, 'E', "\0\0\0\0\0", 5);
    buf_deinit(&parse);
}

static void setup(void)
{
    static const char pairs[] = "\0\3\0\0user\0ann\0";
    struct buf m = {0};
    sql_fixture_open(&fixture);
    kv = kv_mem_new(fixture.store);
    struct span_error err = {0};
    struct sql_session_options opt = {.user = "ann", .database = "bank", .seed = 7};
    sql_session_free(fixture.session[0]);
    real = kv->ops;
    ops = *real;
    ops.commit = commit;
    kv->ops = &ops;
    fixture.session[0] = sql_session_new(kv, fixture.cache[0], &opt, &err);
    cr_assert(fixture.session[0] != NULL, "%s", err.text);
    fixture.c[0].session = sql_session_pg(fixture.session[0]);
    struct pg_conn_config cfg = {
        .factory = {.open = open_session}, .server_version = "0.1.0", .flush = flush};
    conn = pg_conn_new(&cfg);
    put_message(&m, 0, pairs, sizeof pairs);
    run(&m);
    buf_deinit(&m);
    query("CREATE TABLE t(a INT PRIMARY KEY)");
}

static void teardown(void)
{
    pg_conn_free(conn);
    sql_fixture_close(&fixture);
    buf_deinit(&trace);
}

TestSuite(txn_id, .init = setup, .fini = teardown, .timeout = 60);

static void traced(const char *want)
{
    cr_assert_str_eq(buf_cstr(&trace), want);
}

Test(txn_id, it_leaves_before_the_commit_of_a_block_in_one_message)
{
    query("BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); COMMIT");
    traced("id commit out");
    cr_assert_str_neq(id, "");
    cr_assert_str_eq(sql_client_ask(&fixture.c[1], "SELECT count(*) FROM t"), "2");
}

Test(txn_id, it_leaves_before_the_commit_that_ends_a_message)
{
    query("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)");
    traced("id commit out");
}

Test(txn_id, it_leaves_before_the_commit_of_a_pipeline)
{
    struct buf m = {0};
    put_execute(&m, "BEGIN");
    put_execute(&m, "INSERT INTO t VALUES (1)");
    put_execute(&m, "COMMIT");
    put_message(&m, 'S', "", 0);
    run(&m);
    traced("id commit out");
    buf_clear(&m);
    put_execute(&m, "INSERT INTO t VALUES (2)"); /* an implicit one, which Sync ends */
    put_execute(&m, "INSERT INTO t VALUES (3)");
    put_message(&m, 'S', "", 0);
    run(&m);
    traced("id commit out");
    buf_deinit(&m);
}

Test(txn_id, every_transaction_of_a_message_has_its_own_out_in_time)
{
    query("BEGIN; INSERT INTO t VALUES (1); COMMIT; BEGIN; INSERT INTO t VALUES (2); COMMIT");
    traced("id commit id commit out");
}

Test(txn_id, what_has_left_already_costs_no_message_more)
{
    query("BEGIN");
    traced("out");
    query("INSERT INTO t VALUES (1)");
    traced("id");
    query("COMMIT");
    traced("commit out");
    query("INSERT INTO t VALUES (2)"); /* without BEGIN there is no id to wait for */
    traced("commit out");
    query("SELECT * FROM t");
    traced("commit out");
    query("BEGIN; INSERT INTO t VALUES (3); ROLLBACK");
    traced("id");
}
