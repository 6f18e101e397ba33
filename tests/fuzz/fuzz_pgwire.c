/* A client's bytes into the connection machine, with a session that answers anything. The first
 * byte is the size of the pieces in which the rest arrives. Also the value conversions of Bind. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/pgwire/pg_conn.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

#define STEPS_MAX 4000

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

struct pg_stmt {
    uint8_t first;
};

struct pg_portal {
    uint8_t first;
    uint32_t left;
};

static struct {
    char status;
    int handles;
} session;

static bool answer(uint8_t first, uint32_t rows, const struct pg_sink *k)
{
    static const struct pg_column columns[] = {{.name = "n", .type_oid = PG_OID_INT8},
                                               {.name = "t", .type_oid = PG_OID_TEXT}};
    if (first == 'e') {
        struct pg_error e = {.severity = "ERROR", .sqlstate = "22012", .message = "no"};
        session.status = session.status == 'T' ? 'E' : session.status;
        pg_sink_error(k, &e);
        return false;
    }
    session.status = first == 'b' ? 'T' : first == 'c' ? 'I' : session.status;
    if (first == 'r') {
        pg_sink_row_description(k, columns, 2);
        for (uint32_t i = 0; i < rows; i++) {
            struct pg_value row[2] = {{.text = slice_str("17")}, {.is_null = true}};
            if (pg_sink_data_row(k, row, 2) != SPAN_OK) {
                return false;
            }
        }
    }
    pg_sink_command_complete(k, "DONE");
    return true;
}

static void f_free(void *s)
{
    (void)s;
    INVARIANT(session.handles == 0); /* the machine frees what it made, before the session */
}

static bool f_simple(void *s, struct slice sql, const struct pg_sink *k)
{
    (void)s;
    if (sql.size == 0) {
        pg_sink_empty_query(k);
        return true;
    }
    return answer(sql.data[0], 3, k);
}

static bool f_parse(void *s, struct slice sql, const uint32_t *oids, size_t count,
                    const struct pg_sink *k, struct pg_stmt **out)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += oids[i];
    }
    (void)s;
    if (sql.size != 0 && sql.data[0] == 's' && sum != 1) {
        return answer('e', 0, k);
    }
    *out = SPAN_NEW(struct pg_stmt);
    (*out)->first = sql.size == 0 ? 0 : sql.data[0];
    session.handles++;
    return true;
}

static bool describe(uint8_t first, const struct pg_sink *k)
{
    static const struct pg_column column = {.name = "n", .type_oid = PG_OID_INT8};
    if (first == 'r') {
        pg_sink_row_description(k, &column, 1);
    } else {
        pg_sink_no_data(k);
    }
    return true;
}

static bool f_describe_stmt(void *s, struct pg_stmt *st, const struct pg_sink *k)
{
    static const uint32_t oids[] = {PG_OID_INT8};
    (void)s;
    pg_sink_parameter_description(k, oids, 1);
    return describe(st->first, k);
}

static bool f_bind(void *s, struct pg_stmt *st, const struct pg_value *v, size_t count,
                   const struct pg_sink *k, struct pg_portal **out)
{
    size_t sum = 0;
    (void)s;
    (void)k;
    for (size_t i = 0; i < count; i++) {
        for (size_t b = 0; b < v[i].text.size && !v[i].is_null; b++) {
            sum += v[i].text.data[b]; /* all of it is there to be read */
        }
    }
    *out = SPAN_NEW(struct pg_portal);
    (*out)->first = st->first;
    (*out)->left = 5 + (uint32_t)(sum % 2);
    session.handles++;
    return true;
}

static bool f_describe_portal(void *s, struct pg_portal *p, const struct pg_sink *k)
{
    (void)s;
    return describe(p->first, k);
}

static bool f_execute(void *s, struct pg_portal *p, uint32_t max, const struct pg_sink *k)
{
    (void)s;
    if (p->first == 'r' && max != 0 && max < p->left) {
        p->left -= max;
        pg_sink_portal_suspended(k);
        return true;
    }
    return answer(p->first, p->left, k);
}

static void f_stmt_free(void *s, struct pg_stmt *st)
{
    (void)s;
    session.handles--;
    span_free(st);
}

static void f_portal_free(void *s, struct pg_portal *p)
{
    (void)s;
    session.handles--;
    span_free(p);
}

static bool f_sync(void *s, bool failed, const struct pg_sink *k)
{
    (void)s;
    (void)failed;
    (void)k;
    return true;
}

static char f_status(const void *s)
{
    (void)s;
    return session.status;
}

static void f_cancel(void *s)
{
    (void)s;
}

static bool f_idle(void *s, uint64_t mono, const struct pg_sink *k)
{
    (void)s;
    (void)mono;
    (void)k;
    return true;
}

static const struct pg_session_ops ops = {
    .free = f_free,
    .simple = f_simple,
    .parse = f_parse,
    .describe_stmt = f_describe_stmt,
    .bind = f_bind,
    .describe_portal = f_describe_portal,
    .execute = f_execute,
    .stmt_free = f_stmt_free,
    .portal_free = f_portal_free,
    .sync = f_sync,
    .txn_status = f_status,
    .cancel = f_cancel,
    .idle_check = f_idle,
};

static bool f_open(void *ctx, const struct pg_startup *st, const struct pg_sink *k,
                   struct pg_session *out)
{
    (void)ctx;
    (void)k;
    INVARIANT(st->user != NULL && st->database != NULL && st->application_name != NULL);
    for (size_t i = 0; i < st->setting_count; i++) {
        INVARIANT(st->setting_names[i] != NULL && st->setting_values[i] != NULL);
    }
    *out = (struct pg_session){&ops, &session};
    return true;
}

static void converse(struct slice bytes, size_t piece)
{
    struct pg_conn_config cfg = {
        .factory = {f_open, NULL}, .server_version = "0.1.0", .pid = 7, .key = 8};
    session.status = 'I';
    session.handles = 0;
    struct pg_conn *c = pg_conn_new(&cfg);
    bool open = true;
    for (size_t at = 0, steps = 0; at < bytes.size && open && steps < STEPS_MAX;) {
        size_t n = bytes.size - at < piece ? bytes.size - at : piece;
        pg_conn_feed(c, slice_of(bytes.data + at, n));
        at += n;
        enum pg_conn_step step = PG_CONN_MORE;
        while (step == PG_CONN_MORE && steps++ < STEPS_MAX) {
            step = pg_conn_step(c);
            struct slice out = pg_conn_out(c);
            INVARIANT(out.size == 0 || out.data != NULL);
            if (pg_conn_wants_flush(c) || out.size > PG_CONN_FLUSH_BYTES) {
                pg_conn_flushed(c);
            }
        }
        open = step == PG_CONN_NEED_INPUT || step == PG_CONN_MORE;
    }
    pg_conn_free(c);
    INVARIANT(session.handles == 0);
}

static void convert(struct slice in)
{
    static const uint32_t oids[] = {PG_OID_BOOL, PG_OID_INT2,   PG_OID_INT4,   PG_OID_INT8,
                                    PG_OID_OID,  PG_OID_FLOAT4, PG_OID_FLOAT8, PG_OID_BYTEA,
                                    PG_OID_TEXT, PG_OID_JSON,   PG_OID_DATE,   PG_OID_NUMERIC};
    struct buf text = {0};
    struct buf bin = {0};
    for (size_t i = 0; i < sizeof(oids) / sizeof(oids[0]); i++) {
        buf_clear(&text);
        buf_clear(&bin);
        if (pg_binary_to_text(oids[i], in, &text) == SPAN_OK && oids[i] != PG_OID_FLOAT4 &&
            oids[i] != PG_OID_FLOAT8) {
            INVARIANT(pg_text_to_binary(oids[i], buf_slice(&text), &bin) == SPAN_OK);
            INVARIANT(slice_eq(buf_slice(&bin), in));
        }
        buf_clear(&bin);
        span_status st = pg_text_to_binary(oids[i], in, &bin);
        (void)st;
    }
    buf_deinit(&text);
    buf_deinit(&bin);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > 65536) {
        return 0;
    }
    converse(slice_of(data + 1, size - 1), data[0] == 0 ? 65536 : data[0]);
    convert(slice_of(data + 1, size - 1));
    return 0;
}

static void be32(struct buf *b, uint32_t v)
{
    uint8_t p[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    buf_append(b, p, 4);
}

static void message(struct buf *to, char type, const void *body, size_t size)
{
    if (type != '\0') {
        buf_append_byte(to, (uint8_t)type);
    }
    be32(to, (uint32_t)size + 4);
    buf_append(to, body, size);
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    static const char start[] = "\0\3\0\0user\0me\0database\0d\0options\0-c a=b\0";
    struct buf b = {0};
    buf_append_byte(&b, 0);
    message(&b, '\0', start, sizeof(start));
    size_t begun = b.size;
    message(&b, 'Q', "begin", 6);
    message(&b, 'Q', "rows", 5);
    message(&b, 'Q', "error", 6);
    message(&b, 'X', "", 0);
    emit(ctx, "simple", buf_slice(&b));
    b.size = begun;
    b.data[0] = 7;
    message(&b, 'P', "s\0rows\0\0\1\0\0\0\24", 13);
    message(&b, 'D', "Ss", 3);
    message(&b, 'B',
            "p\0s\0\0\1\0\0\0\1\0\0\0\2"
            "42\0\0",
            18);
    message(&b, 'D', "Pp", 3);
    message(&b, 'E', "p\0\0\0\0\2", 6);
    message(&b, 'H', "", 0);
    message(&b, 'E', "p\0\0\0\0\0", 6);
    message(&b, 'C', "Ss", 3);
    message(&b, 'S', "", 0);
    emit(ctx, "extended", buf_slice(&b));
    b.size = 1;
    message(&b, '\0', "\4\322\26/", 4); /* SSLRequest */
    message(&b, '\0', start, sizeof(start));
    message(&b, 'd', "copy", 4);
    message(&b, 'F', "\0\0\0\1", 4);
    message(&b, 'S', "", 0);
    emit(ctx, "ssl", buf_slice(&b));
    b.size = 1;
    message(&b, '\0', "\4\322\26.\0\0\0\7\0\0\0\10", 12); /* CancelRequest */
    emit(ctx, "cancel", buf_slice(&b));
    buf_deinit(&b);
}
