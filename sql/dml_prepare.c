/* The texts of a DML statement: on main.T, and the fetch of its target rows; see dml.h. */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1 /* Debian's library has it; the header shows it only so */
#include "base/alloc.h"
#include "sql/dml.h"

#include <strings.h>

/* Rewritten text of tokens [from, to). */
static void text_of(const struct sql_session *s, const struct sql_stmt *st, size_t from, size_t to,
                    struct buf *out)
{
    const struct buf *text = &s->rewritten.text;
    size_t a = s->tokens.t[from].out;
    size_t b = to >= st->last ? text->size : s->tokens.t[to].out;
    if (b > a) {
        buf_append(out, text->data + a, b - a);
    }
}

/* The user's statement with its target qualified. */
static void run_text(const struct sql_session *s, const struct sql_stmt *st,
                     const struct sess_table *t, struct buf *out)
{
    size_t start = st->target_schema != 0 ? st->target_schema : st->target;
    start -= sql_token_is(&s->tokens, start - 1, "ONLY") ? 1 : 0; /* there are no child tables */
    text_of(s, st, st->first, start, out);
    buf_printf(out, "main.%s ", t->quoted);
    size_t rest = st->target + 1;
    if (st->alias != 0) {
        buf_append_str(out, "AS ");
        rest = st->alias;
    }
    if (rest < st->last) {
        text_of(s, st, rest, st->last, out);
    }
}

/* The rows of an UPSERT without its conflict clause, replacing whatever is in their way: run only
 * to learn their keys. */
static void survey_text(const struct sql_session *s, const struct sql_stmt *st,
                        const struct sess_table *t, struct buf *out)
{
    if (st->with) {
        text_of(s, st, st->first, st->main, out);
    }
    buf_printf(out, "INSERT OR REPLACE INTO main.%s ", t->quoted);
    size_t rest = st->target + 1;
    if (st->alias != 0) {
        buf_append_str(out, "AS ");
        rest = st->alias;
    }
    text_of(s, st, rest, st->on_conflict, out);
}

static size_t first_after(const struct sql_stmt *st, size_t clause)
{
    size_t best = st->last;
    size_t all[] = {st->from, st->where, st->order, st->limit, st->returning};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i] > clause && all[i] < best) {
            best = all[i];
        }
    }
    return best;
}

static void prefetch_text(const struct sql_session *s, const struct sql_stmt *st,
                          const struct sess_table *t, struct buf *out)
{
    struct buf twin = {0};
    if (st->with) {
        text_of(s, st, st->first, st->main, out);
    }
    buf_printf(out, "INSERT INTO main.%s(", t->quoted);
    session_stored_columns(t->desc, out);
    buf_append_str(out, ") SELECT ");
    session_stored_columns(t->desc, out);
    buf_append_str(out, " FROM temp.");
    buf_printf(&twin, "%s%s", UPDATE_PREFIX, t->desc->name);
    sql_quote_ident(out, buf_cstr(&twin));
    buf_append_str(out, " AS ");
    if (st->alias != 0) {
        text_of(s, st, st->alias, st->alias + 1, out);
    } else {
        buf_append_str(out, t->quoted);
    }
    buf_append_str(out, " ");
    if (st->verb == VERB_UPDATE && st->from != 0) {
        buf_append_str(out, "WHERE EXISTS (SELECT 1 ");
        text_of(s, st, st->from, first_after(st, st->from), out);
        if (st->where != 0) {
            text_of(s, st, st->where, first_after(st, st->where), out);
        }
        buf_append_str(out, ")");
    } else if (st->where != 0) {
        text_of(s, st, st->where, first_after(st, st->where), out);
    }
    if (st->order != 0) {
        text_of(s, st, st->order, first_after(st, st->order), out);
    }
    if (st->limit != 0) {
        text_of(s, st, st->limit, first_after(st, st->limit), out);
    }
    buf_deinit(&twin);
}

/* Does the column list (or its absence) leave the rowid column to be filled in? */
static void classify_insert(const struct sql_session *s, const struct sql_stmt *st,
                            const struct table_desc *d, struct plan *p, bool *names_rowid)
{
    p->values_rows = st->values_rows;
    p->auto_rowid = d->pk == PK_ROWID;
    *names_rowid = false;
    if (d->pk == PK_ROWID && st->columns == 0 && st->dflt == 0) {
        p->auto_rowid = false;
        p->maybe_auto_rowid = true;
        return;
    }
    struct buf name = {0};
    for (size_t i = st->columns + 1; st->columns != 0 && i < st->last; i++) {
        if (s->tokens.t[i].depth <= s->tokens.t[st->columns].depth) {
            break;
        }
        if (s->tokens.t[i].kind == TOK_OP) {
            continue;
        }
        sql_token_name(&s->tokens, i, &name);
        const char *n = buf_cstr(&name);
        bool rowid = (strcasecmp(n, "rowid") == 0 || strcasecmp(n, "_rowid_") == 0 ||
                      strcasecmp(n, "oid") == 0) &&
                     table_find_column(d, n) < 0;
        if (rowid || (d->pk == PK_ROWID && strcasecmp(n, d->columns[d->pk_column].name) == 0)) {
            *names_rowid = rowid;
            p->auto_rowid = false;
            p->maybe_auto_rowid = d->pk == PK_ROWID;
        }
    }
    buf_deinit(&name);
}

static bool check_target(struct sql_session *s, const struct sql_stmt *st, struct sess_table *t)
{
    if (t->is_view) {
        sql_error_set(&s->err, "0A000", "cannot modify %s because it is a view", t->desc->name);
        sql_error_hint(&s->err, "Change the table behind it.");
        return false;
    }
    if (st->verb == VERB_DELETE && sql_token_is(&s->tokens, st->after_target, "USING")) {
        sql_error_set(&s->err, "0A000", "DELETE .. USING is not supported");
        sql_error_hint(&s->err, "Write DELETE .. WHERE EXISTS (SELECT ..).");
        return false;
    }
    return true;
}

static void find_conflict_clause(struct plan *p, const struct sql_stmt *st,
                                 const struct table_desc *d)
{
    p->resolves_conflicts = st->conflict == OR_IGNORE || st->conflict == OR_REPLACE ||
                            st->on_conflict != 0 ||
                            (d->conflict_clauses && st->conflict == OR_NONE);
}

bool dml_prepare_plan(struct sql_session *s, struct plan *p, const struct sql_stmt *st)
{
    struct buf name = {0};
    struct buf text = {0};
    bool ok = false;
    if (st->target == 0 || (st->verb == VERB_UPDATE && st->set == 0)) {
        /* Not understood: SQLite says what is wrong with it. */
        p->run = session_prepare(s, (const char *)s->rewritten.text.data, false);
        if (p->run != NULL) {
            sql_error_set(&s->err, "42601", "syntax error");
        }
        return false;
    }
    sql_token_name(&s->tokens, st->target, &name);
    if (st->target_schema != 0) {
        struct slice schema = sql_token_text(&s->tokens, st->target_schema);
        if (!(schema.size == 6 && strncasecmp((const char *)schema.data, "public", 6) == 0) &&
            !(schema.size == 4 && strncasecmp((const char *)schema.data, "main", 4) == 0)) {
            sql_error_set(&s->err, "42P01", "no such table: %.*s.%s", (int)schema.size,
                          (const char *)schema.data, buf_cstr(&name));
            buf_deinit(&name);
            return false;
        }
    }
    struct sess_table *t = session_table(s, buf_cstr(&name));
    bool names_rowid = false;
    if (t == NULL || !check_target(s, st, t) || !session_need_shadow(s, t)) {
        goto done;
    }
    p->target = table_desc_ref(t->desc);
    p->is_insert = st->verb == VERB_INSERT;
    p->returning = st->returning != 0;
    find_conflict_clause(p, st, t->desc);
    if (p->is_insert) {
        classify_insert(s, st, t->desc, p, &names_rowid);
        if (names_rowid && t->desc->pk == PK_HIDDEN) {
            sql_error_set(&s->err, "0A000", "the rowid of \"%s\" cannot be given", t->desc->name);
            sql_error_hint(&s->err, "Declare an INTEGER PRIMARY KEY column.");
            goto done;
        }
    }
    run_text(s, st, t, &text);
    s->dml_target = t->desc->name;
    sqlite3_preupdate_hook(s->db, dml_preupdate, s); /* DELETE without WHERE must go row by row */
    p->run = session_prepare(s, buf_cstr(&text), false);
    sqlite3_preupdate_hook(s->db, NULL, NULL);
    if (p->run != NULL && st->on_conflict != 0 && st->conflict == OR_NONE) {
        buf_clear(&text);
        survey_text(s, st, t, &text);
        p->survey = span_strdup(buf_cstr(&text));
    }
    if (p->run != NULL && !p->is_insert) {
        if (session_need_update_twin(s, t)) {
            buf_clear(&text);
            prefetch_text(s, st, t, &text);
            p->prefetch = session_prepare(s, buf_cstr(&text), false);
        }
        ok = p->prefetch != NULL;
    } else {
        ok = p->run != NULL;
    }
    s->dml_target = NULL;
done:
    buf_deinit(&name);
    buf_deinit(&text);
    return ok;
}
