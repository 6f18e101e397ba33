/* UPSERT INTO t .., CockroachDB's: an INSERT whose rows take the place of those with their primary
 * key, and leave columns that it does not name as they are. It runs as the INSERT .. ON CONFLICT
 * that says so, made from the table's schema. A row that meets another unique key is 23505. */
#include "base/alloc.h"
#include "sql/run.h"

#include <strings.h>

bool sql_is_upsert(const struct sql_session *s, const struct sql_stmt *st)
{
    return st->verb == VERB_OTHER && sql_token_is(&s->tokens, st->first, "UPSERT") &&
           sql_token_is(&s->tokens, st->first + 1, "INTO");
}

static bool is_key(const struct table_desc *d, size_t column)
{
    for (size_t i = 0; i < d->primary.count; i++) {
        if (d->primary.columns[i] == column) {
            return true;
        }
    }
    return false;
}

/* Does the statement's column list, if it has one, name the column? */
static bool is_named(const struct sql_tokens *t, const struct sql_stmt *st,
                     const struct table_desc *d, size_t column)
{
    struct buf name = {0};
    bool found = st->columns == 0;
    size_t end = st->values != 0 ? st->values : st->select;
    for (size_t i = st->columns + 1; i < end && !found; i++) {
        if (t->t[i].kind == TOK_WORD || t->t[i].kind == TOK_QUOTED) {
            sql_token_name(t, i, &name);
            found = strcasecmp(buf_cstr(&name), d->columns[column].name) == 0;
        }
    }
    buf_deinit(&name);
    return found;
}

static void put_conflict(const struct sql_tokens *t, const struct sql_stmt *st,
                         const struct table_desc *d, struct buf *out)
{
    size_t set = 0;
    if (d->pk == PK_HIDDEN) {
        return; /* no row is ever in the way */
    }
    buf_append_str(out, " ON CONFLICT (");
    for (size_t i = 0; i < d->primary.count; i++) {
        buf_append_str(out, i == 0 ? "" : ", ");
        sql_quote_ident(out, d->columns[d->primary.columns[i]].name);
    }
    buf_append_str(out, ") DO ");
    for (size_t i = 0; i < d->column_count; i++) {
        if (d->columns[i].generated || is_key(d, i) || !is_named(t, st, d, i)) {
            continue;
        }
        buf_append_str(out, set++ == 0 ? "UPDATE SET " : ", ");
        sql_quote_ident(out, d->columns[i].name);
        buf_append_str(out, " = excluded.");
        sql_quote_ident(out, d->columns[i].name);
    }
    buf_append_str(out, set == 0 ? "NOTHING" : "");
}

static void put_source(const struct sql_tokens *t, size_t from, size_t to, struct buf *out)
{
    if (from < to) {
        buf_append(out, t->src.data + t->t[from].start, t->t[to - 1].end - t->t[from].start);
    }
}

/* The INSERT; st is of the text with INSERT for UPSERT. */
static bool put_insert(struct sql_session *s, const struct sql_tokens *t, const struct sql_stmt *st,
                       struct buf *out)
{
    struct table_desc *d = NULL;
    struct buf name = {0};
    size_t end = st->returning != 0 ? st->returning : st->last;
    if (st->target == 0 || st->dflt != 0 || (st->values == 0 && st->select == 0) ||
        st->on_conflict != 0) {
        sql_error_set(&s->err, "0A000", "this form of UPSERT is not supported");
        sql_error_hint(&s->err,
                       "UPSERT INTO t [(columns)] VALUES (..) or a query; INSERT INTO t .. "
                       "ON CONFLICT (key) DO .. can do more.");
        return false;
    }
    sql_token_name(t, st->target, &name);
    session_sync_schema(s);
    bool ok = session_find_desc(s, buf_cstr(&name), &d);
    if (ok && (d == NULL || d->kind != DESC_TABLE)) {
        sql_error_set(&s->err, "42P01", "no such table: %s", buf_cstr(&name));
        ok = false;
    }
    if (ok && st->values != 0) {
        put_source(t, st->first, end, out);
    } else if (ok) { /* SQLite would take ON for a join's */
        put_source(t, st->first, st->select, out);
        buf_append_str(out, " SELECT * FROM (");
        put_source(t, st->select, end, out);
        buf_append_str(out, ") WHERE true");
    }
    if (ok) {
        put_conflict(t, st, d, out);
        buf_append_byte(out, ' ');
        put_source(t, end, st->last, out);
    }
    table_desc_unref(d);
    buf_deinit(&name);
    return ok;
}

/* Splits text into s->tokens, and its one statement into *st. */
static bool split_one(struct sql_session *s, const struct buf *text, struct sql_stmt *st)
{
    size_t bad = 0;
    size_t at = 0;
    bool ok = sql_tokenize(buf_slice(text), &s->tokens, &bad) == SPAN_OK &&
              sql_stmt_next(&s->tokens, &at, st);
    return ok || run_syntax_error(s, s->tokens.count);
}

bool sql_upsert_enter(struct sql_session *s, const struct sql_stmt *st, struct sql_upsert *u)
{
    struct buf insert = {0};
    struct sql_stmt first;
    memset(u, 0, sizeof *u);
    buf_append_str(&insert, "INSERT ");
    put_source(&s->tokens, st->first + 1, st->last, &insert);
    u->tokens = s->tokens;
    sql_tokens_init(&s->tokens);
    bool ok = split_one(s, &insert, &first) && put_insert(s, &s->tokens, &first, &u->text) &&
              split_one(s, &u->text, &u->st);
    buf_deinit(&insert);
    if (!ok) {
        sql_upsert_leave(s, u);
    }
    return ok;
}

void sql_upsert_leave(struct sql_session *s, struct sql_upsert *u)
{
    s->err.offset = 0; /* of a text that the client has not written */
    sql_tokens_deinit(&s->tokens);
    s->tokens = u->tokens;
    buf_deinit(&u->text);
}
