/* Transaction blocks: BEGIN .. COMMIT, savepoints, and the kv transaction under them. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl.h"
#include "sql/run.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

static bool begin_with(struct sql_session *s, const struct kv_txn_options *opt)
{
    struct span_error err = {0};
    span_status st = s->kv->ops->begin(s->kv, opt, &err);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    s->kv_open = true;
    s->epoch++;
    s->read_only = opt->read_only;
    s->historical = opt->read_only && !opt->autocommit; /* its timestamp stays while time goes on */
    s->txn_id[0] = '\0';
    s->block_statements = 0;
    s->begun = *opt;
    return true;
}

bool block_begin_again(struct sql_session *s)
{
    struct kv_txn_options opt = s->begun;
    return begin_with(s, &opt);
}

bool block_begin_kv(struct sql_session *s, bool read_only, bool autocommit)
{
    struct kv_txn_options opt = {
        .read_only = read_only, .mode = KV_READ_STRONG, .autocommit = autocommit};
    return begin_with(s, &opt);
}

void block_drop_kv(struct sql_session *s)
{
    s->sweep_due = false;
    if (s->kv_open) {
        s->kv->ops->rollback(s->kv);
        session_gate_failure(s);
    }
    session_overlay_end(s, false);
    session_scans_reset(s);
    s->kv_open = false;
}

static void end_block(struct sql_session *s, bool committed)
{
    session_overlay_end(s, committed);
    vars_end(s, committed);
    for (size_t i = 0; i < s->savepoint_count; i++) {
        span_free(s->savepoints[i].name);
    }
    span_free(s->savepoints);
    s->savepoints = NULL;
    s->savepoint_count = 0;
    s->kv_open = false;
    s->block = BLOCK_NONE;
    s->failed = false;
    s->read_only = false;
    s->refuse_writes = false;
    s->historical = false;
    s->sweep_due = s->sweep_due && committed;
    session_scans_reset(s);
}

void block_report_txn_id(struct sql_session *s)
{
    if (!s->kv_open || s->block == BLOCK_NONE) {
        return;
    }
    const char *id = s->kv->ops->txn_id(s->kv);
    if (id != NULL && id[0] != '\0' && strcmp(id, s->txn_id) != 0) {
        snprintf(s->txn_id, sizeof s->txn_id, "%s", id);
        snprintf(s->last_txn_id, sizeof s->last_txn_id, "%s", id);
        if (s->sink != NULL) {
            pg_sink_parameter_status(s->sink, "spanlite.txn_id", s->txn_id); /* rule E1 */
        }
    }
}

bool block_commit(struct sql_session *s)
{
    struct span_error err = {0};
    struct tt_ts ts = {0};
    span_status st = SPAN_OK;
    if (s->kv_open) {
        block_report_txn_id(s);
        if (s->sink != NULL && !s->read_only) {
            pg_sink_commit_begins(s->sink);
        }
        st = s->kv->ops->commit(s->kv, &ts, &err);
        block_report_txn_id(s);
        session_gate(s);
    }
    if (st != SPAN_OK) {
        s->kv->ops->rollback(s->kv);
        if (st == SPAN_STALE_SCHEMA) {
            session_forget_schema(s);
        }
        end_block(s, false);
        (void)session_fail(s, st, &err);
        if (st == SPAN_UNKNOWN_OUTCOME && s->txn_id[0] != '\0') {
            snprintf(s->err.detail, sizeof s->err.detail, "The transaction's id is %s.", s->txn_id);
            sql_error_hint(
                &s->err,
                "The transaction may have committed. SHOW TRANSACTION STATUS '%s' tells, "
                "in any session; without the id in this one.",
                s->txn_id);
        }
        if (st == SPAN_TOO_LARGE) {
            sql_error_hint(&s->err, "Split the work into several transactions.");
        }
        return false;
    }
    end_block(s, true);
    if (s->sweep_due) {
        ddl_sweep(s);
    }
    return true;
}

void block_rollback(struct sql_session *s)
{
    if (s->kv_open) {
        s->kv->ops->rollback(s->kv);
        session_gate_failure(s);
    }
    end_block(s, false);
}

/* --- BEGIN --- */

/* Digits after "Mon DD hh:mm:ss" and so on: 2024-01-31[ T]12:30:05[.123456789][Z|+00[:00]]. */
static bool parse_timestamp(const char *text, uint64_t *out)
{
    struct tm tm;
    char *end = NULL;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (end != text && *end == '\0' && errno == 0) {
        *out = n; /* nanoseconds since 1970, as SHOW and commit timestamps print them */
        return true;
    }
    memset(&tm, 0, sizeof tm);
    int used = 0;
    if (sscanf(text, "%d-%d-%d%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &used) != 3) {
        return false;
    }
    const char *p = text + used;
    uint64_t frac = 0;
    if (*p == ' ' || *p == 'T') {
        int more = 0;
        if (sscanf(p + 1, "%d:%d:%d%n", &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &more) != 3) {
            return false;
        }
        p += 1 + more;
    }
    if (*p == '.') {
        uint64_t unit = 100000000;
        for (p++; isdigit((unsigned char)*p); p++, unit /= 10) {
            frac += unit * (uint64_t)(*p - '0');
        }
    }
    int zone_h = 0;
    int zone_m = 0;
    int sign = *p == '-' ? -1 : 1;
    if (*p == 'Z') {
        p++;
    } else if (*p == '+' || *p == '-') {
        used = 0;
        if (sscanf(p + 1, "%2d:%2d%n", &zone_h, &zone_m, &used) != 2) {
            used = 0;
            zone_m = 0;
            if (sscanf(p + 1, "%2d%n", &zone_h, &used) != 1) {
                return false;
            }
        }
        p += 1 + used;
    }
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    time_t secs = timegm(&tm);
    if (*p != '\0' || secs < 0) {
        return false;
    }
    int64_t utc = (int64_t)secs - sign * (zone_h * 3600 + zone_m * 60);
    *out = utc < 0 ? 0 : (uint64_t)utc * SEC_NS + frac;
    return utc >= 0;
}

/* AS OF TIMESTAMP 'x' | AS OF '-5s' | AS OF 'x' at token i (AS). Returns the token after it, 0 on
 * error. */
static size_t parse_as_of(struct sql_session *s, size_t i, size_t last, struct kv_txn_options *opt)
{
    const struct sql_tokens *t = &s->tokens;
    struct buf text = {0};
    i += 2; /* AS OF */
    bool stamp = sql_token_is(t, i, "TIMESTAMP") || sql_token_is(t, i, "TIMESTAMPTZ");
    i += stamp ? 1 : 0;
    if (sql_token_is(t, i, "SYSTEM") && sql_token_is(t, i + 1, "TIME")) {
        i += 2;
    }
    uint64_t ns = 0;
    bool ok = i < last && (t->t[i].kind == TOK_STRING || t->t[i].kind == TOK_NUMBER);
    if (ok) {
        sql_token_name(t, i, &text);
        const char *v = buf_cstr(&text);
        if (v[0] == '-') {
            ok = parse_duration_ns(v + 1, SEC_NS, &ns);
            uint64_t now = s->kv->ops->now_latest(s->kv).ns;
            ns = ns < now ? now - ns : 1;
        } else {
            ok = parse_timestamp(v, &ns);
        }
    }
    if (!ok) {
        sql_error_set(&s->err, "22007", "invalid timestamp after AS OF: \"%s\"", buf_cstr(&text));
        sql_error_hint(&s->err,
                       "Write AS OF '-5s', AS OF TIMESTAMP '2026-01-31 12:00:00.5', or nanoseconds "
                       "since 1970.");
        buf_deinit(&text);
        return 0;
    }
    buf_deinit(&text);
    opt->mode = KV_READ_AT;
    opt->at = tt_ts_of(ns);
    opt->read_only = true;
    return i + 1;
}

static size_t parse_staleness(struct sql_session *s, size_t i, size_t last,
                              struct kv_txn_options *opt)
{
    struct buf text = {0};
    i += 2; /* MAX STALENESS */
    bool ok = i < last && (s->tokens.t[i].kind == TOK_STRING || s->tokens.t[i].kind == TOK_NUMBER);
    if (ok) {
        sql_token_name(&s->tokens, i, &text);
        ok = parse_duration_ns(buf_cstr(&text), SEC_NS, &opt->staleness_ns);
    }
    if (!ok) {
        sql_error_set(&s->err, "22007", "invalid duration after MAX STALENESS: \"%s\"",
                      buf_cstr(&text));
        sql_error_hint(&s->err, "Write MAX STALENESS '10s'.");
    }
    buf_deinit(&text);
    opt->mode = KV_READ_MAX_STALENESS;
    opt->read_only = true;
    return ok ? i + 1 : 0;
}

/* One option of BEGIN at token i; the token after it, 0 with the error set. */
static size_t parse_option(struct sql_session *s, size_t i, size_t last, struct kv_txn_options *opt,
                           bool *read_write)
{
    const struct sql_tokens *t = &s->tokens;
    if (sql_token_is(t, i, "ISOLATION") && sql_token_is(t, i + 1, "LEVEL")) {
        bool two = (sql_token_is(t, i + 2, "REPEATABLE") && sql_token_is(t, i + 3, "READ")) ||
                   (sql_token_is(t, i + 2, "READ") &&
                    (sql_token_is(t, i + 3, "COMMITTED") || sql_token_is(t, i + 3, "UNCOMMITTED")));
        if (two || sql_token_is(t, i + 2, "SERIALIZABLE")) {
            return i + (two ? 4 : 3); /* every level is at least what was asked for */
        }
        i += 2;
    }
    if (sql_token_is(t, i, "READ") && sql_token_is(t, i + 1, "ONLY")) {
        opt->read_only = true;
        return i + 2;
    }
    if (sql_token_is(t, i, "READ") && sql_token_is(t, i + 1, "WRITE")) {
        *read_write = true;
        return i + 2;
    }
    if (sql_token_is(t, i, "DEFERRABLE")) {
        return i + 1;
    }
    if (sql_token_is(t, i, "NOT") && sql_token_is(t, i + 1, "DEFERRABLE")) {
        return i + 2;
    }
    if (sql_token_is(t, i, "DEFERRED") || sql_token_is(t, i, "IMMEDIATE") ||
        sql_token_is(t, i, "EXCLUSIVE")) {
        return i + 1; /* SQLite's spellings */
    }
    if (sql_token_is(t, i, "AS") && sql_token_is(t, i + 1, "OF")) {
        return parse_as_of(s, i, last, opt);
    }
    if (sql_token_is(t, i, "MAX") && sql_token_is(t, i + 1, "STALENESS")) {
        return parse_staleness(s, i, last, opt);
    }
    if (sql_token_is(t, i, "IDEMPOTENT")) {
        sql_error_set(&s->err, "0A000", "BEGIN IDEMPOTENT is not supported yet");
        sql_error_hint(&s->err, "SHOW TRANSACTION STATUS 'id' tells the outcome of a lost COMMIT.");
    } else {
        (void)run_syntax_error(s, i);
    }
    return 0;
}

bool block_parse_mode(struct sql_session *s, size_t at, size_t last, struct block_mode *m)
{
    *m = (struct block_mode){.opt = {.mode = KV_READ_STRONG}};
    bool only = false;
    while (at < last) {
        at = parse_option(s, at, last, &m->opt, &m->write);
        if (at == 0) {
            return false;
        }
        only = only || m->opt.read_only;
        if (sql_token_op(&s->tokens, at, ",") && at + 1 < last) {
            at++;
        }
    }
    m->only = only;
    if (m->write && m->opt.mode != KV_READ_STRONG) {
        sql_error_set(&s->err, "25006", "a transaction AS OF a timestamp is read-only");
        return false;
    }
    if (m->write && m->only) {
        sql_error_set(&s->err, "42601", "READ ONLY and READ WRITE contradict each other");
        return false;
    }
    return true;
}

bool block_parse_begin(struct sql_session *s, const struct sql_stmt *st, struct block_mode *m)
{
    size_t i = st->first + 1;
    bool word = sql_token_is(&s->tokens, i, "TRANSACTION");
    if (sql_token_is(&s->tokens, st->first, "START") && !word) {
        return run_syntax_error(s, i);
    }
    /* SQLite's BEGIN IMMEDIATE TRANSACTION */
    if (sql_token_is(&s->tokens, i + 1, "TRANSACTION") &&
        (sql_token_is(&s->tokens, i, "DEFERRED") || sql_token_is(&s->tokens, i, "IMMEDIATE") ||
         sql_token_is(&s->tokens, i, "EXCLUSIVE"))) {
        i += 2;
    } else {
        i += word || sql_token_is(&s->tokens, i, "WORK") ? 1 : 0;
    }
    return block_parse_mode(s, i, st->last, m);
}

/* The timestamp is looked at behind begin_with: a clock that is not trusted says so itself. */
static bool begin_mode(struct sql_session *s, const struct kv_txn_options *opt)
{
    if (!begin_with(s, opt)) {
        return false;
    }
    if (opt->mode == KV_READ_AT && tt_lt(s->kv->ops->now_latest(s->kv), opt->at)) {
        block_drop_kv(s);
        sql_error_set(&s->err, "22023", "AS OF lies in the future"); /* rule A6 */
        return false;
    }
    return true;
}

static bool default_read_only(struct sql_session *s)
{
    return strcmp(vars_get(s, "default_transaction_read_only"), "on") == 0;
}

bool block_refuses_writes(struct sql_session *s)
{
    return s->read_only || s->refuse_writes || (s->block != BLOCK_EXPLICIT && default_read_only(s));
}

bool block_mode_differs(const struct sql_session *s, const struct block_mode *m)
{
    bool only = s->read_only || s->refuse_writes;
    return m->opt.mode != KV_READ_STRONG || (m->only && !only) || (m->write && only);
}

bool block_change_mode(struct sql_session *s, const struct block_mode *m)
{
    if (!block_mode_differs(s, m)) {
        return true;
    }
    bool first = s->block_statements == 0 && s->savepoint_count == 0 && !s->refuse_writes;
    if (s->kv_open && first && !(m->write && s->begun.mode != KV_READ_STRONG)) {
        struct kv_txn_options opt = m->opt;
        opt.read_only = m->only;
        if (m->only && opt.mode == KV_READ_STRONG && s->read_only) {
            opt = s->begun;
        }
        block_drop_kv(s);
        return begin_mode(s, &opt);
    }
    if (m->opt.mode != KV_READ_STRONG) {
        sql_error_set(&s->err, "25001", "AS OF must come before the first query of a transaction");
        return false;
    }
    if (m->only) {
        s->refuse_writes = true; /* what it locked and wrote before stays */
        return true;
    }
    sql_error_set(&s->err, "25001",
                  "a read-only transaction becomes READ WRITE before its first query only");
    return false;
}

bool block_begin_statement(struct sql_session *s, const struct sql_stmt *st)
{
    struct block_mode m;
    if (!block_parse_begin(s, st, &m)) {
        return false;
    }
    m.opt.read_only = m.only || (!m.write && (default_read_only(s) || s->refuse_writes));
    if (!begin_mode(s, &m.opt)) {
        block_rollback(s);
        return false;
    }
    s->block = BLOCK_EXPLICIT;
    return true;
}

/* --- savepoints --- */

bool block_savepoint(struct sql_session *s, const char *name)
{
    if (s->savepoint_count >= 1000) {
        sql_error_set(&s->err, "54000", "too many savepoints");
        return false;
    }
    s->savepoints = span_realloc(s->savepoints, (s->savepoint_count + 1) * sizeof *s->savepoints);
    struct savepoint *sp = &s->savepoints[s->savepoint_count++];
    sp->name = span_strdup(name);
    sp->mark = s->kv->ops->mark(s->kv);
    sp->ddl_count = s->ddl_count;
    sp->var_mark = s->var_undo_count;
    return true;
}

static int find_savepoint(struct sql_session *s, const char *name)
{
    for (size_t i = s->savepoint_count; i > 0; i--) {
        if (strcasecmp(s->savepoints[i - 1].name, name) == 0) {
            return (int)(i - 1);
        }
    }
    sql_error_set(&s->err, "3B001", "savepoint \"%s\" does not exist", name);
    return -1;
}

static void drop_savepoints(struct sql_session *s, size_t from)
{
    while (s->savepoint_count > from) {
        span_free(s->savepoints[--s->savepoint_count].name);
    }
}

bool block_release(struct sql_session *s, const char *name)
{
    int at = find_savepoint(s, name);
    if (at < 0) {
        return false;
    }
    drop_savepoints(s, (size_t)at);
    return true;
}

bool block_rollback_to(struct sql_session *s, const char *name)
{
    int at = find_savepoint(s, name);
    if (at < 0) {
        return false;
    }
    if (!s->kv_open) {
        /* A retryable failure ended the transaction at the ranges: no savepoint outlives that. */
        sql_error_set(&s->err, "40001", "restart transaction: it was aborted as a whole");
        return false;
    }
    if (s->savepoints[at].ddl_count != s->ddl_count) {
        sql_error_set(&s->err, "0A000", "schema changes cannot be rolled back to a savepoint");
        sql_error_hint(&s->err, "ROLLBACK undoes the whole transaction.");
        return false;
    }
    s->kv->ops->rollback_to(s->kv, s->savepoints[at].mark);
    vars_rollback_to(s, s->savepoints[at].var_mark);
    session_scans_reset(s);
    drop_savepoints(s, (size_t)at + 1);
    s->failed = false;
    return true;
}
