/* Statements that are refused by their look: what SQLite would not see, because the rewritten text
 * leaves it out, and texts of other systems that it would answer with a syntax error in the middle
 * of them (the catalog queries of psql and drivers, spellings of UPSERT); and names for such syntax
 * errors, after SQLite has met them. */
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

/* --- syntax errors that are known words of other systems --- */

enum word_at {
    AT_ANY,
    AT_FIRST, /* the statement's first word */
    AT_SELECT,
    AT_TABLE, /* in CREATE TABLE */
};

static const struct foreign_words {
    const char *words[3]; /* one after the other; "(": that token */
    enum word_at at;
    const char *what;
    const char *hint;
} foreign[] = {
    {{"AS", "OF"},
     AT_ANY,
     "AS OF in a query",
     "BEGIN READ ONLY AS OF '-5s' reads all of a transaction at a time of the past."},
    {{"TABLE"}, AT_FIRST, "TABLE t as a query", "Write SELECT * FROM t."},
    {{"PARTITION", "BY"},
     AT_TABLE,
     "PARTITION BY",
     "Tables are split with ALTER TABLE t SPLIT AT VALUES (..), (..)."},
    {{"INHERITS"}, AT_TABLE, "INHERITS", "Write the columns of the parent into the table."},
    {{"TABLESPACE"}, AT_ANY, "TABLESPACE", "Leave it out: the store places the rows."},
    {{"ON", "COMMIT"}, AT_TABLE, "ON COMMIT", "There are no temporary tables."},
    {{"EXCLUDE"}, AT_TABLE, "EXCLUDE", "UNIQUE is."},
    {{"USING"}, AT_TABLE, "USING", "Leave it out: there is one kind of table."},
    {{"INCLUDE", "("}, AT_ANY, "INCLUDE", "Put the columns at the end of the index's list."},
    {{"NULLS", "NOT", "DISTINCT"}, AT_ANY, "NULLS NOT DISTINCT", "Declare the column NOT NULL."},
    {{"EXTRACT", "("}, AT_ANY, "EXTRACT", "strftime('%Y', x) and its like take parts of a time."},
    {{"AT", "TIME", "ZONE"}, AT_ANY, "AT TIME ZONE", "Times are UTC; datetime(x, '+2 hours')."},
    {{"INTERVAL"}, AT_ANY, "INTERVAL", "datetime(x, '+2 hours') adds to a time."},
    {{"LATERAL"}, AT_ANY, "LATERAL", "Write a subquery in the list of columns."},
    {{"ARRAY"}, AT_ANY, "ARRAY", "Arrays are not there; json_array(..) is."},
    {{"ANY", "("}, AT_ANY, "ANY (..)", "Write IN (..)."},
    {{"SOME", "("}, AT_ANY, "SOME (..)", "Write IN (..)."},
    {{"ALL", "("}, AT_ANY, "ALL (..)", "Write NOT IN (..) or a subquery with max() or min()."},
    {{"DISTINCT", "ON", "("}, AT_ANY, "DISTINCT ON", "Use row_number() OVER (PARTITION BY ..)."},
    {{"SIMILAR", "TO"}, AT_ANY, "SIMILAR TO", "LIKE and GLOB are."},
    {{"OVERLAY", "("}, AT_ANY, "OVERLAY", "substr(x, from, count) is."},
    {{"POSITION", "("}, AT_ANY, "POSITION", "instr(x, y) is."},
    {{"SUBSTRING", "("}, AT_ANY, "SUBSTRING (x FROM y)", "substr(x, from, count) is."},
    {{"TRIM", "("}, AT_ANY, "this form of TRIM", "trim(x, chars), ltrim and rtrim are."},
    {{"TABLESAMPLE"}, AT_ANY, "TABLESAMPLE", "ORDER BY random() LIMIT n is."},
    {{"GROUPING", "SETS"}, AT_ANY, "GROUPING SETS", "Use UNION ALL of several GROUP BY."},
    {{"INTO"}, AT_SELECT, "SELECT INTO", "Write CREATE TABLE t AS SELECT .."},
    {{"OVERRIDING"}, AT_ANY, "OVERRIDING", "Leave it out: given ids are taken."},
    {{"WITH", "TIES"}, AT_ANY, "WITH TIES", "rank() OVER (ORDER BY ..) <= n is."},
    {{"(", "DELETE"}, AT_ANY, "DELETE inside WITH", "Use RETURNING, in one transaction."},
    {{"(", "INSERT"}, AT_ANY, "INSERT inside WITH", "Use RETURNING, in one transaction."},
    {{"(", "UPDATE"}, AT_ANY, "UPDATE inside WITH", "Use RETURNING, in one transaction."},
};

static bool words_at(const struct sql_tokens *t, const struct sql_stmt *st, size_t i,
                     const struct foreign_words *f)
{
    if ((f->at == AT_FIRST && i != st->first) || (f->at == AT_SELECT && st->verb != VERB_SELECT) ||
        (f->at == AT_TABLE && st->verb != VERB_CREATE_TABLE)) {
        return false;
    }
    for (size_t k = 0; k < 3 && f->words[k] != NULL; k++) {
        bool same = f->words[k][0] == '(' ? sql_token_op(t, i + k, "(")
                                          : sql_token_is(t, i + k, f->words[k]);
        if (i + k >= st->last || !same) {
            return false;
        }
    }
    return true;
}

/* "no such column: INTERVAL" of INTERVAL '1 day', "no such function: ANY" of ANY (..): SQLite took
 * the word for a name, with an alias or a list behind it. */
static bool taken_for_a_name(const struct sql_session *s, size_t i)
{
    struct slice word = sql_token_text(&s->tokens, i);
    const char *colon = strrchr(s->err.message, ':');
    bool same = colon != NULL && strlen(colon) == word.size + 2 &&
                strncasecmp(colon + 2, (const char *)word.data, word.size) == 0;
    enum sql_token_kind next = i + 1 < s->tokens.count ? s->tokens.t[i + 1].kind : TOK_WORD;
    return same &&
           (next == TOK_STRING || next == TOK_QUOTED || sql_token_op(&s->tokens, i + 1, "("));
}

void sql_explain_syntax(struct sql_session *s, const struct sql_stmt *st)
{
    const struct sql_tokens *t = &s->tokens;
    bool syntax = strstr(s->err.message, "syntax error") != NULL;
    if (!syntax && strcmp(s->err.code, "42703") != 0 && strcmp(s->err.code, "42883") != 0 &&
        strcmp(s->err.code, "42P01") != 0) {
        return;
    }
    size_t from = st->first;
    size_t to = st->last;
    if (s->err.offset > 0) { /* SQLite stumbles at the words or a little behind them */
        while (to > from + 1 && t->t[to - 1].start > s->err.offset - 1) {
            to--;
        }
        from = to > from + 6 ? to - 6 : from;
    }
    for (size_t i = from; i < to; i++) {
        for (size_t k = 0; k < sizeof foreign / sizeof foreign[0]; k++) {
            if (words_at(t, st, i, &foreign[k]) && (syntax || taken_for_a_name(s, i))) {
                sql_error_set(&s->err, "0A000", "%s is not supported", foreign[k].what);
                sql_error_hint(&s->err, "%s", foreign[k].hint);
                s->err.offset = t->t[i].start + 1;
                return;
            }
        }
    }
}
