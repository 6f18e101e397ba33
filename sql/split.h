/* Text work on SQL: tokens by SQLite's rules, several statements in one message, what kind of
 * statement each is and where its top-level clauses lie, and PostgreSQL's spellings turned into
 * SQLite's. It knows no schema. SQLite itself still parses every statement, so what is not
 * understood here passes through and gets SQLite's own error.
 *
 * PostgreSQL spellings understood: $1 (mapped by number to ?1, never by order of appearance),
 * x::type, E'..', $tag$..$tag$, public.t, pg_catalog.f(), FOR UPDATE / FOR SHARE, also before
 * LIMIT, ILIKE, LIMIT ALL, OFFSET alone, FETCH FIRST, current_user and friends without parentheses,
 * an alias without AS after UPDATE and DELETE targets.
 *
 * Literals in WHERE, SET and VALUES become parameters ?1 .. ?n when asked for (normalisation), so
 * that statements that differ only in literals share one prepared statement. */
#ifndef SPAN_SQL_SPLIT_H
#define SPAN_SQL_SPLIT_H

#include "base/buf.h"
#include "base/status.h"

enum sql_token_kind {
    TOK_WORD,   /* bare identifier or keyword */
    TOK_QUOTED, /* "x", [x] or `x` */
    TOK_STRING, /* 'x', E'x', $$x$$ */
    TOK_BLOB,   /* x'00' */
    TOK_NUMBER,
    TOK_PARAM, /* $1, ?, ?1, :a, @a */
    TOK_OP,
};

struct sql_token {
    enum sql_token_kind kind;
    uint32_t start; /* byte offsets in the source */
    uint32_t end;
    uint32_t depth; /* parentheses around it; a parenthesis has the depth outside */
    uint32_t out;   /* where it begins in the rewritten text; set by sql_stmt_rewrite */
};

struct sql_tokens {
    struct slice src;
    struct sql_token *t;
    size_t count;
    size_t cap;
};

enum sql_verb {
    VERB_EMPTY,
    VERB_SELECT, /* also VALUES and WITH .. SELECT */
    VERB_INSERT, /* also REPLACE */
    VERB_UPDATE,
    VERB_DELETE,
    VERB_CREATE_TABLE,
    VERB_CREATE_INDEX,
    VERB_CREATE_VIEW,
    VERB_CREATE_OTHER,
    VERB_DROP_TABLE,
    VERB_DROP_INDEX,
    VERB_DROP_VIEW,
    VERB_DROP_OTHER,
    VERB_ALTER,
    VERB_TRUNCATE,
    VERB_BEGIN,
    VERB_COMMIT,
    VERB_ROLLBACK,
    VERB_SAVEPOINT,
    VERB_RELEASE,
    VERB_SET,
    VERB_RESET,
    VERB_SHOW,
    VERB_EXPLAIN,
    VERB_DISCARD,
    VERB_DEALLOCATE,
    VERB_NOOP,        /* VACUUM, ANALYZE, REINDEX, CHECKPOINT: accepted with a notice */
    VERB_UNSUPPORTED, /* known, refused with 0A000 */
    VERB_OTHER,       /* not known: SQLite says what is wrong */
};

/* One statement inside a token array, after sql_stmt_parse. Token indexes are into the array; 0
 * means "not there" for every clause except first. */
struct sql_stmt {
    enum sql_verb verb;
    size_t first; /* tokens [first, last) */
    size_t last;
    size_t main; /* the verb's token: after WITH .. and EXPLAIN */
    bool with;
    /* target of DML: schema (or 0), name token, alias token (or 0), first token after all that */
    size_t target_schema;
    size_t target;
    size_t alias;
    size_t after_target;

    enum { OR_NONE, OR_ABORT, OR_FAIL, OR_IGNORE, OR_REPLACE, OR_ROLLBACK } conflict;

    size_t columns; /* INSERT: the '(' of the column list */
    size_t values;  /* VALUES */
    size_t select;  /* INSERT .. SELECT / WITH */
    size_t dflt;    /* DEFAULT VALUES */
    size_t on_conflict;
    size_t set;
    size_t from;
    size_t where;
    size_t order;
    size_t limit;
    size_t returning;
    size_t for_update; /* SELECT .. FOR UPDATE | SHARE: dropped from the rewritten text */
    size_t for_end;    /* the token after that clause: LIMIT and its like, or the statement's end */
    size_t for_wait;   /* NOWAIT or SKIP LOCKED in it */
    bool for_share;
    size_t values_rows; /* tuples after VALUES */
};

/* A literal that became parameter ?(its index + 1). */
struct sql_literal {
    enum sql_token_kind kind; /* TOK_NUMBER, TOK_STRING or TOK_BLOB */
    struct slice src;
};

struct sql_rewritten {
    struct buf text;              /* NUL-terminated via buf_cstr */
    struct sql_literal *literals; /* only when normalised */
    size_t literal_count;
    size_t literal_cap;
    unsigned param_max; /* highest $n, 0: none */
    bool normalised;
};

void sql_tokens_init(struct sql_tokens *t);
void sql_tokens_deinit(struct sql_tokens *t);
/* Tokens of a whole message. INVALID with *bad_at (byte offset) for an unterminated string or
 * comment, or a byte SQL does not know. The tokens point into src. */
span_status SPAN_CHECKED sql_tokenize(struct slice src, struct sql_tokens *out, size_t *bad_at);
/* The statement that begins at token *at; moves *at behind its ';'. False at the end. Empty
 * statements
 * (";;") come out with verb VERB_EMPTY. */
bool sql_stmt_next(const struct sql_tokens *t, size_t *at, struct sql_stmt *s);

struct slice sql_token_text(const struct sql_tokens *t, size_t i);
/* Case-insensitive comparison with a bare word. False beyond the end. */
bool sql_token_is(const struct sql_tokens *t, size_t i, const char *word);
/* Is token i an operator with exactly that text? */
bool sql_token_op(const struct sql_tokens *t, size_t i, const char *op);
/* Identifier without quotes, or the value of a string; NUL-terminated into out (cleared first). */
void sql_token_name(const struct sql_tokens *t, size_t i, struct buf *out);
/* Value of a string or blob literal in any spelling. */
void sql_literal_value(const struct sql_literal *l, struct buf *out);

void sql_rewritten_init(struct sql_rewritten *r);
void sql_rewritten_deinit(struct sql_rewritten *r);
/* SQLite's text of a statement; fills the tokens' `out`. UNSUPPORTED or INVALID with a text in err.
 */
span_status SPAN_CHECKED sql_stmt_rewrite(struct sql_tokens *t, const struct sql_stmt *s,
                                          bool normalise, struct sql_rewritten *out,
                                          struct span_error *err);
/* Offset in the rewritten text back to a byte offset in the source. */
size_t sql_source_offset(const struct sql_tokens *t, const struct sql_stmt *s, size_t out_offset);

/* "name" with quotes doubled. */
void sql_quote_ident(struct buf *out, const char *name);

#endif
