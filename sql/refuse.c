/* Statements that are refused by their look: what SQLite would not see, because the rewritten text
 * leaves it out, and texts of other systems that it would answer with a syntax error in the middle
 * of them (the catalog queries of psql and drivers, spellings of UPSERT). */
#include "sql/run.h"

#include <strings.h>

static bool is_catalog(const struct sql_tokens *t, size_t i)
{
    if (!sql_token_op(t, i + 1, ".") || sql_token_op(t, i + 3, "(")) {
        return false; /* pg_catalog.f() is a function */
    }
    if (sql_token_is(t, i, "information_schema")) {
        return true;
    }
    struct slice name = sql_token_text(t, i + 2);
    return sql_token_is(t, i, "pg_catalog") && name.size > 3 &&
           strncasecmp((const char *)name.data, "pg_", 3) == 0;
}

bool run_syntax_error(struct sql_session *s, size_t at)
{
    struct slice near = sql_token_text(&s->tokens, at);
    if (at >= s->tokens.count || sql_token_op(&s->tokens, at, ";")) {
        sql_error_set(&s->err, "42601", "syntax error at end of input");
        return false;
    }
    sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                  (const char *)near.data);
    s->err.offset = s->tokens.t[at].start + 1;
    return false;
}

bool run_at_end(struct sql_session *s, const struct sql_stmt *st, size_t at)
{
    return at == st->last || run_syntax_error(s, at);
}

/* Is a name of FOR UPDATE OF one of the FROM clause? More than it names may be locked: that is
 * allowed. */
static bool names_a_source(struct sql_session *s, const struct sql_stmt *st, size_t name)
{
    struct buf want = {0};
    struct buf have = {0};
    const struct sql_tokens *t = &s->tokens;
    size_t end = st->where != 0 ? st->where : st->for_update;
    bool found = false;
    sql_token_name(t, name, &want);
    for (size_t i = st->from; st->from != 0 && i < end && !found; i++) {
        if (t->t[i].kind == TOK_WORD || t->t[i].kind == TOK_QUOTED) {
            sql_token_name(t, i, &have);
            found = strcasecmp(buf_cstr(&have), buf_cstr(&want)) == 0;
        }
    }
    if (!found) {
        sql_error_set(&s->err, "42P01",
                      "relation \"%s\" in FOR UPDATE clause not found in FROM clause",
                      buf_cstr(&want));
        s->err.offset = t->t[name].start + 1;
    }
    buf_deinit(&want);
    buf_deinit(&have);
    return found;
}

/* What SELECT .. FOR UPDATE says besides is not for SQLite, which does not see it. */
static bool refuse_lock_clause(struct sql_session *s, const struct sql_stmt *st)
{
    const struct sql_tokens *t = &s->tokens;
    if (st->for_update == 0) {
        return false;
    }
    if (st->for_wait != 0) {
        bool skip = sql_token_is(t, st->for_wait, "SKIP");
        sql_error_set(&s->err, "0A000", "%s is not supported", skip ? "SKIP LOCKED" : "NOWAIT");
        sql_error_hint(&s->err, "%s",
                       skip ? "Take one row by its key, or retry on 40001."
                            : "SET lock_timeout = '10ms' bounds the wait for a lock.");
        s->err.offset = t->t[st->for_wait].start + 1;
        return true;
    }
    for (size_t i = st->for_update; i + 1 < st->for_end; i++) {
        bool named = sql_token_is(t, i, "OF") || sql_token_op(t, i, ",");
        if (named && !names_a_source(s, st, i + 1)) {
            return true;
        }
    }
    if (st->for_end < st->last && !sql_token_is(t, st->for_end, "LIMIT") &&
        !sql_token_is(t, st->for_end, "OFFSET") && !sql_token_is(t, st->for_end, "FETCH")) {
        return !run_syntax_error(s, st->for_end);
    }
    return false;
}

bool sql_refuse(struct sql_session *s, const struct sql_stmt *st)
{
    const struct sql_tokens *t = &s->tokens;
    if (refuse_lock_clause(s, st)) {
        return true;
    }
    if (st->verb == VERB_OTHER &&
        (sql_token_is(t, st->first, "UPSERT") || sql_token_is(t, st->first, "MERGE"))) {
        struct slice word = sql_token_text(t, st->first);
        sql_error_set(&s->err, "0A000", "%.*s is not supported", (int)word.size,
                      (const char *)word.data);
        sql_error_hint(&s->err, "Write INSERT INTO t .. ON CONFLICT (key) DO UPDATE SET c = "
                                "excluded.c, or INSERT OR REPLACE INTO t ..");
        return true;
    }
    if (st->on_conflict != 0 && sql_token_is(t, st->on_conflict + 2, "ON") &&
        sql_token_is(t, st->on_conflict + 3, "CONSTRAINT")) {
        sql_error_set(&s->err, "0A000", "ON CONFLICT ON CONSTRAINT is not supported");
        sql_error_hint(&s->err, "Name the columns: ON CONFLICT (a, b) DO ..");
        s->err.offset = t->t[st->on_conflict + 2].start + 1;
        return true;
    }
    for (size_t i = st->first; i < st->last; i++) {
        if (t->t[i].kind == TOK_WORD && is_catalog(t, i)) {
            session_no_catalog(s);
            s->err.offset = t->t[i].start + 1;
            return true;
        }
    }
    return false;
}
