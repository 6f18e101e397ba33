/* Extended query: Parse, Bind, Describe, Execute, Close, Sync, Flush, and the names of statements
 * and portals. The rules that drivers depend on: an error skips everything up to Sync; the unnamed
 * statement and portal are replaced silently, named ones must be closed first; Describe of a
 * statement comes before any Bind; portals die with their transaction; nothing waits for Sync but
 * the client. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "sql/pgwire/pg_conn_internal.h"

#include <stdio.h>

/* Names. */

static void stmt_entry_free(struct pg_conn *c, struct conn_stmt *s)
{
    c->session.ops->stmt_free(c->session.impl, s->stmt);
    span_free(s->param_oids);
    span_free(s);
}

static void portal_entry_free(struct pg_conn *c, struct conn_portal *p)
{
    c->session.ops->portal_free(c->session.impl, p->portal);
    span_free(p->formats);
    span_free(p->types);
    span_free(p);
}

void conn_portals_drop(struct pg_conn *c)
{
    if (c->unnamed_portal != NULL) {
        portal_entry_free(c, c->unnamed_portal);
        c->unnamed_portal = NULL;
    }
    size_t pos = 0;
    struct slice name;
    for (struct conn_portal *p;
         c->portals.count != 0 && (p = mapb_next(&c->portals, &pos, &name)) != NULL;) {
        (void)mapb_remove(&c->portals, name);
        portal_entry_free(c, p);
    }
}

void conn_stmts_drop(struct pg_conn *c)
{
    if (c->unnamed_stmt != NULL) {
        stmt_entry_free(c, c->unnamed_stmt);
        c->unnamed_stmt = NULL;
    }
    size_t pos = 0;
    struct slice name;
    for (struct conn_stmt *s;
         c->stmts.count != 0 && (s = mapb_next(&c->stmts, &pos, &name)) != NULL;) {
        (void)mapb_remove(&c->stmts, name);
        stmt_entry_free(c, s);
    }
}

void conn_unnamed_drop(struct pg_conn *c)
{
    if (c->unnamed_portal != NULL) {
        portal_entry_free(c, c->unnamed_portal);
        c->unnamed_portal = NULL;
    }
    if (c->unnamed_stmt != NULL) {
        stmt_entry_free(c, c->unnamed_stmt);
        c->unnamed_stmt = NULL;
    }
}

struct conn_stmt *conn_stmt_find(struct pg_conn *c, struct slice name)
{
    return name.size == 0 ? c->unnamed_stmt : mapb_get(&c->stmts, name);
}

bool conn_stmt_add(struct pg_conn *c, struct slice name, struct pg_stmt *stmt)
{
    if (name.size != 0 &&
        (mapb_get(&c->stmts, name) != NULL || c->stmts.count >= PG_CONN_STMTS_MAX)) {
        return false;
    }
    struct conn_stmt *s = SPAN_NEW(struct conn_stmt);
    s->stmt = stmt;
    if (name.size == 0) {
        INVARIANT(c->unnamed_stmt == NULL);
        c->unnamed_stmt = s;
    } else {
        (void)mapb_put(&c->stmts, name, s);
    }
    return true;
}

bool conn_stmt_drop(struct pg_conn *c, struct slice name)
{
    struct conn_stmt *s = conn_stmt_find(c, name);
    if (s == NULL) {
        return false;
    }
    if (name.size == 0) {
        c->unnamed_stmt = NULL;
    } else {
        (void)mapb_remove(&c->stmts, name);
    }
    stmt_entry_free(c, s);
    return true;
}

static struct conn_portal *portal_find(struct pg_conn *c, struct slice name)
{
    return name.size == 0 ? c->unnamed_portal : mapb_get(&c->portals, name);
}

static bool portal_drop(struct pg_conn *c, struct slice name)
{
    struct conn_portal *p = portal_find(c, name);
    if (p == NULL) {
        return false;
    }
    if (name.size == 0) {
        c->unnamed_portal = NULL;
    } else {
        (void)mapb_remove(&c->portals, name);
    }
    portal_entry_free(c, p);
    return true;
}

/* Messages. Each returns false after it (or the session) said an error. */

static bool fail_name(struct pg_conn *c, const char *sqlstate, const char *what, struct slice name,
                      const char *how)
{
    char text[160];
    int shown = name.size > 63 ? 63 : (int)name.size;
    if (shown == 0) {
        (void)snprintf(text, sizeof(text), "unnamed %s %s", what, how);
    } else {
        (void)snprintf(text, sizeof(text), "%s \"%.*s\" %s", what, shown, (const char *)name.data,
                       how);
    }
    conn_error(c, "ERROR", sqlstate, text, NULL, NULL);
    return false;
}

static bool fail_malformed(struct pg_conn *c, const char *what)
{
    char text[96];
    (void)snprintf(text, sizeof(text), "malformed %s message", what);
    conn_error(c, "ERROR", "08P01", text, NULL, NULL);
    return false;
}

static bool do_parse(struct pg_conn *c, struct slice body)
{
    struct pg_parse m;
    if (pg_parse_decode(body, &m) != SPAN_OK) {
        return fail_malformed(c, "Parse");
    }
    if (m.sql.size > LIMIT_STATEMENT_BYTES) {
        conn_error(c, "ERROR", "54000", STATEMENT_TOO_LONG, NULL,
                   "Split it into several statements.");
        return false;
    }
    if (!conn_text_check(c, m.sql, "statement")) {
        return false;
    }
    if (m.name.size == 0) {
        (void)conn_stmt_drop(c, m.name);
    } else if (conn_stmt_find(c, m.name) != NULL) {
        return fail_name(c, "42P05", "prepared statement", m.name, "already exists");
    } else if (c->stmts.count >= PG_CONN_STMTS_MAX) {
        conn_error(c, "ERROR", "54000", "too many prepared statements in this session", NULL,
                   "Close (DEALLOCATE) statements that are no longer needed.");
        return false;
    }
    uint32_t *oids = span_calloc(m.oid_count + 1, sizeof(*oids));
    for (size_t i = 0; i < m.oid_count; i++) {
        oids[i] = pg_oid_at(&m, i);
    }
    struct pg_stmt *stmt = NULL;
    char before = conn_call_begin(c);
    bool ok = c->session.ops->parse(c->session.impl, m.sql, oids, m.oid_count, &c->sink, &stmt);
    span_free(oids);
    if (!conn_call_end(c, before, ok)) {
        if (stmt != NULL) {
            c->session.ops->stmt_free(c->session.impl, stmt);
        }
        return false;
    }
    bool added = conn_stmt_add(c, m.name, stmt);
    INVARIANT(added);
    pg_put_simple(&c->out, '1');
    return true;
}

/* Types of a statement's parameters, asked once; only a binary parameter needs them. */
static bool param_types(struct pg_conn *c, struct conn_stmt *s)
{
    if (s->param_oids != NULL) {
        return true;
    }
    struct conn_capture capture = {0};
    c->capture = &capture;
    char before = conn_call_begin(c);
    bool ok = c->session.ops->describe_stmt(c->session.impl, s->stmt, &c->sink);
    c->capture = NULL;
    if (!conn_call_end(c, before, ok)) {
        span_free(capture.oids);
        return false;
    }
    s->param_oids = capture.oids != NULL ? capture.oids : span_calloc(1, sizeof(uint32_t));
    s->param_count = capture.count;
    return true;
}

/* The i-th parameter in text format. A binary one is converted into *text, which is appended to. */
static bool param_text(struct pg_conn *c, const struct conn_stmt *s, size_t i, struct slice bin,
                       struct buf *text)
{
    uint32_t oid = i < s->param_count ? s->param_oids[i] : PG_OID_UNKNOWN;
    span_status st = pg_binary_to_text(oid, bin, text);
    if (st == SPAN_OK) {
        return true;
    }
    char message[128];
    if (st == SPAN_UNSUPPORTED) {
        (void)snprintf(message, sizeof(message),
                       "binary format is not supported for parameter $%zu of type %u", i + 1, oid);
        conn_error(c, "ERROR", "0A000", message, NULL, "Send this parameter in text format.");
    } else {
        (void)snprintf(message, sizeof(message), "incorrect binary data in parameter $%zu", i + 1);
        conn_error(c, "ERROR", "22P03", message, NULL, NULL);
    }
    return false;
}

/* Fills values[0..count-1]; binary ones are converted into `text` first and addressed at the end,
 * because it moves as it grows. */
static bool bind_values(struct pg_conn *c, struct conn_stmt *s, const struct pg_bind *m,
                        struct pg_value *values, struct buf *text)
{
    size_t *offsets = span_calloc(m->param_count + 1, sizeof(*offsets));
    struct slice rest = m->params;
    bool ok = true;
    for (size_t i = 0; i < m->param_count && ok; i++) {
        uint16_t format = pg_format_at(m->param_formats, m->param_format_count, i);
        values[i] = pg_param_next(&rest);
        offsets[i] = text->size;
        if (values[i].is_null) {
            continue;
        }
        if (format > 1) {
            conn_error(c, "ERROR", "22023", "unsupported format code of a parameter", NULL,
                       "0 is text, 1 is binary.");
            ok = false;
        } else if (format == 1) {
            ok = param_types(c, s) && param_text(c, s, i, values[i].text, text);
        } else {
            ok = conn_text_check(c, values[i].text, "parameter");
        }
    }
    offsets[m->param_count] = text->size;
    for (size_t i = 0; i < m->param_count && ok; i++) {
        if (!values[i].is_null && pg_format_at(m->param_formats, m->param_format_count, i) == 1) {
            size_t size = offsets[i + 1] - offsets[i];
            values[i].text = size == 0 ? slice_of("", 0) : slice_of(text->data + offsets[i], size);
        }
    }
    span_free(offsets);
    return ok;
}

static bool wants_binary(const struct pg_bind *m)
{
    for (size_t i = 0; i < m->result_format_count; i++) {
        if (pg_format_at(m->result_formats, m->result_format_count, i) != 0) {
            return true;
        }
    }
    return false;
}

/* Result columns in binary: learns their types from the session and checks that each converts. */
static bool result_formats(struct pg_conn *c, struct conn_portal *p, const struct pg_bind *m)
{
    struct conn_capture capture = {.columns = true};
    c->capture = &capture;
    char before = conn_call_begin(c);
    bool ok = c->session.ops->describe_portal(c->session.impl, p->portal, &c->sink);
    c->capture = NULL;
    if (!conn_call_end(c, before, ok)) {
        span_free(capture.oids);
        return false;
    }
    p->types = capture.oids;
    p->column_count = capture.count;
    if (m->result_format_count > 1 && m->result_format_count != capture.count) {
        conn_error(c, "ERROR", "08P01",
                   "Bind message has another number of result formats than the "
                   "query has columns",
                   NULL, NULL);
        return false;
    }
    p->formats = span_calloc(capture.count + 1, sizeof(*p->formats));
    for (size_t i = 0; i < capture.count; i++) {
        p->formats[i] = pg_format_at(m->result_formats, m->result_format_count, i);
        if (p->formats[i] > 1) {
            conn_error(c, "ERROR", "22023", "unsupported format code of a result column", NULL,
                       "0 is text, 1 is binary.");
            return false;
        }
        if (p->formats[i] == 1 && !pg_binary_supported(p->types[i])) {
            char message[96];
            (void)snprintf(message, sizeof(message),
                           "binary format is not supported for column %zu of type %u", i + 1,
                           p->types[i]);
            conn_error(c, "ERROR", "0A000", message, NULL, "Ask for this column in text format.");
            return false;
        }
    }
    return true;
}

static bool bind_checked(struct pg_conn *c, const struct pg_bind *m, struct conn_stmt *s)
{
    struct pg_value *values = span_calloc(m->param_count + 1, sizeof(*values));
    struct buf text;
    buf_init(&text);
    struct pg_portal *portal = NULL;
    bool ok = bind_values(c, s, m, values, &text);
    if (ok) {
        char before = conn_call_begin(c);
        ok = c->session.ops->bind(c->session.impl, s->stmt, values, m->param_count, &c->sink,
                                  &portal);
        ok = conn_call_end(c, before, ok);
    }
    buf_deinit(&text);
    span_free(values);
    if (!ok) {
        if (portal != NULL) {
            c->session.ops->portal_free(c->session.impl, portal);
        }
        return false;
    }
    struct conn_portal *p = SPAN_NEW(struct conn_portal);
    p->portal = portal;
    if (wants_binary(m) && !result_formats(c, p, m)) {
        portal_entry_free(c, p);
        return false;
    }
    if (m->portal.size == 0) {
        c->unnamed_portal = p;
    } else {
        (void)mapb_put(&c->portals, m->portal, p);
    }
    pg_put_simple(&c->out, '2');
    return true;
}

static bool do_bind(struct pg_conn *c, struct slice body)
{
    struct pg_bind m;
    if (pg_bind_decode(body, &m) != SPAN_OK) {
        return fail_malformed(c, "Bind");
    }
    struct conn_stmt *s = conn_stmt_find(c, m.stmt);
    if (s == NULL) {
        return fail_name(c, "26000", "prepared statement", m.stmt, "does not exist");
    }
    if (m.portal.size == 0) {
        (void)portal_drop(c, m.portal);
    } else if (portal_find(c, m.portal) != NULL) {
        return fail_name(c, "42P03", "portal", m.portal, "already exists");
    } else if (c->portals.count >= PG_CONN_PORTALS_MAX) {
        conn_error(c, "ERROR", "54000", "too many open portals in this session", NULL,
                   "Close portals, or end the transaction.");
        return false;
    }
    return bind_checked(c, &m, s);
}

static bool fail_portal(struct pg_conn *c, struct slice name)
{
    return fail_name(c, "34000", "portal", name, "does not exist");
}

static bool do_describe(struct pg_conn *c, struct slice body)
{
    struct pg_describe m;
    if (pg_describe_decode(body, &m) != SPAN_OK) {
        return fail_malformed(c, "Describe");
    }
    bool ok;
    char before;
    if (m.kind == 'S') {
        struct conn_stmt *s = conn_stmt_find(c, m.name);
        if (s == NULL) {
            return fail_name(c, "26000", "prepared statement", m.name, "does not exist");
        }
        before = conn_call_begin(c);
        ok = c->session.ops->describe_stmt(c->session.impl, s->stmt, &c->sink);
    } else {
        struct conn_portal *p = portal_find(c, m.name);
        if (p == NULL) {
            return fail_portal(c, m.name);
        }
        before = conn_call_begin(c);
        c->row_form = p;
        ok = c->session.ops->describe_portal(c->session.impl, p->portal, &c->sink);
        c->row_form = NULL;
    }
    return conn_call_end(c, before, ok);
}

static bool do_execute(struct pg_conn *c, struct slice body)
{
    struct pg_execute m;
    if (pg_execute_decode(body, &m) != SPAN_OK) {
        return fail_malformed(c, "Execute");
    }
    struct conn_portal *p = portal_find(c, m.portal);
    if (p == NULL) {
        return fail_portal(c, m.portal);
    }
    char before = conn_call_begin(c);
    c->in_execute = true;
    c->row_form = p;
    bool ok = c->session.ops->execute(c->session.impl, p->portal, m.max_rows, &c->sink);
    c->in_execute = false;
    c->row_form = NULL;
    return conn_call_end(c, before, ok);
}

static bool do_close(struct pg_conn *c, struct slice body)
{
    struct pg_describe m;
    if (pg_describe_decode(body, &m) != SPAN_OK) {
        return fail_malformed(c, "Close");
    }
    /* Closing what does not exist is not an error. */
    if (m.kind == 'S') {
        (void)conn_stmt_drop(c, m.name);
    } else {
        (void)portal_drop(c, m.name);
    }
    pg_put_simple(&c->out, '3');
    return true;
}

static void do_sync(struct pg_conn *c)
{
    bool failed = c->skip_to_sync;
    c->skip_to_sync = false;
    c->in_pipeline = false;
    if (pg_conn_txn_status(c) == 'I') {
        conn_portals_drop(c); /* the implicit transaction ends here, and its portals before it */
    }
    char before = conn_call_begin(c);
    bool ok = c->session.ops->sync(c->session.impl, failed, &c->sink);
    (void)conn_call_end(c, before, ok);
    if (c->state == CONN_READY) {
        pg_put_ready(&c->out, pg_conn_txn_status(c));
    }
    c->wants_flush = true;
}

void conn_ext_message(struct pg_conn *c, const struct pg_frame *f)
{
    if (f->type == PG_FRONT_SYNC) {
        do_sync(c);
        return;
    }
    bool ok = true;
    c->in_pipeline = true;
    c->call_errors = 0;
    switch (f->type) {
    case PG_FRONT_PARSE:
        ok = do_parse(c, f->body);
        break;
    case PG_FRONT_BIND:
        ok = do_bind(c, f->body);
        break;
    case PG_FRONT_DESCRIBE:
        ok = do_describe(c, f->body);
        break;
    case PG_FRONT_EXECUTE:
        ok = do_execute(c, f->body);
        break;
    case PG_FRONT_CLOSE:
        ok = do_close(c, f->body);
        break;
    case PG_FRONT_FLUSH:
        c->wants_flush = true;
        break;
    default:
        INVARIANT(!"not an extended-protocol message");
    }
    if (!ok) {
        c->skip_to_sync = true;
    }
}
