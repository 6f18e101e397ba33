/* The interface of the PostgreSQL wire (sql/pgwire/pg_session.h) over a session. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/run.h"

#include <stdio.h>
#include <string.h>

struct pg_stmt {
    unsigned refs;
    struct buf sql;
    bool empty;
    uint32_t *oids; /* [count] */
    size_t count;
};

struct pg_portal {
    struct pg_stmt *stmt;
    struct pg_value *values; /* into data */
    uint8_t *data;
    struct pg_column *cols; /* told by Describe, so that rows match it; NULL: not described */
    size_t col_count;
    struct row_set rows; /* of a portal with a row limit */
    size_t at;
    bool ran;
    bool gives_rows;
    char tag[64];
    char written[64]; /* tag of a write, as told to the client */
};

static struct sql_session *session_of(void *p)
{
    return p;
}

static void begin_call(struct sql_session *s, const struct pg_sink *sink)
{
    s->sink = sink;
    s->gated = 0;
    session_enter(s);
}

static void end_call(struct sql_session *s)
{
    if (!s->kv_open) {
        s->kv->ops->clear_not_before(s->kv);
    }
    session_scans_reset(s);
    session_leave(s);
    s->sink = NULL;
}

static void pg_free(void *p)
{
    sql_session_free(p);
}

static bool tokenize(struct sql_session *s, struct slice sql)
{
    size_t bad = 0;
    if (sql.size > LIMIT_STATEMENT_BYTES) {
        sql_error_set(&s->err, "54000", "statement is longer than 1 MiB");
        return false;
    }
    if (sql.size > 0 && memchr(sql.data, 0, sql.size) != NULL) {
        sql_error_set(&s->err, "22021", "a statement cannot hold a zero byte");
        return false;
    }
    if (sql_tokenize(sql, &s->tokens, &bad) != SPAN_OK) {
        int n = (int)(sql.size - bad < 40 ? sql.size - bad : 40);
        sql_error_set(&s->err, "42601", "unterminated or unrecognized token at \"%.*s\"", n,
                      (const char *)sql.data + bad);
        s->err.offset = bad + 1;
        return false;
    }
    return true;
}

static size_t count_statements(const struct sql_tokens *t)
{
    size_t at = 0;
    size_t n = 0;
    struct sql_stmt st;
    while (sql_stmt_next(t, &at, &st)) {
        n += st.verb == VERB_EMPTY ? 0 : 1;
    }
    return n;
}

/* Ends an implicit transaction. */
static bool finish_implicit(struct sql_session *s, bool failed)
{
    if (s->block != BLOCK_IMPLICIT) {
        return true;
    }
    if (failed || s->failed) {
        block_rollback(s);
        return true;
    }
    return block_commit(s);
}

static bool pg_simple(void *p, struct slice sql, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    begin_call(s, sink);
    sql_error_clear(&s->err);
    bool ok = tokenize(s, sql);
    if (!ok && s->block != BLOCK_NONE) {
        s->failed = true;
    }
    size_t n = ok ? count_statements(&s->tokens) : 0;
    if (ok && n == 0) {
        pg_sink_empty_query(sink);
    }
    struct sql_stmt st;
    size_t at = 0;
    size_t seen = 0;
    char last_tag[64] = "";
    while (ok && sql_stmt_next(&s->tokens, &at, &st)) {
        if (st.verb == VERB_EMPTY) {
            continue;
        }
        if (n > 1 && s->block == BLOCK_NONE) {
            s->block = BLOCK_IMPLICIT;
        }
        struct run_out out = {.sink = sink, .describe = true};
        ok = run_statement(s, &st, NULL, &out);
        if (ok && ++seen == n && s->block == BLOCK_IMPLICIT) {
            snprintf(last_tag, sizeof last_tag, "%s", out.tag);
        } else if (ok) {
            pg_sink_command_complete(sink, out.tag);
        }
        if (s->client_gone) {
            break;
        }
    }
    /* The commit of several statements comes before the last one's tag: a tag is an
     * acknowledgement. */
    struct sql_error keep = s->err;
    if (!finish_implicit(s, !ok)) {
        ok = false;
    } else if (!ok) {
        s->err = keep;
    }
    if (ok && last_tag[0] != '\0') {
        pg_sink_command_complete(sink, last_tag);
    }
    if (!ok && !s->client_gone) {
        run_report(s, sink);
    }
    end_call(s);
    return ok;
}

static void stmt_unref(struct pg_stmt *st)
{
    if (--st->refs == 0) {
        buf_deinit(&st->sql);
        span_free(st->oids);
        span_free(st);
    }
}

static bool fail_call(struct sql_session *s, const struct pg_sink *sink)
{
    if (s->block != BLOCK_NONE) {
        s->failed = true;
    }
    run_report(s, sink);
    end_call(s);
    return false;
}

/* First statement of the text into *st. */
static bool only_statement(struct sql_session *s, struct slice sql, struct sql_stmt *st)
{
    if (!tokenize(s, sql)) {
        return false;
    }
    if (count_statements(&s->tokens) > 1) {
        sql_error_set(&s->err, "42601",
                      "cannot insert multiple commands into a prepared statement");
        return false;
    }
    size_t at = 0;
    memset(st, 0, sizeof *st);
    while (sql_stmt_next(&s->tokens, &at, st) && st->verb == VERB_EMPTY) {
    }
    return true;
}

static bool pg_parse(void *p, struct slice sql, const uint32_t *oids, size_t oid_count,
                     const struct pg_sink *sink, struct pg_stmt **out)
{
    struct sql_session *s = session_of(p);
    struct sql_stmt st;
    begin_call(s, sink);
    sql_error_clear(&s->err);
    *out = NULL;
    if (!only_statement(s, sql, &st)) {
        return fail_call(s, sink);
    }
    struct pg_stmt *ps = SPAN_NEW(struct pg_stmt);
    ps->refs = 1;
    ps->empty = st.verb == VERB_EMPTY;
    buf_set(&ps->sql, sql);
    size_t n = 0;
    if (!ps->empty && !command_is_control(st.verb)) {
        struct span_error err = {0};
        span_status rs = sql_stmt_rewrite(&s->tokens, &st, false, &s->rewritten, &err);
        if (rs != SPAN_OK) {
            run_rewrite_error(s, rs, &err);
            stmt_unref(ps);
            return fail_call(s, sink);
        }
        n = s->rewritten.param_max;
    }
    ps->count = n > oid_count ? n : oid_count;
    ps->oids = span_calloc(ps->count + 1, sizeof *ps->oids);
    for (size_t i = 0; i < oid_count; i++) {
        ps->oids[i] = oids[i];
    }
    *out = ps;
    end_call(s);
    return true;
}

/* Row description or no_data of a statement; the columns also into *cols (owned). */
static bool describe(struct sql_session *s, struct pg_stmt *stmt, const struct pg_sink *sink,
                     struct pg_column **keep, size_t *keep_count)
{
    struct sql_stmt st;
    const struct pg_column *cols = NULL;
    size_t count = 0;
    bool gives_rows = false;
    int params = 0;
    struct kv_table table;
    struct pg_column *owned = NULL;
    if (stmt->empty) {
        pg_sink_no_data(sink);
        return true;
    }
    if (!only_statement(s, buf_slice(&stmt->sql), &st)) {
        return false;
    }
    if (s->failed && !command_is_control(st.verb)) {
        sql_error_set(&s->err, "25P02",
                      "current transaction is aborted, commands ignored until end of "
                      "transaction block");
        return false;
    }
    if (!run_describe(s, &st, &cols, &count, &gives_rows, &params, &table)) {
        kv_table_deinit(&table);
        return false;
    }
    if (table.columns > 0) {
        run_columns_of_table(&table, &owned);
        count = table.columns;
    } else if (gives_rows) {
        owned = span_calloc(count + 1, sizeof *owned);
        memcpy(owned, cols, count * sizeof *owned);
        for (size_t i = 0; i < count; i++) {
            owned[i].type_oid =
                owned[i].type_oid == PG_OID_UNKNOWN ? PG_OID_TEXT : owned[i].type_oid;
        }
    }
    if (gives_rows) {
        pg_sink_row_description(sink, owned, count);
    } else {
        pg_sink_no_data(sink);
    }
    kv_table_deinit(&table);
    if (keep != NULL) {
        for (size_t i = 0; i < count && owned != NULL; i++) {
            owned[i].name = ""; /* borrowed until now */
        }
        span_free(*keep);
        *keep = owned;
        *keep_count = count;
    } else {
        span_free(owned);
    }
    return true;
}

static bool pg_describe_stmt(void *p, struct pg_stmt *stmt, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    begin_call(s, sink);
    sql_error_clear(&s->err);
    uint32_t *oids = span_calloc(stmt->count + 1, sizeof *oids);
    for (size_t i = 0; i < stmt->count; i++) {
        oids[i] = stmt->oids[i] == PG_OID_UNKNOWN ? PG_OID_TEXT : stmt->oids[i];
    }
    pg_sink_parameter_description(sink, oids, stmt->count);
    span_free(oids);
    if (!describe(s, stmt, sink, NULL, NULL)) {
        return fail_call(s, sink);
    }
    end_call(s);
    return true;
}

static bool pg_bind(void *p, struct pg_stmt *stmt, const struct pg_value *values, size_t count,
                    const struct pg_sink *sink, struct pg_portal **out)
{
    struct sql_session *s = session_of(p);
    begin_call(s, sink);
    sql_error_clear(&s->err);
    *out = NULL;
    if (count != stmt->count) {
        sql_error_set(&s->err, "08P01",
                      "bind message supplies %zu parameters, but the statement requires %zu", count,
                      stmt->count);
        return fail_call(s, sink);
    }
    struct pg_portal *po = SPAN_NEW(struct pg_portal);
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        total += values[i].is_null ? 0 : values[i].text.size;
    }
    po->stmt = stmt;
    stmt->refs++;
    po->values = span_calloc(count + 1, sizeof *po->values);
    po->data = span_malloc(total + 1);
    total = 0;
    for (size_t i = 0; i < count; i++) {
        po->values[i].is_null = values[i].is_null;
        if (!values[i].is_null && values[i].text.size > 0) {
            memcpy(po->data + total, values[i].text.data, values[i].text.size);
        }
        po->values[i].text =
            slice_of(po->data + total, values[i].is_null ? 0 : values[i].text.size);
        total += po->values[i].text.size;
    }
    *out = po;
    end_call(s);
    return true;
}

static bool pg_describe_portal(void *p, struct pg_portal *po, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    begin_call(s, sink);
    sql_error_clear(&s->err);
    if (!describe(s, po->stmt, sink, &po->cols, &po->col_count)) {
        return fail_call(s, sink);
    }
    end_call(s);
    return true;
}

static bool is_write(const struct sql_session *s, const struct sql_stmt *st)
{
    return sql_is_upsert(s, st) || st->verb == VERB_INSERT || st->verb == VERB_UPDATE ||
           st->verb == VERB_DELETE || (st->verb == VERB_SELECT && st->for_update != 0);
}

/* More rows of a portal that has run. */
static bool send_more(struct sql_session *s, struct pg_portal *po, uint32_t max,
                      const struct pg_sink *sink)
{
    size_t sent = 0;
    if (row_set_send(&po->rows, &po->at, max, sink, &sent) != SPAN_OK) {
        s->client_gone = true;
        return false;
    }
    if (po->at < po->rows.data.size) {
        pg_sink_portal_suspended(sink);
    } else {
        if (strncmp(po->tag, "SELECT", 6) == 0) {
            snprintf(po->tag, sizeof po->tag, "SELECT %zu", sent);
        }
        pg_sink_command_complete(sink, po->tag);
        snprintf(po->tag, sizeof po->tag, "SELECT 0");
    }
    return true;
}

static bool pg_execute(void *p, struct pg_portal *po, uint32_t max_rows, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    struct sql_stmt st;
    begin_call(s, sink);
    sql_error_clear(&s->err);
    if (po->stmt->empty) {
        pg_sink_empty_query(sink);
        end_call(s);
        return true;
    }
    if (po->ran) {
        bool ok = po->gives_rows;
        if (!ok) {
            sql_error_set(&s->err, "55000", "portal cannot be run");
            return fail_call(s, sink);
        }
        ok = send_more(s, po, max_rows, sink);
        end_call(s);
        return ok;
    }
    if (!only_statement(s, buf_slice(&po->stmt->sql), &st)) {
        return fail_call(s, sink);
    }
    /* Writes belong to the pipeline's implicit transaction, which ends at Sync; a read with nothing
     * before it reads by itself, without locks. */
    if (s->block == BLOCK_NONE && is_write(s, &st)) {
        s->block = BLOCK_IMPLICIT;
    }
    struct sql_params params = {
        .values = po->values, .oids = po->stmt->oids, .count = po->stmt->count};
    struct run_out out = {.sink = sink, .cols = po->cols, .col_count = po->col_count};
    bool gives_back = st.returning != 0 || st.verb == VERB_SELECT;
    po->ran = true;
    if (max_rows > 0) {
        row_set_init(&po->rows, po->col_count);
        out.keep = &po->rows;
    }
    bool ok = run_statement(s, &st, &params, &out);
    if (!ok && !s->client_gone) {
        run_report(s, sink);
        if (s->block == BLOCK_IMPLICIT) {
            s->failed = true;
        }
    } else if (ok) {
        snprintf(po->tag, sizeof po->tag, "%s", out.tag);
        snprintf(po->written, sizeof po->written, "%s", out.tag);
        s->pipelined = s->block == BLOCK_IMPLICIT && out.rows == 0 && !gives_back ? po : NULL;
        po->gives_rows =
            out.rows > 0 || strncmp(out.tag, "SELECT", 6) == 0 || strcmp(out.tag, "SHOW") == 0;
        if (out.keep != NULL && po->gives_rows) {
            ok = send_more(s, po, max_rows, sink);
        } else {
            pg_sink_command_complete(sink, out.tag);
            snprintf(po->tag, sizeof po->tag, "SELECT 0");
        }
    }
    end_call(s);
    return ok;
}

static void pg_stmt_free(void *p, struct pg_stmt *stmt)
{
    (void)p;
    stmt_unref(stmt);
}

static void pg_portal_free(void *p, struct pg_portal *po)
{
    struct sql_session *s = session_of(p);
    s->pipelined = s->pipelined == po ? NULL : s->pipelined;
    row_set_deinit(&po->rows);
    span_free(po->values);
    span_free(po->data);
    span_free(po->cols);
    stmt_unref(po->stmt);
    span_free(po);
}

/* The commit at Sync of a pipeline that was one write failed with a retryable error: run that write
 * again, as for a statement in autocommit. What the client was told already (the tag) must come out
 * the same. */
static bool retry_pipeline(struct sql_session *s, struct pg_portal *po)
{
    uint64_t until = session_mono_ns(s) + (s->opt.retry_ns == 0 ? 10 * SEC_NS : s->opt.retry_ns);
    struct sql_params params = {
        .values = po->values, .oids = po->stmt->oids, .count = po->stmt->count};
    while (sqlstate_is_retryable(s->err.status) && session_mono_ns(s) < until) {
        struct sql_error first = s->err;
        struct sql_stmt st;
        struct run_out out = {.sink = s->sink};
        s->block = BLOCK_IMPLICIT;
        bool ran = only_statement(s, buf_slice(&po->stmt->sql), &st) &&
                   run_statement(s, &st, &params, &out);
        if (ran && strcmp(out.tag, po->written) == 0) {
            if (block_commit(s)) {
                return true;
            }
            continue;
        }
        block_rollback(s);
        s->err = ran ? first : s->err;
        return false;
    }
    return false;
}

static bool pg_sync(void *p, bool failed, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    struct pg_portal *again = s->pipelined;
    s->pipelined = NULL;
    if (s->block != BLOCK_IMPLICIT) {
        return true;
    }
    begin_call(s, sink);
    sql_error_clear(&s->err);
    again = s->block_statements == 1 ? again : NULL;
    bool ok = finish_implicit(s, failed);
    if (!ok && again != NULL) {
        ok = retry_pipeline(s, again);
    }
    if (!ok) {
        run_report(s, sink);
    }
    end_call(s);
    return ok;
}

static char pg_txn_status(const void *p)
{
    const struct sql_session *s = p;
    if (s->block != BLOCK_EXPLICIT) {
        return 'I';
    }
    return s->failed ? 'E' : 'T';
}

static void pg_cancel(void *p)
{
    struct sql_session *s = session_of(p);
    if (atomic_load_explicit(&s->running, memory_order_acquire)) {
        atomic_store_explicit(&s->canceled, true, memory_order_relaxed);
        s->kv->ops->cancel(s->kv);
    }
}

static bool pg_idle_check(void *p, uint64_t mono_ns, const struct pg_sink *sink)
{
    struct sql_session *s = session_of(p);
    bool block = s->block == BLOCK_EXPLICIT;
    uint64_t limit = block ? s->idle_timeout_ns : s->idle_session_timeout_ns;
    if (limit == 0 || mono_ns < s->last_active_ns + limit) {
        return true;
    }
    begin_call(s, sink);
    block_rollback(s);
    struct pg_error e = {
        .severity = "FATAL",
        .sqlstate = block ? "25P03" : "57P05",
        .message = block ? "terminating connection due to idle-in-transaction timeout"
                         : "terminating connection due to idle-session timeout",
        .hint = block ? "SET idle_in_transaction_session_timeout changes it; 0 switches it off."
                      : "SET idle_session_timeout changes it; 0 switches it off.",
    };
    pg_sink_error(sink, &e);
    end_call(s);
    return false;
}

static void pg_told_pid(void *p, uint32_t pid)
{
    session_of(p)->opt.backend_pid = pid;
}

static const struct pg_session_ops ops = {
    .told_pid = pg_told_pid,
    .free = pg_free,
    .simple = pg_simple,
    .parse = pg_parse,
    .describe_stmt = pg_describe_stmt,
    .bind = pg_bind,
    .describe_portal = pg_describe_portal,
    .execute = pg_execute,
    .stmt_free = pg_stmt_free,
    .portal_free = pg_portal_free,
    .sync = pg_sync,
    .txn_status = pg_txn_status,
    .cancel = pg_cancel,
    .idle_check = pg_idle_check,
};

struct pg_session sql_session_pg(struct sql_session *s)
{
    return (struct pg_session){.ops = &ops, .impl = s};
}
