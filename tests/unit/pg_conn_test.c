/* The connection machine against a fake session that writes down what it is asked. Exchanges are
 * golden: the client's messages are built here, the server's are rendered one a line. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "sql/pgwire/pg_conn.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

/* The fake session. Statements are words: begin commit rollback fail fatal lie null gateN rowsN. */

struct fake {
    char status;
    struct buf log;
    int handles; /* statements and portals alive */
    uint64_t idle_limit;
};

struct pg_stmt {
    char sql[64];
};

struct pg_portal {
    char sql[64];
    unsigned long at;
    char param[64];
};

static struct fake fake; /* one connection a test */

static bool fail_with(const struct pg_sink *k, const char *severity, const char *state)
{
    struct pg_error e = {.severity = severity, .sqlstate = state, .message = "no"};
    pg_sink_error(k, &e);
    if (fake.status == 'T') {
        fake.status = 'E';
    }
    return false;
}

static const struct pg_column columns[] = {{.name = "n", .type_oid = PG_OID_INT8},
                                           {.name = "t", .type_oid = PG_OID_TEXT}};

static bool run(const char *sql, unsigned long *at, uint32_t max, const struct pg_sink *k)
{
    unsigned long n = 0;
    if (fake.status == 'E' && strcmp(sql, "rollback") != 0 && strcmp(sql, "commit") != 0) {
        return fail_with(k, "ERROR", "25P02");
    }
    if (strcmp(sql, "begin") == 0) {
        fake.status = 'T';
    } else if (strcmp(sql, "commit") == 0 || strcmp(sql, "rollback") == 0) {
        fake.status = 'I';
    } else if (strcmp(sql, "fail") == 0) {
        return fail_with(k, "ERROR", "22012");
    } else if (strcmp(sql, "fatal") == 0) {
        return fail_with(k, "FATAL", "57P01");
    } else if (strcmp(sql, "lie") == 0) {
        return false; /* a session that forgets to say why */
    } else if (sscanf(sql, "gate%lu", &n) == 1) {
        pg_sink_gate(k, n);
    } else if (sscanf(sql, "rows%lu", &n) == 1) {
        pg_sink_row_description(k, columns, 2);
        for (uint32_t sent = 0; *at < n; sent++, (*at)++) {
            if (max != 0 && sent == max) {
                pg_sink_portal_suspended(k);
                return true;
            }
            char text[24];
            (void)snprintf(text, sizeof(text), "%lu", *at);
            struct pg_value row[2] = {{.text = slice_str(text)}, {.is_null = *at % 2 == 1}};
            row[0].text = strcmp(sql, "rows666") == 0 ? slice_str("abc") : row[0].text;
            row[1].text = slice_str("x");
            if (pg_sink_data_row(k, row, 2) != SPAN_OK) {
                return false;
            }
        }
    }
    char tag[32];
    (void)snprintf(tag, sizeof(tag), "%.20s", sql);
    pg_sink_command_complete(k, tag);
    return true;
}

static void f_free(void *s)
{
    buf_append_str(&((struct fake *)s)->log, "free;");
}

static bool f_simple(void *s, struct slice sql, const struct pg_sink *k)
{
    (void)s;
    char text[256];
    size_t n = sql.size < 255 ? sql.size : 255;
    memcpy(text, sql.data, n);
    text[n] = '\0';
    buf_printf(&fake.log, "simple(%.40s);", text);
    char *save = NULL;
    char *word = strtok_r(text, ";", &save);
    if (word == NULL) {
        pg_sink_empty_query(k);
    }
    for (; word != NULL; word = strtok_r(NULL, ";", &save)) {
        unsigned long at = 0;
        if (!run(word, &at, 0, k)) {
            return false;
        }
    }
    return true;
}

static bool f_parse(void *s, struct slice sql, const uint32_t *oids, size_t count,
                    const struct pg_sink *k, struct pg_stmt **out)
{
    (void)s;
    (void)oids;
    buf_printf(&fake.log, "parse(%.*s,%zu);", (int)sql.size, (const char *)sql.data, count);
    if (slice_eq(sql, slice_str("syntax"))) {
        return fail_with(k, "ERROR", "42601");
    }
    *out = SPAN_NEW(struct pg_stmt);
    (void)snprintf((*out)->sql, 64, "%.*s", (int)sql.size, (const char *)sql.data);
    fake.handles++;
    return true;
}

static bool f_describe_stmt(void *s, struct pg_stmt *st, const struct pg_sink *k)
{
    (void)s;
    uint32_t oids[] = {PG_OID_INT8, PG_OID_TEXT};
    buf_append_str(&fake.log, "describe_stmt;");
    pg_sink_parameter_description(k, oids, 2);
    if (strncmp(st->sql, "rows", 4) == 0) {
        pg_sink_row_description(k, columns, 2);
    } else {
        pg_sink_no_data(k);
    }
    return true;
}

static bool f_bind(void *s, struct pg_stmt *st, const struct pg_value *v, size_t count,
                   const struct pg_sink *k, struct pg_portal **out)
{
    (void)s;
    (void)k;
    buf_append_str(&fake.log, "bind(");
    for (size_t i = 0; i < count; i++) {
        if (v[i].is_null) {
            buf_append_str(&fake.log, "NULL,");
        } else {
            buf_append_slice(&fake.log, v[i].text);
            buf_append_str(&fake.log, ",");
        }
    }
    buf_append_str(&fake.log, ");");
    *out = SPAN_NEW(struct pg_portal);
    memcpy((*out)->sql, st->sql, 64);
    fake.handles++;
    return true;
}

static bool f_describe_portal(void *s, struct pg_portal *p, const struct pg_sink *k)
{
    (void)s;
    if (strncmp(p->sql, "rows", 4) == 0) {
        pg_sink_row_description(k, columns, 2);
    } else {
        pg_sink_no_data(k);
    }
    return true;
}

static bool f_execute(void *s, struct pg_portal *p, uint32_t max, const struct pg_sink *k)
{
    (void)s;
    buf_printf(&fake.log, "execute(%s,%u);", p->sql, max);
    if (p->sql[0] == '\0') {
        pg_sink_empty_query(k);
        return true;
    }
    return run(p->sql, &p->at, max, k);
}

static void f_stmt_free(void *s, struct pg_stmt *st)
{
    (void)s;
    fake.handles--;
    span_free(st);
}

static void f_portal_free(void *s, struct pg_portal *p)
{
    (void)s;
    fake.handles--;
    span_free(p);
}

static bool f_sync(void *s, bool failed, const struct pg_sink *k)
{
    (void)s;
    (void)k;
    buf_printf(&fake.log, "sync(%d);", failed);
    return true;
}

static char f_status(const void *s)
{
    return ((const struct fake *)s)->status;
}

static void f_cancel(void *s)
{
    (void)s;
}

static bool f_idle(void *s, uint64_t mono, const struct pg_sink *k)
{
    (void)s;
    if (fake.idle_limit == 1) {
        (void)fail_with(k, "ERROR", "25P03"); /* not FATAL: not for the client */
        return true;
    }
    return mono < fake.idle_limit || fail_with(k, "FATAL", "25P03");
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
    buf_printf(&fake.log, "open(%s,%s,%s", st->user, st->database, st->application_name);
    for (size_t i = 0; i < st->setting_count; i++) {
        buf_printf(&fake.log, ",%s=%s", st->setting_names[i], st->setting_values[i]);
    }
    buf_append_str(&fake.log, ");");
    *out = (struct pg_session){&ops, &fake};
    return true;
}

/* What the client says. */

static void be32(struct buf *b, uint32_t v)
{
    uint8_t p[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    buf_append(b, p, 4);
}

static void be16(struct buf *b, unsigned v)
{
    uint8_t p[2] = {(uint8_t)(v >> 8), (uint8_t)v};
    buf_append(b, p, 2);
}

static void zstr(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s) + 1);
}

/* Appends a message; its body in b, which is emptied. */
static void message(struct buf *to, char type, struct buf *b)
{
    if (type != '\0') {
        buf_append_byte(to, (uint8_t)type);
    }
    be32(to, (uint32_t)b->size + 4);
    buf_append_slice(to, buf_slice(b));
    buf_deinit(b);
}

static void startup(struct buf *to, uint32_t version, const char *pairs, size_t size)
{
    struct buf b = {0};
    be32(&b, version);
    buf_append(&b, pairs, size);
    message(to, '\0', &b);
}

#define STARTUP(to, version, pairs) startup(to, version, pairs, sizeof(pairs))

static void special(struct buf *to, uint32_t code)
{
    struct buf b = {0};
    be32(&b, code);
    message(to, '\0', &b);
}

static void query(struct buf *to, const char *sql)
{
    struct buf b = {0};
    zstr(&b, sql);
    message(to, 'Q', &b);
}

static void parse(struct buf *to, const char *name, const char *sql)
{
    struct buf b = {0};
    zstr(&b, name);
    zstr(&b, sql);
    be16(&b, 1);
    be32(&b, PG_OID_INT8);
    message(to, 'P', &b);
}

/* One parameter in the given format (NULL: none), results in the given format. */
static void bind(struct buf *to, const char *portal, const char *stmt, const char *param,
                 size_t size, unsigned format, unsigned result)
{
    struct buf b = {0};
    zstr(&b, portal);
    zstr(&b, stmt);
    be16(&b, 1);
    be16(&b, format);
    be16(&b, param == NULL ? 0 : 1);
    if (param != NULL) {
        be32(&b, (uint32_t)size);
        buf_append(&b, param, size);
    }
    be16(&b, 1);
    be16(&b, result);
    message(to, 'B', &b);
}

static void named(struct buf *to, char type, char kind, const char *name)
{
    struct buf b = {0};
    buf_append_byte(&b, (uint8_t)kind);
    zstr(&b, name);
    message(to, type, &b);
}

static void execute(struct buf *to, const char *portal, uint32_t max)
{
    struct buf b = {0};
    zstr(&b, portal);
    be32(&b, max);
    message(to, 'E', &b);
}

static void plain(struct buf *to, char type)
{
    struct buf b = {0};
    message(to, type, &b);
}

/* What the server says, one message a line. */

static void render_fields(const uint8_t *p, const uint8_t *end, struct buf *to)
{
    while (p < end && *p != 0) {
        if (*p == 'C' || *p == 'S') {
            buf_printf(to, " %s", (const char *)p + 1);
        }
        p += strlen((const char *)p) + 1;
    }
}

static void render_row(const uint8_t *p, struct buf *to)
{
    unsigned n = (unsigned)(p[0] << 8 | p[1]);
    p += 2;
    for (unsigned i = 0; i < n; i++) {
        uint32_t size = pg_be32(p);
        p += 4;
        buf_append_byte(to, ' ');
        if (size == UINT32_MAX) {
            buf_append_str(to, "NULL");
            continue;
        }
        for (uint32_t k = 0; k < size; k++) {
            buf_printf(to, p[k] < 32 ? "\\%d" : "%c", p[k]);
        }
        p += size;
    }
}

static void render_message(const uint8_t *m, struct buf *to)
{
    uint32_t length = pg_be32(m + 1);
    const uint8_t *body = m + 5;
    buf_append_byte(to, m[0]);
    switch (m[0]) {
    case 'Z':
        buf_printf(to, " %c", body[0]);
        break;
    case 'C':
        buf_printf(to, " %s", (const char *)body);
        break;
    case 'S':
        buf_printf(to, " %s=%s", (const char *)body,
                   (const char *)body + strlen((const char *)body) + 1);
        break;
    case 'E':
    case 'N':
        render_fields(body, m + 1 + length, to);
        break;
    case 'D':
        render_row(body, to);
        break;
    case 'K':
        buf_printf(to, " %u %u", pg_be32(body), pg_be32(body + 4));
        break;
    case 'v':
        buf_printf(to, " %u %u", pg_be32(body), pg_be32(body + 4));
        break;
    default:
        break;
    }
    buf_append_byte(to, '\n');
}

static void render(struct slice out, struct buf *to)
{
    size_t at = 0;
    while (at < out.size) {
        if (out.data[at] == 'N' && (at + 1 == out.size || out.data[at + 1] != 0)) {
            buf_append_str(to, "no\n"); /* the one-byte answer to SSLRequest */
            at++;
            continue;
        }
        cr_assert_leq(at + 5, out.size);
        uint32_t length = pg_be32(out.data + at + 1);
        cr_assert_leq(at + 1 + length, out.size);
        render_message(out.data + at, to);
        at += 1 + length;
    }
}

/* Harness. */

static struct pg_conn *conn_new(void)
{
    struct pg_conn_config cfg = {
        .factory = {f_open, NULL}, .server_version = "0.1.0", .pid = 11, .key = 22};
    buf_deinit(&fake.log);
    fake = (struct fake){.status = 'I'};
    return pg_conn_new(&cfg);
}

/* Steps until the machine needs input or closes; everything it says gathers in raw. */
static enum pg_conn_step drive(struct pg_conn *c, struct buf *raw)
{
    enum pg_conn_step s = PG_CONN_MORE;
    while (s == PG_CONN_MORE) {
        s = pg_conn_step(c);
        buf_append_slice(raw, pg_conn_out(c));
        pg_conn_flushed(c);
    }
    return s;
}

static void close_conn(struct pg_conn *c)
{
    pg_conn_free(c);
    cr_assert_eq(fake.handles, 0, "%d handles left", fake.handles);
}

static void expect_text(struct slice raw, const char *want)
{
    struct buf text = {0};
    render(raw, &text);
    cr_assert_str_eq(buf_cstr(&text), want);
    buf_deinit(&text);
}

/* A connection past its start-up. */
static struct pg_conn *conn_ready(void)
{
    struct pg_conn *c = conn_new();
    struct buf in = {0};
    struct buf raw = {0};
    STARTUP(&in, PG_PROTOCOL_3_0, "user\0me\0");
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(drive(c, &raw), PG_CONN_NEED_INPUT);
    cr_assert(pg_conn_is_at_rest(c));
    buf_clear(&fake.log);
    buf_deinit(&in);
    buf_deinit(&raw);
    return c;
}

/* Feeds all of `in` (emptied) and compares the rendered answer. */
static enum pg_conn_step exchange(struct pg_conn *c, struct buf *in, const char *want)
{
    struct buf raw = {0};
    pg_conn_feed(c, buf_slice(in));
    buf_deinit(in);
    enum pg_conn_step s = drive(c, &raw);
    expect_text(buf_slice(&raw), want);
    buf_deinit(&raw);
    return s;
}

static void expect_log(const char *want)
{
    cr_assert_str_eq(buf_cstr(&fake.log), want);
    buf_clear(&fake.log);
}

#define GREETING                                                                                   \
    "R\nS server_version=15.0 (spanlite 0.1.0)\nS server_encoding=UTF8\nS client_encoding=UTF8\n"  \
    "S application_name=a p p\nS default_transaction_read_only=off\nS in_hot_standby=off\n"        \
    "S is_superuser=on\nS session_authorization=me\nS DateStyle=ISO, MDY\n"                        \
    "S IntervalStyle=postgres\nS TimeZone=UTC\nS integer_datetimes=on\n"                           \
    "S standard_conforming_strings=on\nK 11 22\nZ I\n"

Test(pg_conn, greets_after_refusing_encryption)
{
    struct pg_conn *c = conn_new();
    struct buf in = {0};
    special(&in, PG_CODE_GSSENC);
    (void)exchange(c, &in, "no\n");
    special(&in, PG_CODE_SSL);
    (void)exchange(c, &in, "no\n");
    STARTUP(&in, PG_PROTOCOL_3_0,
            "user\0me\0database\0db\0application_name\0a p p\0DateStyle\0ISO\0"
            "options\0-c a-b=c\\ d --e=f -cg=\0client_encoding\0'utf-8'\0");
    cr_assert_eq(exchange(c, &in, GREETING), PG_CONN_NEED_INPUT);
    expect_log("open(me,db,a p p,DateStyle=ISO,a_b=c d,e=f,g=);");
    close_conn(c);
    expect_log("free;");
}

Test(pg_conn, negotiates_newer_minor_versions_and_unknown_protocol_options)
{
    struct pg_conn *c = conn_new();
    struct buf in = {0};
    STARTUP(&in, PG_PROTOCOL_3_0 + 2, "user\0me\0application_name\0a p p\0_pq_.new\0on\0");
    (void)exchange(c, &in, "v 196608 1\n" GREETING);
    expect_log("open(me,me,a p p);");
    close_conn(c);
}

struct bad_start {
    const char *bytes;
    size_t size;
    const char *want;
};

#define BAD(s, w)                                                                                  \
    {                                                                                              \
        s, sizeof(s) - 1, w                                                                        \
    }

Test(pg_conn, refuses_bad_beginnings_and_closes)
{
    static const struct bad_start list[] = {
        BAD("GET / HTTP/1.1\r\n", "E FATAL 08P01\n"),
        BAD("\x16\3\1\2\0\1\0\1\xfc\3\3", "E FATAL 08P01\n"), /* a TLS hello */
        BAD("\0\0\0\4", "E FATAL 08P01\n"),
        BAD("\0\0\x27\x11\0\3\0\0", "E FATAL 08P01\n"), /* above the cap before authentication */
        BAD("\0\0\0\x08\0\2\0\0", "E FATAL 0A000\n"),   /* protocol 2.0 */
        BAD("\0\0\0\x09\0\3\0\0\0", "E FATAL 28000\n"), /* no user */
        BAD("\0\0\0\x0d\0\3\0\0user\0", "E FATAL 08P01\n"),
        BAD("\0\0\0\x09\x04\xd2\x16\x2f\0", "E FATAL 08P01\n"), /* SSLRequest with a body */
        BAD("\0\0\0\x09\x04\xd2\x16\x2e\0", "E FATAL 08P01\n"), /* CancelRequest too short */
    };
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        struct pg_conn *c = conn_new();
        struct buf in = {0};
        buf_append(&in, list[i].bytes, list[i].size);
        cr_assert_eq(exchange(c, &in, list[i].want), PG_CONN_CLOSE, "case %zu", i);
        close_conn(c);
    }
    struct pg_conn *c = conn_new();
    struct buf in = {0};
    STARTUP(&in, PG_PROTOCOL_3_0, "user\0me\0client_encoding\0LATIN1\0");
    cr_assert_eq(exchange(c, &in, "E FATAL 0A000\n"), PG_CONN_CLOSE);
    close_conn(c);
    c = conn_new();
    STARTUP(&in, PG_PROTOCOL_3_0, "user\0me\0options\0-z\0");
    cr_assert_eq(exchange(c, &in, "E FATAL 42601\n"), PG_CONN_CLOSE);
    close_conn(c);
}

Test(pg_conn, hands_out_a_cancel_request)
{
    struct pg_conn *c = conn_new();
    struct buf b = {0};
    struct buf in = {0};
    uint32_t pid;
    uint32_t key;
    be32(&b, PG_CODE_CANCEL);
    be32(&b, 77);
    be32(&b, 88);
    message(&in, '\0', &b);
    cr_assert_eq(exchange(c, &in, ""), PG_CONN_CANCEL);
    pg_conn_cancel_target(c, &pid, &key);
    cr_assert(pid == 77 && key == 88);
    close_conn(c);
}

Test(pg_conn, refuses_after_the_startup_message_when_told_to)
{
    static const struct pg_error full = {
        .severity = "FATAL", .sqlstate = "53300", .message = "full"};
    struct pg_conn_config cfg = {.factory = {f_open, NULL}, .server_version = "0", .refuse = &full};
    fake = (struct fake){.status = 'I'};
    struct pg_conn *c = pg_conn_new(&cfg);
    struct buf in = {0};
    special(&in, PG_CODE_SSL);
    STARTUP(&in, PG_PROTOCOL_3_0, "user\0me\0");
    cr_assert_eq(exchange(c, &in, "no\nE FATAL 53300\n"), PG_CONN_CLOSE);
    cr_assert_eq(fake.log.size, 0); /* no session was opened */
    close_conn(c);
}

Test(pg_conn, answers_simple_queries)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    query(&in, "begin;rows2;fail;rows9");
    (void)exchange(c, &in, "C begin\nT\nD 0 x\nD 1 NULL\nC rows2\nE ERROR 22012\nZ E\n");
    query(&in, "rows1");
    query(&in, "rollback");
    (void)exchange(c, &in, "E ERROR 25P02\nZ E\nC rollback\nZ I\n");
    query(&in, "");
    (void)exchange(c, &in, "I\nZ I\n");
    query(&in, "lie");
    (void)exchange(c, &in, "E ERROR XX000\nZ I\n"); /* a failure always says something */
    query(&in, "fatal");
    cr_assert_eq(exchange(c, &in, "E FATAL 57P01\n"), PG_CONN_CLOSE);
    close_conn(c);
}

Test(pg_conn, answers_the_extended_protocol)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    parse(&in, "s", "rows3");
    named(&in, 'D', 'S', "s"); /* before any Bind */
    bind(&in, "", "s", "5", 1, 0, 0);
    named(&in, 'D', 'P', "");
    execute(&in, "", 2);
    execute(&in, "", 0);
    named(&in, 'C', 'S', "s");
    named(&in, 'C', 'S', "never was");
    plain(&in, 'S');
    (void)exchange(c, &in, "1\nt\nT\n2\nT\nD 0 x\nD 1 NULL\ns\nD 2 x\nC rows3\n3\n3\nZ I\n");
    expect_log("parse(rows3,1);describe_stmt;bind(5,);execute(rows3,2);execute(rows3,0);sync(0);");
    parse(&in, "", "begin");
    named(&in, 'D', 'S', "");
    bind(&in, "", "", NULL, 0, 0, 0);
    execute(&in, "", 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "1\nt\nn\n2\nC begin\nZ T\n");
    parse(&in, "", "");
    bind(&in, "", "", NULL, 0, 0, 0);
    execute(&in, "", 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "1\n2\nI\nZ T\n");
    close_conn(c);
}

Test(pg_conn, skips_to_sync_after_an_error)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    parse(&in, "", "syntax");
    parse(&in, "", "rows1");
    bind(&in, "", "", NULL, 0, 0, 0);
    query(&in, "rows1"); /* skipped as well */
    plain(&in, 'H');
    (void)exchange(c, &in, "E ERROR 42601\n");
    cr_assert_not(pg_conn_is_at_rest(c));
    plain(&in, 'S');
    (void)exchange(c, &in, "Z I\n");
    cr_assert(pg_conn_is_at_rest(c));
    expect_log("parse(syntax,1);sync(1);");
    query(&in, "rows1");
    (void)exchange(c, &in, "T\nD 0 x\nC rows1\nZ I\n");
    close_conn(c);
}

Test(pg_conn, keeps_the_rules_of_names)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    parse(&in, "", "rows1");
    parse(&in, "", "rows2"); /* the unnamed one is replaced silently */
    parse(&in, "s", "rows1");
    parse(&in, "s", "rows1");
    plain(&in, 'S');
    (void)exchange(c, &in, "1\n1\n1\nE ERROR 42P05\nZ I\n");
    bind(&in, "p", "none", NULL, 0, 0, 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "E ERROR 26000\nZ I\n");
    bind(&in, "p", "s", NULL, 0, 0, 0);
    bind(&in, "p", "s", NULL, 0, 0, 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "2\nE ERROR 42P03\nZ I\n");
    execute(&in, "p", 0); /* portals die with the implicit transaction, at Sync */
    plain(&in, 'S');
    (void)exchange(c, &in, "E ERROR 34000\nZ I\n");
    query(&in, "begin");
    bind(&in, "p", "s", NULL, 0, 0, 0);
    plain(&in, 'S');
    execute(&in, "p", 0); /* but outlive Sync in an explicit one */
    plain(&in, 'S');
    query(&in, "commit");
    execute(&in, "p", 0);
    plain(&in, 'S');
    (void)exchange(
        c, &in, "C begin\nZ T\n2\nZ T\nD 0 x\nC rows1\nZ T\nC commit\nZ I\nE ERROR 34000\nZ I\n");
    parse(&in, "", "rows1");
    query(&in, ""); /* a simple query destroys the unnamed statement */
    bind(&in, "", "", NULL, 0, 0, 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "1\nI\nZ I\nE ERROR 26000\nZ I\n");
    close_conn(c);
}

Test(pg_conn, flushes_on_flush_and_gathers_a_pipeline_until_sync)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    parse(&in, "s", "rows1");
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(pg_conn_step(c), PG_CONN_MORE);
    cr_assert_not(pg_conn_wants_flush(c));
    buf_clear(&in);
    plain(&in, 'H');
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(pg_conn_step(c), PG_CONN_MORE);
    cr_assert(pg_conn_wants_flush(c));
    expect_text(pg_conn_out(c), "1\n");
    buf_deinit(&in);
    close_conn(c);
}

Test(pg_conn, converts_binary_parameters_and_results)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    parse(&in, "s", "rows2");
    bind(&in, "", "s", "\0\0\0\0\0\0\1\0", 8, 1, 1);
    execute(&in, "", 0);
    plain(&in, 'S');
    (void)exchange(
        c, &in,
        "1\n2\nD \\0\\0\\0\\0\\0\\0\\0\\0 x\nD \\0\\0\\0\\0\\0\\0\\0\\1 NULL\nC rows2\nZ I\n");
    expect_log("parse(rows2,1);describe_stmt;bind(256,);execute(rows2,0);sync(0);");
    bind(&in, "", "s", "xx", 2, 1, 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "E ERROR 22P03\nZ I\n");
    bind(&in, "", "s", NULL, 0, 0, 7);
    plain(&in, 'S');
    (void)exchange(c, &in, "E ERROR 22023\nZ I\n");
    parse(&in, "", "rows666"); /* a value that is not of its column's type */
    bind(&in, "", "", NULL, 0, 0, 1);
    execute(&in, "", 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "1\n2\nE ERROR 22P03\nZ I\n");
    close_conn(c);
}

Test(pg_conn, raises_the_gate_to_the_highest_and_lowers_it_only_when_flushed)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    query(&in, "gate50;gate20;fail");
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(pg_conn_step(c), PG_CONN_MORE);
    cr_assert_eq(pg_conn_not_before(c), 50); /* the error answers behind the same gate */
    cr_assert(pg_conn_wants_flush(c));
    pg_conn_flushed(c);
    cr_assert_eq(pg_conn_not_before(c), 0);
    buf_deinit(&in);
    close_conn(c);
}

struct flushes {
    int count;
    int fail_after;
    struct buf all;
};

static span_status flush_hook(void *ctx, struct pg_conn *c)
{
    struct flushes *f = ctx;
    if (++f->count == f->fail_after) {
        return SPAN_CLOSED;
    }
    cr_assert_lt(pg_conn_out(c).size, 2 * PG_CONN_FLUSH_BYTES);
    buf_append_slice(&f->all, pg_conn_out(c));
    pg_conn_flushed(c);
    return SPAN_OK;
}

Test(pg_conn, streams_large_results_through_the_flush_hook_and_stops_when_the_client_is_gone)
{
    for (int fail = 0; fail < 2; fail++) {
        struct flushes f = {.fail_after = fail ? 2 : 0};
        struct pg_conn_config cfg = {
            .factory = {f_open, NULL}, .server_version = "0", .flush = flush_hook, .flush_ctx = &f};
        buf_deinit(&fake.log);
        fake = (struct fake){.status = 'I'};
        struct pg_conn *c = pg_conn_new(&cfg);
        struct buf in = {0};
        STARTUP(&in, PG_PROTOCOL_3_0, "user\0me\0");
        query(&in, "rows20000");
        pg_conn_feed(c, buf_slice(&in));
        cr_assert_eq(pg_conn_step(c), PG_CONN_MORE);
        pg_conn_flushed(c);
        cr_assert_eq(pg_conn_step(c), fail ? PG_CONN_CLOSE : PG_CONN_MORE);
        if (!fail) {
            buf_append_slice(&f.all, pg_conn_out(c));
            size_t rows = 0;
            for (size_t at = 0; at < f.all.size; at += 1 + pg_be32(f.all.data + at + 1)) {
                rows += f.all.data[at] == 'D';
            }
            cr_assert_eq(rows, 20000);
            cr_assert_gt(f.count, 3);
        }
        buf_deinit(&f.all);
        buf_deinit(&in);
        close_conn(c);
    }
}

Test(pg_conn, throws_oversized_messages_away_as_they_arrive)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    struct buf raw = {0};
    uint8_t chunk[4096];
    memset(chunk, 'x', sizeof(chunk));
    buf_append_byte(&in, 'Q');
    be32(&in, 512 * 1024 * 1024);
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(drive(c, &raw), PG_CONN_NEED_INPUT);
    for (uint64_t sent = 4; sent < 512 * MIB; sent += sizeof(chunk)) {
        size_t n = 512 * MIB - sent < sizeof(chunk) ? (size_t)(512 * MIB - sent) : sizeof(chunk);
        pg_conn_feed(c, slice_of(chunk, n));
        if (sent % (64 * MIB) < sizeof(chunk)) {
            cr_assert_eq(drive(c, &raw), PG_CONN_NEED_INPUT);
        }
    }
    buf_clear(&in);
    query(&in, "begin");
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(drive(c, &raw), PG_CONN_NEED_INPUT);
    expect_text(buf_slice(&raw), "E ERROR 54000\nZ I\nC begin\nZ T\n");
    buf_deinit(&in);
    buf_deinit(&raw);
    close_conn(c);
}

Test(pg_conn, refuses_text_that_is_not_utf8_and_malformed_bodies_and_goes_on)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    static const char *const bad[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80",
                                      "a\xe2\x82"};
    for (size_t i = 0; i < 5; i++) {
        query(&in, bad[i]);
        (void)exchange(c, &in, "E ERROR 22021\nZ I\n");
    }
    query(&in, "h\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    (void)exchange(c, &in, "C h\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\nZ I\n");
    struct buf b = {0};
    buf_append(&b, "no end", 6);
    message(&in, 'Q', &b);
    (void)exchange(c, &in, "E ERROR 08P01\nZ I\n");
    buf_append(&b, "x", 1);
    message(&in, 'B', &b);
    plain(&in, 'S');
    (void)exchange(c, &in, "E ERROR 08P01\nZ I\n");
    parse(&in, "", "rows1");
    bind(&in, "", "", "\xff", 1, 0, 0);
    plain(&in, 'S');
    (void)exchange(c, &in, "1\nE ERROR 22021\nZ I\n");
    close_conn(c);
}

Test(pg_conn, refuses_what_it_does_not_do_and_closes_on_garbage)
{
    struct pg_conn *c = conn_ready();
    struct buf in = {0};
    struct buf b = {0};
    buf_append(&b, "\0\0\0\1\0\0\0\0\0\0", 10);
    message(&in, 'F', &b);
    (void)exchange(c, &in, "E ERROR 0A000\nZ I\n");
    plain(&in, 'c'); /* left over from a refused COPY */
    (void)exchange(c, &in, "");
    buf_append_str(&in, "zzzzzzz");
    cr_assert_eq(exchange(c, &in, "E FATAL 08P01\n"), PG_CONN_CLOSE);
    close_conn(c);
    c = conn_ready();
    plain(&in, 'X');
    cr_assert_eq(exchange(c, &in, ""), PG_CONN_CLOSE);
    close_conn(c);
}

Test(pg_conn, tells_the_client_only_fatal_things_when_idle)
{
    struct pg_conn *c = conn_ready();
    fake.idle_limit = 1;
    cr_assert_eq(pg_conn_idle_check(c, 5), PG_CONN_MORE);
    cr_assert_eq(pg_conn_out(c).size, 0);
    fake.idle_limit = 100;
    cr_assert_eq(pg_conn_idle_check(c, 99), PG_CONN_MORE);
    cr_assert_eq(pg_conn_idle_check(c, 100), PG_CONN_CLOSE);
    expect_text(pg_conn_out(c), "E FATAL 25P03\n");
    close_conn(c);
}

static void long_stream(struct buf *in)
{
    special(in, PG_CODE_SSL);
    STARTUP(in, PG_PROTOCOL_3_0, "user\0me\0");
    query(in, "begin;rows2");
    parse(in, "s", "rows3");
    bind(in, "p", "s", "\0\0\0\0\0\0\0\x09", 8, 1, 1);
    named(in, 'D', 'P', "p");
    execute(in, "p", 1);
    parse(in, "s", "rows3");
    plain(in, 'S');
    query(in, "rollback;fail");
    parse(in, "", "fail");
    bind(in, "", "", NULL, 0, 0, 0);
    execute(in, "", 0);
    plain(in, 'S');
    plain(in, 'X');
}

/* Whatever pieces the bytes come in, the answer is the same; a stream cut anywhere gives a prefix
 * of it. */
Test(pg_conn, answers_the_same_in_any_pieces_and_survives_every_truncation)
{
    struct buf in = {0};
    struct buf whole = {0};
    uint64_t seed = rng_os_u64();
    struct rng r;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    long_stream(&in);
    struct pg_conn *c = conn_new();
    pg_conn_feed(c, buf_slice(&in));
    cr_assert_eq(drive(c, &whole), PG_CONN_CLOSE);
    close_conn(c);
    for (size_t cut = 0; cut <= in.size; cut++) {
        struct buf raw = {0};
        c = conn_new();
        for (size_t at = 0; at < cut;) {
            size_t n = (size_t)rng_between(&r, 1, 7);
            n = n < cut - at ? n : cut - at;
            pg_conn_feed(c, slice_of(in.data + at, n));
            at += n;
            (void)drive(c, &raw);
        }
        cr_assert_leq(raw.size, whole.size);
        cr_assert(raw.size == 0 || memcmp(raw.data, whole.data, raw.size) == 0);
        cr_assert(cut != in.size || raw.size == whole.size);
        buf_deinit(&raw);
        close_conn(c);
    }
    buf_deinit(&in);
    buf_deinit(&whole);
}

/* Random damage never crashes it, leaks a handle, or makes it say something that is not a message.
 */
Test(pg_conn, survives_random_damage)
{
    struct buf in = {0};
    uint64_t seed = rng_os_u64();
    struct rng r;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    long_stream(&in);
    for (int round = 0; round < 20000; round++) {
        struct buf raw = {0};
        struct buf text = {0};
        struct buf bad = {0};
        buf_set(&bad, buf_slice(&in));
        for (uint64_t n = rng_between(&r, 1, 4); n > 0; n--) {
            bad.data[rng_below(&r, bad.size)] =
                (uint8_t)(rng_below(&r, 2) == 0 ? rng_below(&r, 8) : rng_u64(&r));
        }
        struct pg_conn *c = conn_new();
        pg_conn_feed(c, buf_slice(&bad));
        (void)drive(c, &raw);
        render(buf_slice(&raw), &text);
        close_conn(c);
        buf_deinit(&raw);
        buf_deinit(&text);
        buf_deinit(&bad);
    }
    buf_deinit(&in);
}
