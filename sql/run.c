/* Running one statement; see run.h.
 *
 * Autocommit: the gateway itself runs a statement again after a retryable failure, with backoff, as
 * long as nothing of it has reached the client and its deadline has not passed. In a block the
 * first statement may be restarted the same way, since nothing depends on it yet; later ones report
 * 40001. A failed statement leaves the write buffer as it found it (statement atomicity). */
#include "sql/run.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl.h"
#include "sql/dml.h"
#include "sql/show.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

#define RETRY_NS_DEFAULT (10 * SEC_NS)
#define BACKOFF_NS_MAX   (50 * MS_NS)

struct exec {
    struct sql_session *s;
    const struct sql_stmt *st;
    const struct sql_params *params;
    struct run_out *out;
    struct row_set returning;
    bool has_returning;
    struct plan *plan;
    struct pg_column *cols; /* of RETURNING or EXPLAIN rows kept back until the commit */
    size_t col_count;
    char notice[512];
};

static bool is_ddl(enum sql_verb v)
{
    return v == VERB_CREATE_TABLE || v == VERB_CREATE_INDEX || v == VERB_CREATE_VIEW ||
           v == VERB_DROP_TABLE || v == VERB_DROP_INDEX || v == VERB_DROP_VIEW ||
           v == VERB_TRUNCATE;
}

static bool is_read(const struct sql_stmt *st)
{
    return st->verb == VERB_EXPLAIN || (st->verb == VERB_SELECT && st->for_update == 0);
}

void run_notice(struct sql_session *s, const struct pg_sink *sink, const char *code,
                const char *text)
{
    bool warning = strcmp(code, "00000") != 0 && strcmp(code, "42P07") != 0;
    struct pg_error e = {
        .severity = warning ? "WARNING" : "NOTICE", .sqlstate = code, .message = text};
    if (sink != NULL && vars_wants_notice(s, warning)) {
        pg_sink_notice(sink, &e);
    }
}

void run_rewrite_error(struct sql_session *s, span_status st, const struct span_error *err)
{
    sql_error_set(&s->err,
                  st == SPAN_UNSUPPORTED ? "0A000"
                  : st == SPAN_NOT_FOUND ? "42P02"
                                         : "42601",
                  "%s", err->text);
}

/* Byte offset in the statement's source to a 1-based character of the whole message. */
static uint32_t position_of(const struct sql_session *s, size_t offset)
{
    uint32_t n = 1;
    for (size_t i = 0; i < offset && i < s->tokens.src.size; i++) {
        n += (s->tokens.src.data[i] & 0xc0) != 0x80 ? 1 : 0;
    }
    return n;
}

static const char *or_null(const char *s)
{
    return s[0] == '\0' ? NULL : s;
}

void run_report(struct sql_session *s, const struct pg_sink *sink)
{
    const struct sql_error *x = &s->err;
    session_gate_failure(s);
    struct pg_error e = {.severity = "ERROR",
                         .sqlstate = x->code[0] == '\0' ? "XX000" : x->code,
                         .message = x->message,
                         .detail = or_null(x->detail),
                         .hint = or_null(x->hint),
                         .table = or_null(x->table),
                         .column = or_null(x->column),
                         .constraint = or_null(x->constraint)};
    if (x->offset > 0) {
        e.position = position_of(s, x->offset - 1);
    }
    if (e.table != NULL) {
        e.schema = "public";
    }
    pg_sink_error(sink, &e);
}

/* SQLite's offset is one in the rewritten text. */
static void map_offset(struct sql_session *s, const struct sql_stmt *st)
{
    if (s->err.offset > 0) {
        s->err.offset = sql_source_offset(&s->tokens, st, s->err.offset - 1) + 1;
    }
}

/* --- SELECT --- */

static uint32_t oid_of_value(int type)
{
    switch (type) {
    case SQLITE_INTEGER:
        return PG_OID_INT8;
    case SQLITE_FLOAT:
        return PG_OID_FLOAT8;
    case SQLITE_BLOB:
        return PG_OID_BYTEA;
    default:
        return PG_OID_TEXT;
    }
}

/* Types of expressions come from the first row. */
static void resolve_columns(struct plan *p, sqlite3_stmt *st, bool row, struct pg_column *cols)
{
    for (size_t i = 0; i < p->column_count; i++) {
        cols[i] = p->columns[i];
        if (cols[i].type_oid == PG_OID_UNKNOWN) {
            cols[i].type_oid = row ? oid_of_value(sqlite3_column_type(st, (int)i)) : PG_OID_TEXT;
        }
    }
}

static bool send_row(struct exec *x, sqlite3_stmt *st, const struct pg_column *cols, size_t n,
                     struct buf *text)
{
    struct sql_session *s = x->s;
    struct pg_value v[2 * LIMIT_COLUMNS];
    size_t at[2 * LIMIT_COLUMNS];
    buf_clear(text);
    for (size_t i = 0; i < n; i++) {
        at[i] = text->size;
        v[i].is_null = !render_value(sqlite3_column_value(st, (int)i), cols[i].type_oid, text);
        v[i].text.size = text->size - at[i];
    }
    for (size_t i = 0; i < n; i++) {
        v[i].text.data = text->data + at[i];
    }
    x->out->rows++;
    if (x->out->keep != NULL) {
        row_set_add(x->out->keep, v, n);
        return true;
    }
    if (s->read_only) {
        session_gate(s);
    }
    s->rows_sent = true;
    if (pg_sink_data_row(x->out->sink, v, n) != SPAN_OK) {
        s->client_gone = true;
        return false;
    }
    return true;
}

static bool bind_plan(void *ctx, sqlite3_stmt *st)
{
    struct exec *x = ctx;
    return session_bind_params(x->s, st, x->params);
}

static bool run_select(struct exec *x)
{
    struct sql_session *s = x->s;
    struct plan *p = session_plan(s, x->st);
    if (p == NULL) {
        map_offset(s, x->st);
        return false;
    }
    struct pg_column cols[2 * LIMIT_COLUMNS];
    if (p->column_count > 2 * LIMIT_COLUMNS) {
        sql_error_set(&s->err, "54011", "a result has at most %d columns", 2 * LIMIT_COLUMNS);
        return false;
    }
    if (x->out->cols != NULL && x->out->col_count != p->column_count) {
        sql_error_set(&s->err, "0A000", "cached plan must not change result type");
        sql_error_hint(&s->err, "The table was changed; prepare the statement again.");
        return false;
    }
    if (!bind_plan(x, p->run)) {
        return false;
    }
    if (x->out->keep != NULL) {
        x->out->keep->columns = p->column_count;
    }
    p->busy++;
    x->out->rows = 0;
    struct buf text = {0};
    int rc = sqlite3_step(p->run);
    bool ok = rc == SQLITE_ROW || rc == SQLITE_DONE;
    if (ok) {
        resolve_columns(p, p->run, rc == SQLITE_ROW, cols);
        for (size_t i = 0; x->out->cols != NULL && i < p->column_count; i++) {
            cols[i].type_oid = x->out->cols[i].type_oid;
        }
        if (x->out->describe) {
            if (s->read_only) {
                session_gate(s);
            }
            pg_sink_row_description(x->out->sink, cols, p->column_count);
            s->rows_sent = true;
        }
    }
    while (rc == SQLITE_ROW && send_row(x, p->run, cols, p->column_count, &text)) {
        rc = sqlite3_step(p->run);
    }
    if (rc != SQLITE_DONE && !s->client_gone) {
        session_sqlite_error(s, rc);
        s->err.offset = 0;
        ok = false;
    }
    sqlite3_reset(p->run);
    buf_deinit(&text);
    p->busy--;
    snprintf(x->out->tag, sizeof x->out->tag, "SELECT %zu", x->out->rows);
    return ok && !s->client_gone;
}

/* --- DML --- */

static bool run_dml(struct exec *x)
{
    struct sql_session *s = x->s;
    if (block_refuses_writes(s)) {
        sql_error_set(&s->err, "25006", "cannot execute %s in a read-only transaction",
                      x->st->verb == VERB_INSERT   ? "INSERT"
                      : x->st->verb == VERB_UPDATE ? "UPDATE"
                                                   : "DELETE");
        return false;
    }
    struct plan *p = session_plan(s, x->st);
    if (p == NULL) {
        map_offset(s, x->st);
        return false;
    }
    uint64_t changes = 0;
    row_set_deinit(&x->returning);
    row_set_init(&x->returning, p->column_count);
    x->has_returning = p->column_count > 0;
    p->busy++;
    bool ok = dml_run(s, p, bind_plan, x, x->has_returning ? &x->returning : NULL, &changes);
    p->busy--;
    if (ok && x->has_returning) {
        span_free(x->cols);
        x->col_count = p->column_count;
        x->cols = span_calloc(p->column_count + 1, sizeof *x->cols);
        for (size_t i = 0; i < p->column_count; i++) {
            x->cols[i] = p->columns[i];
            if (x->cols[i].type_oid == PG_OID_UNKNOWN) {
                x->cols[i].type_oid = PG_OID_TEXT;
            }
        }
        x->plan = p;
    }
    s->err.offset = 0;
    snprintf(x->out->tag, sizeof x->out->tag, "%s%llu",
             x->st->verb == VERB_INSERT   ? "INSERT 0 "
             : x->st->verb == VERB_UPDATE ? "UPDATE "
                                          : "DELETE ",
             (unsigned long long)changes);
    return ok;
}

bool dml_run_text(struct sql_session *s, const char *sql)
{
    /* The statement's own tokens are in use: this one gets a tokenizer's state of its own. */
    struct sql_tokens keep_tokens = s->tokens;
    struct sql_rewritten keep_text = s->rewritten;
    struct span_error err = {0};
    struct run_out out = {0};
    struct sql_stmt st;
    size_t bad = 0;
    size_t at = 0;
    bool ok = false;
    sql_tokens_init(&s->tokens);
    sql_rewritten_init(&s->rewritten);
    if (sql_tokenize(slice_str(sql), &s->tokens, &bad) == SPAN_OK &&
        sql_stmt_next(&s->tokens, &at, &st) &&
        sql_stmt_rewrite(&s->tokens, &st, false, &s->rewritten, &err) == SPAN_OK) {
        struct exec x = {.s = s, .st = &st, .out = &out};
        ok = run_dml(&x);
        row_set_deinit(&x.returning);
        span_free(x.cols);
    } else {
        sql_error_set(&s->err, "42601", "syntax error");
    }
    sql_tokens_deinit(&s->tokens);
    sql_rewritten_deinit(&s->rewritten);
    s->tokens = keep_tokens;
    s->rewritten = keep_text;
    return ok;
}

/* --- EXPLAIN --- */

/* An option in EXPLAIN (..) at token i that changes nothing: VERBOSE, FORMAT TEXT, what is off. */
static bool harmless_option(const struct sql_tokens *t, size_t i)
{
    static const char *const names[] = {"ANALYZE", "COSTS", "BUFFERS", "WAL", "TIMING", "SETTINGS"};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        if (sql_token_is(t, i, names[k])) {
            return sql_token_is(t, i + 1, "OFF") || sql_token_is(t, i + 1, "FALSE");
        }
    }
    return sql_token_is(t, i, "VERBOSE") || sql_token_is(t, i, "SUMMARY") ||
           (sql_token_is(t, i, "FORMAT") && sql_token_is(t, i + 1, "TEXT"));
}

/* The statement after EXPLAIN and its options; 0 with s->err: none, or an option it has not. */
static size_t explained(struct sql_session *s, const struct sql_stmt *st)
{
    size_t i = st->first + 1;
    if (sql_token_op(&s->tokens, i, "(")) {
        for (; i < st->last && !sql_token_op(&s->tokens, i, ")"); i++) {
            bool option = sql_token_op(&s->tokens, i, "(") || sql_token_op(&s->tokens, i, ",");
            if (option && !harmless_option(&s->tokens, i + 1)) {
                struct slice word = sql_token_text(&s->tokens, i + 1);
                sql_error_set(&s->err, "0A000", "EXPLAIN (%.*s) is not supported", (int)word.size,
                              (const char *)word.data);
                sql_error_hint(&s->err, "EXPLAIN SELECT .. shows the plan.");
                return 0;
            }
        }
        i++;
    }
    while (i < st->last &&
           (sql_token_is(&s->tokens, i, "VERBOSE") || sql_token_is(&s->tokens, i, "QUERY") ||
            sql_token_is(&s->tokens, i, "PLAN"))) {
        i++;
    }
    if (i >= st->last) {
        sql_error_set(&s->err, "42601", "EXPLAIN what?");
        sql_error_hint(&s->err, "EXPLAIN SELECT .. shows the plan.");
    }
    return i < st->last ? i : 0;
}

/* "SCAN t VIRTUAL TABLE INDEX 1:1 0 .. |USING INDEX i (a=?)": SQLite prints idxStr whole; the words
 * are for people. */
static void plan_line(const char *detail, int level, struct buf *out)
{
    static const char marker[] = " VIRTUAL TABLE INDEX ";
    const char *at = strstr(detail, marker);
    const char *bar = at == NULL ? NULL : strchr(at, '|');
    buf_printf(out, "%*s", level * 2, "");
    if (bar == NULL) {
        buf_append_str(out, detail);
        return;
    }
    buf_append(out, detail, (size_t)(at - detail));
    buf_printf(out, "%s%s", bar[1] == '\0' ? "" : " ", bar + 1);
}

static bool explain_rows(struct exec *x, const char *sql)
{
    struct sql_session *s = x->s;
    struct buf text = {0};
    int64_t ids[64];
    int depth[64];
    size_t known = 0;
    buf_printf(&text, "EXPLAIN QUERY PLAN %s", sql);
    sqlite3_stmt *q = session_prepare(s, buf_cstr(&text), true);
    buf_deinit(&text);
    if (q == NULL) {
        return false;
    }
    while (sqlite3_step(q) == SQLITE_ROW) {
        int64_t parent = sqlite3_column_int64(q, 1);
        int level = 0;
        for (size_t i = 0; i < known; i++) {
            level = ids[i] == parent ? depth[i] + 1 : level;
        }
        if (known < 64) {
            ids[known] = sqlite3_column_int64(q, 0);
            depth[known++] = level;
        }
        struct buf line = {0};
        plan_line((const char *)sqlite3_column_text(q, 3), level, &line);
        struct pg_value v = {.text = buf_slice(&line)};
        row_set_add(&x->returning, &v, 1);
        buf_deinit(&line);
    }
    sqlite3_finalize(q);
    return true;
}

static bool run_explain(struct exec *x)
{
    struct sql_session *s = x->s;
    size_t at = explained(s, x->st);
    struct sql_stmt inner;
    struct span_error err = {0};
    if (at == 0) {
        return false;
    }
    if (sql_token_is(&s->tokens, at, "ANALYZE") || !sql_stmt_next(&s->tokens, &at, &inner)) {
        sql_error_set(&s->err, "0A000", "EXPLAIN ANALYZE is not supported yet");
        sql_error_hint(&s->err, "EXPLAIN SELECT .. shows the plan.");
        return false;
    }
    if (sql_refuse(s, &inner)) {
        return false;
    }
    span_status st = sql_stmt_rewrite(&s->tokens, &inner, false, &s->rewritten, &err);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    struct plan *p = session_plan(s, &inner);
    if (p == NULL) {
        return false;
    }
    row_set_deinit(&x->returning);
    row_set_init(&x->returning, 1);
    x->has_returning = true;
    span_free(x->cols);
    x->col_count = 1;
    x->cols = span_calloc(1, sizeof *x->cols);
    x->cols[0] = (struct pg_column){.name = "QUERY PLAN", .type_oid = PG_OID_TEXT};
    snprintf(x->out->tag, sizeof x->out->tag, "EXPLAIN");
    return explain_rows(x, sqlite3_sql(p->prefetch != NULL ? p->prefetch : p->run));
}

/* --- one try --- */

static bool run_ddl(struct exec *x)
{
    struct sql_session *s = x->s;
    const char *tag = "";
    bool ok = ddl_run(s, x->st, &tag, x->notice, sizeof x->notice);
    s->err.offset = 0;
    if (ok) {
        s->ddl_count++;
        snprintf(x->out->tag, sizeof x->out->tag, "%s", tag);
    }
    return ok;
}

static bool run_body(struct exec *x)
{
    struct sql_session *s = x->s;
    s->fault = SPAN_OK;
    sql_error_clear(&s->err);
    session_scans_reset(s);
    s->read_lock = KV_LOCK_SHARED;
    if (x->st->for_update != 0) {
        s->read_lock = x->st->for_share ? KV_LOCK_SHARED : KV_LOCK_UPDATE;
        if (block_refuses_writes(s)) {
            sql_error_set(&s->err, "25006",
                          "cannot execute SELECT FOR %s in a read-only transaction",
                          x->st->for_share ? "SHARE" : "UPDATE");
            return false;
        }
    }
    if (is_ddl(x->st->verb)) {
        return run_ddl(x);
    }
    switch ((int)x->st->verb) {
    case VERB_INSERT:
    case VERB_UPDATE:
    case VERB_DELETE:
        return run_dml(x);
    case VERB_EXPLAIN:
        return run_explain(x);
    default:
        return run_select(x);
    }
}

static bool begin_for(struct exec *x)
{
    struct sql_session *s = x->s;
    if (s->kv_open) {
        return true;
    }
    if (s->block == BLOCK_EXPLICIT) {
        return block_begin_again(s);
    }
    bool autocommit = s->block == BLOCK_NONE;
    return block_begin_kv(s, autocommit && is_read(x->st), autocommit);
}

/* After a failed try: what is left of the transaction, and may the statement be run again? */
static bool settle_failure(struct exec *x, struct kv_mark mark)
{
    struct sql_session *s = x->s;
    span_status st = s->err.status;
    bool retry = sqlstate_is_retryable(st) && !s->rows_sent && !s->client_gone;
    if (st == SPAN_STALE_SCHEMA && s->historical && retry) {
        struct sql_error keep = s->err;
        if (session_pin_old_schema(s)) {
            return true;
        }
        s->err = keep;
        retry = false;
    } else if (st == SPAN_STALE_SCHEMA) {
        session_forget_schema(s);
    }
    if (s->block == BLOCK_NONE) {
        block_rollback(s);
        return retry;
    }
    if (span_status_kind(st) == SPAN_KIND_RETRY && !s->read_only) {
        bool first = s->block_statements == 0 && s->savepoint_count == 0;
        block_drop_kv(s); /* the ranges have dropped it already */
        s->failed = !(retry && first);
        return retry && first;
    }
    if (span_status_kind(st) == SPAN_KIND_RETRY && retry && s->read_only) {
        return true; /* no locks, no state: the statement alone is repeated */
    }
    if (s->kv_open && !s->read_only) {
        s->kv->ops->rollback_to(s->kv, mark);
    }
    s->failed = true;
    return false;
}

static void send_kept(struct exec *x)
{
    struct sql_session *s = x->s;
    if (x->notice[0] != '\0') {
        run_notice(s, x->out->sink, "42P07", x->notice);
    }
    if (!x->has_returning) {
        return;
    }
    if (x->out->describe) {
        pg_sink_row_description(x->out->sink, x->cols, x->col_count);
    }
    x->out->rows = x->returning.rows;
    if (x->out->keep != NULL) {
        row_set_deinit(x->out->keep);
        *x->out->keep = x->returning;
        row_set_init(&x->returning, 0);
        return;
    }
    size_t at = 0;
    size_t sent = 0;
    if (row_set_send(&x->returning, &at, 0, x->out->sink, &sent) != SPAN_OK) {
        s->client_gone = true;
    }
}

static bool one_try(struct exec *x, bool *again)
{
    struct sql_session *s = x->s;
    *again = false;
    session_sync_schema(s);
    if (!begin_for(x)) {
        *again = sqlstate_is_retryable(s->err.status);
        return false;
    }
    struct kv_mark mark = {0};
    if (s->block != BLOCK_NONE && !s->read_only) {
        mark = s->kv->ops->mark(s->kv);
    }
    if (!run_body(x)) {
        *again = settle_failure(x, mark);
        return false;
    }
    if (s->block == BLOCK_NONE) {
        bool sent = s->rows_sent;
        if (!block_commit(s)) {
            *again = sqlstate_is_retryable(s->err.status) && !sent;
            return false;
        }
        return true;
    }
    s->block_statements++;
    block_report_txn_id(s);
    return true;
}

static void back_off(struct sql_session *s, unsigned attempt)
{
    uint64_t ns = MS_NS << (attempt > 6 ? 6 : attempt);
    ns = ns > BACKOFF_NS_MAX ? BACKOFF_NS_MAX : ns;
    ns = ns / 2 + rng_below(&s->rng, ns / 2 + 1);
    if (s->opt.sleep != NULL) {
        s->opt.sleep(s->opt.clock_ctx, ns);
        return;
    }
    struct timespec ts = {.tv_sec = (time_t)(ns / SEC_NS), .tv_nsec = (long)(ns % SEC_NS)};
    nanosleep(&ts, NULL);
}

/* With the transaction of the statement's own, or inside the block. */
static bool run_in_txn(struct exec *x)
{
    struct sql_session *s = x->s;
    uint64_t retry_ns = s->opt.retry_ns == 0 ? RETRY_NS_DEFAULT : s->opt.retry_ns;
    uint64_t until = session_mono_ns(s) + retry_ns;
    session_statement_clock(s);
    uint64_t seed = s->seed;
    for (unsigned attempt = 0;; attempt++) {
        bool again = false;
        s->rows_sent = false;
        s->client_gone = false;
        s->seed = seed;
        if (one_try(x, &again)) {
            send_kept(x);
            return !s->client_gone;
        }
        bool canceled = atomic_load_explicit(&s->canceled, memory_order_relaxed);
        uint64_t now = session_mono_ns(s);
        if (!again || canceled || now > until || (s->deadline_ns != 0 && now > s->deadline_ns)) {
            if (again && s->block != BLOCK_NONE) {
                s->failed = true;
            }
            if (canceled && again) {
                sql_error_set(&s->err, "57014", "canceling statement due to user request");
            }
            return false;
        }
        if (attempt > 0 || s->err.status != SPAN_STALE_SCHEMA) {
            back_off(s, attempt);
        }
    }
}

static bool is_normalisable(const struct sql_params *params)
{
    return params == NULL || params->count == 0;
}

/* A statement with more parameters than values came: a simple query has none at all. */
static bool params_missing(struct sql_session *s, const struct sql_stmt *st, size_t count)
{
    if (s->rewritten.param_max <= count) {
        return false;
    }
    for (size_t i = st->first; i < st->last; i++) {
        struct slice text = sql_token_text(&s->tokens, i);
        if (s->tokens.t[i].kind == TOK_PARAM &&
            strtoul((const char *)text.data + 1, NULL, 10) > count) {
            sql_error_set(&s->err, "42P02", "there is no parameter %.*s", (int)text.size,
                          (const char *)text.data);
            s->err.offset = s->tokens.t[i].start + 1;
            return true;
        }
    }
    return false;
}

bool run_statement(struct sql_session *s, const struct sql_stmt *st,
                   const struct sql_params *params, struct run_out *out)
{
    struct span_error err = {0};
    sql_error_clear(&s->err);
    out->tag[0] = '\0';
    s->client_gone = false;
    if (s->failed && !command_is_control(st->verb)) {
        sql_error_set(&s->err, "25P02",
                      "current transaction is aborted, commands ignored until end of "
                      "transaction block");
        return false;
    }
    s->deadline_ns =
        s->statement_timeout_ns == 0 ? 0 : session_mono_ns(s) + s->statement_timeout_ns;
    s->kv->ops->set_deadline(s->kv, s->deadline_ns);
    s->kv->ops->set_lock_timeout(s->kv, s->lock_timeout_ns);
    if (sql_is_upsert(s, st)) {
        struct sql_upsert u;
        bool ok = sql_upsert_enter(s, st, &u);
        if (ok) {
            ok = run_statement(s, &u.st, params, out);
            sql_upsert_leave(s, &u);
        } else {
            s->failed = s->failed || s->block != BLOCK_NONE;
        }
        return ok;
    }
    bool query = st->verb == VERB_SELECT || st->verb == VERB_INSERT || st->verb == VERB_UPDATE ||
                 st->verb == VERB_DELETE || st->verb == VERB_OTHER;
    if (!query && !is_ddl(st->verb) && st->verb != VERB_EXPLAIN && st->verb != VERB_ALTER) {
        return sql_command_run(s, st, out);
    }
    if (sql_refuse(s, st)) {
        s->failed = s->failed || s->block != BLOCK_NONE;
        return false;
    }
    span_status rs =
        sql_stmt_rewrite(&s->tokens, st, query && is_normalisable(params), &s->rewritten, &err);
    if (rs != SPAN_OK) {
        run_rewrite_error(s, rs, &err);
    }
    if (rs != SPAN_OK || params_missing(s, st, params == NULL ? 0 : params->count)) {
        s->failed = s->failed || s->block != BLOCK_NONE;
        return false;
    }
    if (st->verb == VERB_ALTER) {
        return sql_command_run(s, st, out);
    }
    if (is_ddl(st->verb) && block_refuses_writes(s)) {
        sql_error_set(&s->err, "25006", "cannot change the schema in a read-only transaction");
        s->failed = s->failed || s->block != BLOCK_NONE;
        return false;
    }
    struct exec x = {.s = s, .st = st, .params = params, .out = out};
    bool ok = false;
    if (st->verb == VERB_CREATE_INDEX && s->block == BLOCK_NONE) {
        session_sync_schema(s);
        ok = ddl_create_index_online(s, st, x.notice, sizeof x.notice);
        snprintf(out->tag, sizeof out->tag, "CREATE INDEX");
        if (ok) {
            send_kept(&x);
        }
    } else {
        ok = run_in_txn(&x);
    }
    if (!ok) {
        sql_explain_syntax(s, st);
    }
    row_set_deinit(&x.returning);
    span_free(x.cols);
    return ok;
}

bool run_describe(struct sql_session *s, const struct sql_stmt *st, const struct pg_column **cols,
                  size_t *count, bool *gives_rows, int *params, struct kv_table *table)
{
    static const struct pg_column explain = {.name = "QUERY PLAN", .type_oid = PG_OID_TEXT};
    struct span_error err = {0};
    sql_error_clear(&s->err);
    memset(table, 0, sizeof *table);
    *cols = NULL;
    *count = 0;
    *gives_rows = false;
    *params = 0;
    if (sql_is_upsert(s, st)) {
        struct sql_upsert u;
        bool ok = sql_upsert_enter(s, st, &u);
        if (ok) {
            ok = run_describe(s, &u.st, cols, count, gives_rows, params, table);
            sql_upsert_leave(s, &u);
        }
        return ok;
    }
    switch ((int)st->verb) {
    case VERB_SHOW:
        *gives_rows = true;
        return show_describe(s, st, table);
    case VERB_EXPLAIN:
        *gives_rows = true;
        *cols = &explain;
        *count = 1;
        return true;
    case VERB_SELECT:
    case VERB_INSERT:
    case VERB_UPDATE:
    case VERB_DELETE:
    case VERB_OTHER:
        break;
    default:
        return true;
    }
    if (sql_refuse(s, st)) {
        return false;
    }
    span_status rs = sql_stmt_rewrite(&s->tokens, st, false, &s->rewritten, &err);
    if (rs != SPAN_OK) {
        run_rewrite_error(s, rs, &err);
        return false;
    }
    session_sync_schema(s);
    struct plan *p = session_plan(s, st);
    if (p == NULL) {
        map_offset(s, st);
        sql_explain_syntax(s, st);
        return false;
    }
    *cols = p->columns;
    *count = p->column_count;
    *gives_rows = p->column_count > 0;
    *params = (int)s->rewritten.param_max;
    return true;
}
