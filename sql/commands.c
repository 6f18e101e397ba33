/* Commands that are no queries: transaction control, SET, SHOW, ALTER, and what is accepted without
 * effect or refused with a hint. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl.h"
#include "sql/run.h"
#include "sql/show.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool command_is_control(enum sql_verb v)
{
    return v == VERB_BEGIN || v == VERB_COMMIT || v == VERB_ROLLBACK || v == VERB_SAVEPOINT ||
           v == VERB_RELEASE;
}

static bool done(struct run_out *out, const char *tag)
{
    snprintf(out->tag, sizeof out->tag, "%s", tag);
    return true;
}

static bool need_block(struct sql_session *s, const char *what)
{
    if (s->block == BLOCK_EXPLICIT) {
        return true;
    }
    sql_error_set(&s->err, "25P01", "%s can only be used in transaction blocks", what);
    return false;
}

static bool aborted(struct sql_session *s)
{
    sql_error_set(&s->err, "25P02",
                  "current transaction is aborted, commands ignored until end of "
                  "transaction block");
    return false;
}

/* --- transaction control --- */

static bool refuse(struct sql_session *s, const char *what, const char *hint)
{
    sql_error_set(&s->err, "0A000", "%s", what);
    sql_error_hint(&s->err, "%s", hint);
    return false;
}

static bool cmd_begin(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    if (s->failed) {
        return aborted(s);
    }
    if (s->block != BLOCK_EXPLICIT && !s->kv_open) {
        return block_begin_statement(s, st) && done(out, "BEGIN");
    }
    struct block_mode m;
    if (!block_parse_begin(s, st, &m)) {
        return false;
    }
    if (s->block != BLOCK_EXPLICIT) { /* in the middle of a message: the implicit transaction
                                         becomes the block */
        if (!block_change_mode(s, &m)) {
            return false;
        }
        s->block = BLOCK_EXPLICIT;
        return done(out, "BEGIN");
    }
    if (block_mode_differs(s, &m)) {
        sql_error_set(&s->err, "25001",
                      "there is already a transaction in progress, in another mode");
        return false;
    }
    run_notice(s, out->sink, "25001", "there is already a transaction in progress");
    return done(out, "BEGIN");
}

/* [WORK | TRANSACTION] [AND [NO] CHAIN] from token `at` to the end. */
static bool end_words(struct sql_session *s, const struct sql_stmt *st, size_t at, bool *chain)
{
    const struct sql_tokens *t = &s->tokens;
    *chain = false;
    if (sql_token_is(t, at, "PREPARED")) {
        return refuse(s, "transactions prepared by name are not supported",
                      "A plain COMMIT is atomic over all ranges: the store runs two-phase commit "
                      "by itself.");
    }
    at += sql_token_is(t, at, "WORK") || sql_token_is(t, at, "TRANSACTION") ? 1 : 0;
    if (sql_token_is(t, at, "AND")) {
        *chain = !sql_token_is(t, at + 1, "NO");
        at += *chain ? 1 : 2;
        if (!sql_token_is(t, at, "CHAIN")) {
            return run_syntax_error(s, at);
        }
        at++;
    }
    return run_at_end(s, st, at) && (!*chain || need_block(s, "AND CHAIN"));
}

/* The block that follows at once, in the same mode. Where the store cannot begin now, its first
 * statement tries again and says so: what was committed must not look failed. */
static void begin_chained(struct sql_session *s, const struct kv_txn_options *opt,
                          bool refuse_writes)
{
    s->begun = *opt;
    s->block = BLOCK_EXPLICIT;
    s->refuse_writes = refuse_writes;
    if (!block_begin_again(s)) {
        sql_error_clear(&s->err);
    }
}

static bool cmd_commit(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    bool chain = false;
    if (!end_words(s, st, st->first + 1, &chain)) {
        s->failed = s->failed || s->block != BLOCK_NONE;
        return false;
    }
    if (s->block == BLOCK_NONE || (s->block == BLOCK_IMPLICIT && !s->kv_open)) {
        run_notice(s, out->sink, "25P01", "there is no transaction in progress");
        return done(out, "COMMIT");
    }
    struct kv_txn_options begun = s->begun;
    bool refuse_writes = s->refuse_writes;
    bool failed = s->failed;
    if (failed) {
        block_rollback(s);
    } else if (!block_commit(s)) {
        return false;
    }
    if (chain) {
        begin_chained(s, &begun, refuse_writes);
    }
    return done(out, failed ? "ROLLBACK" : "COMMIT");
}

static bool cmd_savepoint(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    struct buf name = {0};
    size_t at = st->first + 1;
    bool ok = false;
    at += st->verb == VERB_RELEASE && sql_token_is(&s->tokens, at, "SAVEPOINT") ? 1 : 0;
    if (at + 1 != st->last) {
        return run_syntax_error(s, at);
    }
    sql_token_name(&s->tokens, at, &name);
    if (s->failed) {
        ok = aborted(s);
    } else if (st->verb == VERB_SAVEPOINT) {
        ok = need_block(s, "SAVEPOINT") && block_savepoint(s, buf_cstr(&name)) &&
             done(out, "SAVEPOINT");
    } else {
        ok = need_block(s, "RELEASE SAVEPOINT") && block_release(s, buf_cstr(&name)) &&
             done(out, "RELEASE");
    }
    buf_deinit(&name);
    return ok;
}

static bool cmd_rollback(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    size_t at = st->first + 1;
    if (sql_token_is(&s->tokens, at, "TRANSACTION") || sql_token_is(&s->tokens, at, "WORK")) {
        at++;
    }
    if (at < st->last && sql_token_is(&s->tokens, at, "TO")) {
        struct buf name = {0};
        at += sql_token_is(&s->tokens, at + 1, "SAVEPOINT") ? 2 : 1;
        sql_token_name(&s->tokens, at, &name);
        bool ok = (at < st->last || run_syntax_error(s, at)) && run_at_end(s, st, at + 1) &&
                  need_block(s, "ROLLBACK TO SAVEPOINT") && block_rollback_to(s, buf_cstr(&name)) &&
                  done(out, "ROLLBACK");
        buf_deinit(&name);
        return ok;
    }
    bool chain = false;
    if (!end_words(s, st, st->first + 1, &chain)) {
        return false;
    }
    if (s->block == BLOCK_NONE) {
        run_notice(s, out->sink, "25P01", "there is no transaction in progress");
    }
    struct kv_txn_options begun = s->begun;
    bool refuse_writes = s->refuse_writes;
    block_rollback(s);
    if (chain) {
        begin_chained(s, &begun, refuse_writes);
    }
    return done(out, "ROLLBACK");
}

/* --- SET --- */

/* Text of tokens [at, last): words and strings as they are, a list joined by ", ". */
static void value_text(struct sql_session *s, size_t at, size_t last, struct buf *out)
{
    struct buf part = {0};
    for (size_t i = at; i < last; i++) {
        sql_token_name(&s->tokens, i, &part);
        bool tight =
            sql_token_op(&s->tokens, i, ",") ||
            (i > at &&
             (sql_token_op(&s->tokens, i - 1, "-") || sql_token_op(&s->tokens, i - 1, "+") ||
              sql_token_op(&s->tokens, i - 1, ".") || sql_token_op(&s->tokens, i, "."))) ||
            i == at;
        buf_append_str(out, tight ? "" : " ");
        buf_append_slice(out, buf_slice(&part));
    }
    buf_deinit(&part);
    (void)buf_cstr(out);
}

/* name[.name...] at *at. */
static void dotted_name(struct sql_session *s, size_t *at, size_t last, struct buf *out)
{
    struct buf part = {0};
    while (*at < last) {
        sql_token_name(&s->tokens, *at, &part);
        buf_append_slice(out, buf_slice(&part));
        (*at)++;
        if (!sql_token_op(&s->tokens, *at, ".")) {
            break;
        }
        buf_append_byte(out, '.');
        (*at)++;
    }
    buf_deinit(&part);
    (void)buf_cstr(out);
}

static bool set_cluster(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    struct buf name = {0};
    struct buf value = {0};
    struct span_error err = {0};
    size_t at = st->first + 2;
    bool ok = false;
    at += sql_token_is(&s->tokens, at, "SETTING") ? 1 : 0;
    dotted_name(s, &at, st->last, &name);
    if (!sql_token_op(&s->tokens, at, "=") && !sql_token_is(&s->tokens, at, "TO")) {
        ok = run_syntax_error(s, at);
    } else {
        value_text(s, at + 1, st->last, &value);
        span_status rs = s->kv->ops->set_cluster(s->kv, buf_cstr(&name), buf_cstr(&value), &err);
        ok = rs == SPAN_OK ? done(out, "SET") : session_fail(s, rs, &err);
    }
    buf_deinit(&name);
    buf_deinit(&value);
    return ok;
}

static bool set_variable(struct sql_session *s, size_t at, size_t last, bool local,
                         struct run_out *out)
{
    struct buf name = {0};
    struct buf value = {0};
    bool ok = false;
    if (sql_token_is(&s->tokens, at, "TIME") && sql_token_is(&s->tokens, at + 1, "ZONE")) {
        buf_append_str(&name, "TimeZone");
        at += 2;
        at += sql_token_is(&s->tokens, at, "INTERVAL") ? 1 : 0;
        last = sql_token_is(&s->tokens, last - 1, "MINUTE") ? at + 1 : last; /* HOUR TO MINUTE */
        at--;
    } else if (sql_token_is(&s->tokens, at, "NAMES")) {
        buf_append_str(&name, "client_encoding");
    } else {
        dotted_name(s, &at, last, &name);
        if (!sql_token_op(&s->tokens, at, "=") && !sql_token_is(&s->tokens, at, "TO")) {
            buf_deinit(&name);
            return run_syntax_error(s, at);
        }
    }
    if (at + 1 >= last) {
        ok = run_syntax_error(s, at);
    } else if ((sql_token_is(&s->tokens, at + 1, "DEFAULT") ||
                (sql_token_is(&s->tokens, at + 1, "LOCAL") &&
                 strcmp(buf_cstr(&name), "TimeZone") == 0)) &&
               at + 2 == last) {
        ok = vars_reset(s, buf_cstr(&name), local);
    } else {
        value_text(s, at + 1, last, &value);
        ok = (local ? vars_set_local : vars_set)(s, buf_cstr(&name), buf_cstr(&value));
    }
    buf_deinit(&name);
    buf_deinit(&value);
    return ok && done(out, "SET");
}

/* SET TRANSACTION modes: isolation is always serializable; the rest is BEGIN's. */
static bool set_transaction(struct sql_session *s, const struct sql_stmt *st, size_t at,
                            struct run_out *out)
{
    struct block_mode m;
    if (sql_token_is(&s->tokens, at, "SNAPSHOT")) {
        return refuse(
            s, "SET TRANSACTION SNAPSHOT is not supported",
            "BEGIN READ ONLY AS OF TIMESTAMP '..' reads one timestamp from several sessions.");
    }
    if (at >= st->last) {
        return run_syntax_error(s, at);
    }
    if (!block_parse_mode(s, at, st->last, &m)) {
        return false;
    }
    if (s->block == BLOCK_NONE) {
        run_notice(s, out->sink, "25P01", "SET TRANSACTION can only be used in transaction blocks");
        return done(out, "SET");
    }
    return block_change_mode(s, &m) && done(out, "SET");
}

/* SET SESSION CHARACTERISTICS AS TRANSACTION modes, which later transactions begin with. */
static bool set_characteristics(struct sql_session *s, const struct sql_stmt *st, size_t at,
                                struct run_out *out)
{
    struct block_mode m;
    if (!sql_token_is(&s->tokens, at, "AS") || !sql_token_is(&s->tokens, at + 1, "TRANSACTION") ||
        at + 2 >= st->last) {
        return run_syntax_error(s, at);
    }
    if (!block_parse_mode(s, at + 2, st->last, &m)) {
        return false;
    }
    if (m.opt.mode != KV_READ_STRONG) {
        return refuse(s, "a session cannot read all its transactions AS OF another time",
                      "BEGIN READ ONLY AS OF .. reads one transaction so.");
    }
    return (!(m.only || m.write) ||
            vars_set(s, "default_transaction_read_only", m.only ? "on" : "off")) &&
           done(out, "SET");
}

static bool cmd_set(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    size_t at = st->first + 1;
    if (sql_token_is(&s->tokens, at, "CLUSTER")) {
        return set_cluster(s, st, out);
    }
    if (sql_token_is(&s->tokens, at, "TRANSACTION")) {
        return set_transaction(s, st, at + 1, out);
    }
    if (sql_token_is(&s->tokens, at, "SESSION") &&
        sql_token_is(&s->tokens, at + 1, "CHARACTERISTICS")) {
        return set_characteristics(s, st, at + 2, out);
    }
    if (sql_token_is(&s->tokens, at, "ROLE") ||
        (sql_token_is(&s->tokens, at, "SESSION") &&
         sql_token_is(&s->tokens, at + 1, "AUTHORIZATION")) ||
        sql_token_is(&s->tokens, at, "CONSTRAINTS")) {
        return refuse(s, "this form of SET is not supported", "Connect as the other user.");
    }
    bool local = sql_token_is(&s->tokens, at, "LOCAL");
    if (sql_token_is(&s->tokens, at, "SESSION") || local) {
        at++;
    }
    return set_variable(s, at, st->last, local, out);
}

static bool cmd_reset(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    struct buf name = {0};
    size_t at = st->first + 1;
    bool all = sql_token_is(&s->tokens, at, "ALL");
    if (all) {
        at++;
    } else if (sql_token_is(&s->tokens, at, "TIME") && sql_token_is(&s->tokens, at + 1, "ZONE")) {
        buf_append_str(&name, "TimeZone");
        at += 2;
    } else {
        dotted_name(s, &at, st->last, &name);
    }
    bool ok = (at > st->first + 1 || run_syntax_error(s, at)) && run_at_end(s, st, at) &&
              (all || vars_reset(s, buf_cstr(&name), false));
    if (ok && all) {
        vars_reset_all(s);
    }
    buf_deinit(&name);
    return ok && done(out, "RESET");
}

/* --- SHOW --- */

void run_columns_of_table(const struct kv_table *t, struct pg_column **cols)
{
    *cols = span_calloc(t->columns + 1, sizeof **cols);
    for (size_t i = 0; i < t->columns; i++) {
        (*cols)[i].name = t->names[i];
        (*cols)[i].type_oid = t->types[i];
    }
}

bool run_send_table(struct sql_session *s, const struct kv_table *t, struct run_out *out,
                    const char *tag)
{
    struct pg_column *cols = NULL;
    struct pg_value v[2 * LIMIT_COLUMNS];
    run_columns_of_table(t, &cols);
    session_gate(s);
    if (out->describe) {
        pg_sink_row_description(out->sink, cols, t->columns);
    }
    span_free(cols);
    for (size_t r = 0; r < t->rows; r++) {
        for (size_t c = 0; c < t->columns && c < 2 * LIMIT_COLUMNS; c++) {
            const char *cell = t->cells[r * t->columns + c];
            v[c].is_null = cell == NULL;
            v[c].text = slice_str(cell == NULL ? "" : cell);
        }
        if (out->keep != NULL) {
            row_set_add(out->keep, v, t->columns);
        } else if (pg_sink_data_row(out->sink, v, t->columns) != SPAN_OK) {
            s->client_gone = true;
            return false;
        }
        out->rows++;
    }
    return done(out, tag);
}

static bool cmd_show(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    struct kv_table t;
    bool ok = show_run(s, st, &t);
    if (ok) {
        if (out->keep != NULL) {
            out->keep->columns = t.columns;
        }
        if (t.missing != NULL) {
            char text[512];
            snprintf(text, sizeof text, "no answer from %s %.400s: what only %s is missing here",
                     strchr(t.missing, ',') == NULL ? "node" : "nodes", t.missing,
                     strchr(t.missing, ',') == NULL ? "it knows" : "they know");
            run_notice(s, out->sink, "01000", text);
        }
        ok = run_send_table(s, &t, out, "SHOW");
    }
    kv_table_deinit(&t);
    return ok;
}

/* --- ALTER --- */

static bool outside(struct sql_session *s, const char *what)
{
    if (s->block == BLOCK_NONE && !s->kv_open) {
        return true;
    }
    sql_error_set(&s->err, "25001", "%s cannot run inside a transaction block", what);
    return false;
}

/* A number at token *i, which moves on; "NODE" before it is allowed. False: none. */
static bool take_number(struct sql_session *s, size_t *i, unsigned long long *out)
{
    struct buf text = {0};
    char *end = NULL;
    *i += sql_token_is(&s->tokens, *i, "NODE") ? 1 : 0;
    sql_token_name(&s->tokens, *i, &text);
    *out = strtoull(buf_cstr(&text), &end, 10);
    bool ok =
        text.size > 0 && text.size < 12 && *end == '\0' && isdigit((unsigned char)text.data[0]);
    buf_deinit(&text);
    (*i)++;
    return ok;
}

/* What ALTER RANGE is to do with nodes. */
struct range_change {
    bool transfer;
    bool merge;
    unsigned long long to;   /* new leader, or new replica, or the neighbour; 0: none */
    unsigned long long from; /* replica that goes; 0: none */
};

static bool range_change(struct sql_session *s, size_t i, size_t last, struct range_change *c)
{
    const struct sql_tokens *t = &s->tokens;
    bool ok = false;
    if (sql_token_is(t, i, "TRANSFER") &&
        (sql_token_is(t, i + 1, "LEADER") || sql_token_is(t, i + 1, "LEASE")) &&
        sql_token_is(t, i + 2, "TO")) {
        i += 3;
        c->transfer = true;
        ok = take_number(s, &i, &c->to);
    } else if (sql_token_is(t, i, "MERGE") && sql_token_is(t, i + 1, "WITH")) {
        i += 2;
        c->merge = true;
        ok = take_number(s, &i, &c->to);
    } else if (sql_token_is(t, i, "MOVE") && sql_token_is(t, i + 1, "FROM")) {
        i += 2;
        ok = take_number(s, &i, &c->from) && sql_token_is(t, i, "TO");
        i++;
        ok = ok && take_number(s, &i, &c->to);
    } else if (sql_token_is(t, i, "ADD") && sql_token_is(t, i + 1, "REPLICA") &&
               sql_token_is(t, i + 2, "ON")) {
        i += 3;
        ok = take_number(s, &i, &c->to);
    } else if (sql_token_is(t, i, "REMOVE") && sql_token_is(t, i + 1, "REPLICA") &&
               (sql_token_is(t, i + 2, "FROM") || sql_token_is(t, i + 2, "ON"))) {
        i += 3;
        ok = take_number(s, &i, &c->from);
    }
    return ok && i == last && c->to <= UINT32_MAX && c->from <= UINT32_MAX;
}

/* ALTER RANGE n TRANSFER LEADER TO node | MOVE FROM node TO node | ADD REPLICA ON node | REMOVE
 * REPLICA FROM node | MERGE WITH n */
static bool alter_range(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    struct span_error err = {0};
    struct range_change c = {0};
    unsigned long long range = 0;
    size_t i = st->first + 2;
    bool ok = take_number(s, &i, &range);
    if (!ok || !range_change(s, i, st->last, &c)) {
        sql_error_set(&s->err, "42601", "syntax error");
        sql_error_hint(&s->err,
                       "ALTER RANGE n TRANSFER LEADER TO node, MOVE FROM node TO node, ADD "
                       "REPLICA ON node, REMOVE REPLICA FROM node, or MERGE WITH n");
        return false;
    }
    if (!outside(s, "ALTER RANGE")) {
        return false;
    }
    span_status rs =
        c.transfer ? s->kv->ops->transfer_leader(s->kv, range, (uint32_t)c.to, &err)
        : c.merge  ? s->kv->ops->merge_ranges(s->kv, range, c.to, &err)
                   : s->kv->ops->move_replica(s->kv, range, (uint32_t)c.to, (uint32_t)c.from, &err);
    return rs == SPAN_OK ? done(out, "ALTER RANGE") : session_fail(s, rs, &err);
}

static bool cmd_alter(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    size_t what = st->first + 1;
    if (block_refuses_writes(s)) {
        sql_error_set(&s->err, "25006", "cannot execute ALTER in a read-only transaction");
        return false;
    }
    if (sql_token_is(&s->tokens, what, "RANGE")) {
        return alter_range(s, st, out);
    }
    bool known = sql_token_is(&s->tokens, what, "TABLE") || sql_token_is(&s->tokens, what, "INDEX");
    if (known && ddl_is_split(&s->tokens, st)) {
        if (!outside(s, "SPLIT AT")) {
            return false;
        }
        session_sync_schema(s);
        session_statement_clock(s);
        bool ok = ddl_split(s, st);
        s->err.offset = 0;
        return ok &&
               done(out, sql_token_is(&s->tokens, what, "TABLE") ? "ALTER TABLE" : "ALTER INDEX");
    }
    if (known) {
        return refuse(
            s, "this form of ALTER is not supported yet",
            "Create a table as it should be, INSERT .. SELECT into it, and drop the old one. "
            "ALTER TABLE t SPLIT AT VALUES (..), (..) splits a table.");
    }
    return refuse(
        s, "this form of ALTER is not supported",
        "ALTER TABLE t SPLIT AT VALUES (..), (..) and ALTER RANGE n TRANSFER LEADER TO node are.");
}

/* --- the rest --- */

static bool cmd_unsupported(struct sql_session *s, const struct sql_stmt *st)
{
    static const struct {
        const char *word;
        const char *hint;
    } hints[] = {
        {"COPY", "Use INSERT with several rows in VALUES."},
        {"LOCK", "SELECT .. FOR UPDATE locks the rows it returns."},
        {"DECLARE", "Use the driver's row limit (a portal) instead of a SQL cursor."},
        {"FETCH", "Use the driver's row limit (a portal) instead of a SQL cursor."},
        {"PREPARE", "Use the driver's prepared statements (extended protocol)."},
        {"EXECUTE", "Use the driver's prepared statements (extended protocol)."},
        {"PRAGMA",
         "SHOW TABLES, SHOW COLUMNS FROM t and SHOW INDEXES FROM t tell about the schema."},
        {"CREATE", "Tables, views and indexes can be created."},
        {"DROP", "Tables, views and indexes can be dropped."},
    };

    const char *hint = "There is no substitute yet.";
    struct slice word = sql_token_text(&s->tokens, st->first);
    for (size_t i = 0; i < sizeof hints / sizeof hints[0]; i++) {
        if (sql_token_is(&s->tokens, st->first, hints[i].word)) {
            hint = hints[i].hint;
        }
    }
    struct slice second = sql_token_text(&s->tokens, st->first + 1);
    bool two = st->verb == VERB_CREATE_OTHER || st->verb == VERB_DROP_OTHER;
    sql_error_set(&s->err, "0A000", "%.*s%s%.*s is not supported", (int)word.size,
                  (const char *)word.data, two ? " " : "", two ? (int)second.size : 0,
                  (const char *)second.data);
    sql_error_hint(&s->err, "%s", hint);
    return false;
}

static bool cmd_noop(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    if (sql_token_is(&s->tokens, st->first, "CHECKPOINT") && !run_at_end(s, st, st->first + 1)) {
        return false;
    }
    struct slice word = sql_token_text(&s->tokens, st->first);
    char tag[32];
    snprintf(tag, sizeof tag, "%.*s", (int)word.size, (const char *)word.data);
    for (char *p = tag; *p != '\0'; p++) {
        *p = *p >= 'a' && *p <= 'z' ? (char)(*p - 32) : *p;
    }
    run_notice(s, out->sink, "00000",
               "nothing to do: versions and statistics are kept by the store");
    return done(out, tag);
}

static bool cmd_deallocate(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    size_t at = st->first + 1;
    at += sql_token_is(&s->tokens, at, "PREPARE") ? 1 : 0;
    if (sql_token_is(&s->tokens, at, "ALL") && at + 1 == st->last) {
        out->sink->ops->stmt_drop_all(out->sink->ctx);
        return done(out, "DEALLOCATE ALL");
    }
    struct buf name = {0};
    if (at >= st->last || at + 1 < st->last) {
        return run_syntax_error(s, at >= st->last ? at : at + 1);
    }
    sql_token_name(&s->tokens, at, &name);
    bool ok = out->sink->ops->stmt_drop(out->sink->ctx, buf_slice(&name));
    if (!ok) {
        sql_error_set(&s->err, "26000", "prepared statement \"%s\" does not exist",
                      buf_cstr(&name));
    }
    buf_deinit(&name);
    return ok && done(out, "DEALLOCATE");
}

static bool cmd_discard(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    static const char *const none[] = {"PLANS", "SEQUENCES", "TEMP", "TEMPORARY"};
    size_t what = st->first + 1;
    if (!run_at_end(s, st, what + 1)) {
        return false;
    }
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        if (sql_token_is(&s->tokens, what, none[i])) {
            return done(out, "DISCARD"); /* nothing of these is kept */
        }
    }
    if (!sql_token_is(&s->tokens, what, "ALL")) {
        return run_syntax_error(s, what);
    }
    if (!outside(s, "DISCARD ALL")) {
        return false;
    }
    vars_reset_all(s);
    out->sink->ops->stmt_drop_all(out->sink->ctx);
    return done(out, "DISCARD ALL");
}

static bool dispatch(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    switch ((int)st->verb) {
    case VERB_BEGIN:
        return cmd_begin(s, st, out);
    case VERB_COMMIT:
        return cmd_commit(s, st, out);
    case VERB_ROLLBACK:
        return cmd_rollback(s, st, out);
    case VERB_SAVEPOINT:
    case VERB_RELEASE:
        return cmd_savepoint(s, st, out);
    case VERB_SET:
        return cmd_set(s, st, out);
    case VERB_RESET:
        return cmd_reset(s, st, out);
    case VERB_SHOW:
        return cmd_show(s, st, out);
    case VERB_ALTER:
        return cmd_alter(s, st, out);
    case VERB_NOOP:
        return cmd_noop(s, st, out);
    case VERB_DEALLOCATE:
        return cmd_deallocate(s, st, out);
    case VERB_DISCARD:
        return cmd_discard(s, st, out);
    default:
        return cmd_unsupported(s, st);
    }
}

bool sql_command_run(struct sql_session *s, const struct sql_stmt *st, struct run_out *out)
{
    bool ok = dispatch(s, st, out);
    if (!ok && s->block != BLOCK_NONE && st->verb != VERB_COMMIT) {
        s->failed = true;
    }
    return ok;
}
