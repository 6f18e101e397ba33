/* PostgreSQL's spellings into SQLite's, and literals into parameters: one pass over a statement's
 * tokens that copies the source between them as it is; see split.h. */
#include "base/alloc.h"
#include "sql/split.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NORMALISE_LITERALS_MAX 64
#define NORMALISE_BYTES_MAX    4096
#define PARAM_MAX              1000

void sql_rewritten_init(struct sql_rewritten *r)
{
    memset(r, 0, sizeof *r);
}

void sql_rewritten_deinit(struct sql_rewritten *r)
{
    buf_deinit(&r->text);
    span_free(r->literals);
    memset(r, 0, sizeof *r);
}

struct rewriter {
    struct sql_tokens *t;
    const struct sql_stmt *s;
    struct sql_rewritten *out;
    struct span_error *err;
    size_t copied; /* source bytes already in out */
    bool normalise;
    bool in_values;    /* inside WHERE, SET or VALUES: literals may become parameters */
    size_t cast_end;   /* token after the last cast: another one there casts all of it */
    size_t cast_start; /* its operand's first token */
    size_t cast_out;   /* where its CAST( stands */
    bool plain;        /* the token before is in out as it was in the source */
};

/* Source up to token i, then marks where the token begins. */
static void copy_to(struct rewriter *w, size_t upto)
{
    if (upto > w->copied) {
        buf_append(&w->out->text, w->t->src.data + w->copied, upto - w->copied);
        w->copied = upto;
    }
}

/* Leaves the source up to byte `upto` out. */
static void skip_to(struct rewriter *w, size_t upto)
{
    if (upto > w->copied) {
        w->copied = upto;
    }
}

static void replace_token(struct rewriter *w, size_t i, const char *text)
{
    buf_append_str(&w->out->text, text);
    skip_to(w, w->t->t[i].end);
}

static void insert_at(struct rewriter *w, size_t at, const char *text)
{
    size_t n = strlen(text);
    size_t tail = w->out->text.size - at;
    buf_grow(&w->out->text, n);
    memmove(w->out->text.data + at + n, w->out->text.data + at, tail);
    memcpy(w->out->text.data + at, text, n);
}

/* First token of the operand that ends at token i (for x::type). */
static size_t operand_start(const struct sql_tokens *t, size_t i, size_t first)
{
    if (sql_token_op(t, i, ")")) {
        uint32_t depth = t->t[i].depth;
        while (i > first) {
            i--;
            if (t->t[i].depth == depth && sql_token_op(t, i, "(")) {
                break;
            }
        }
        static const char *const not_function[] = {
            "AND",  "OR",   "NOT",  "IN",   "SELECT", "WHERE",  "ON",    "BY",  "VALUES",
            "THEN", "ELSE", "WHEN", "CASE", "AS",     "HAVING", "LIMIT", "SET", NULL};
        bool function = i > first && t->t[i - 1].kind == TOK_WORD;
        for (const char *const *k = not_function; function && *k != NULL; k++) {
            function = !sql_token_is(t, i - 1, *k);
        }
        i -= function ? 1 : 0;
    }
    while (i >= first + 2 && sql_token_op(t, i - 1, ".")) {
        i -= 2;
    }
    return i;
}

struct type_map {
    const char *from;
    const char *to;
};

static const char *cast_type(const char *name)
{
    static const struct type_map map[] = {
        {"int", "INTEGER"},      {"int2", "INTEGER"},    {"int4", "INTEGER"},
        {"int8", "INTEGER"},     {"integer", "INTEGER"}, {"bigint", "INTEGER"},
        {"smallint", "INTEGER"}, {"oid", "INTEGER"},     {"bool", "INTEGER"},
        {"boolean", "INTEGER"},  {"float", "REAL"},      {"float4", "REAL"},
        {"float8", "REAL"},      {"real", "REAL"},       {"double", "REAL"},
        {"numeric", "NUMERIC"},  {"decimal", "NUMERIC"}, {"text", "TEXT"},
        {"varchar", "TEXT"},     {"char", "TEXT"},       {"character", "TEXT"},
        {"bpchar", "TEXT"},      {"name", "TEXT"},       {"json", "TEXT"},
        {"jsonb", "TEXT"},       {"uuid", "TEXT"},       {"date", "TEXT"},
        {"time", "TEXT"},        {"timestamp", "TEXT"},  {"timestamptz", "TEXT"},
        {"bytea", "BLOB"},       {"blob", "BLOB"},
    };
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++) {
        if (strcasecmp(map[i].from, name) == 0) {
            return map[i].to;
        }
    }
    return NULL;
}

/* x::type at token i ("::"); returns the token after the type, 0 with err set if it cannot be done.
 */
static size_t rewrite_cast(struct rewriter *w, size_t i)
{
    struct sql_tokens *t = w->t;
    size_t type = i + 1;
    if (sql_token_is(t, type, "pg_catalog") && sql_token_op(t, type + 1, ".")) {
        type += 2;
    }
    if (i == w->s->first || type >= w->s->last) {
        (void)span_fail(w->err, SPAN_INVALID, "syntax error at or near \"::\"");
        return 0;
    }
    struct buf name = {0};
    sql_token_name(t, type, &name);
    const char *to = cast_type(buf_cstr(&name));
    if (to == NULL) {
        (void)span_fail(w->err, SPAN_UNSUPPORTED, "type \"%s\" in a cast is not supported",
                        buf_cstr(&name));
        buf_deinit(&name);
        return 0;
    }
    size_t next = type + 1;
    static const char *const more[] = {"precision", "varying", "without", "with",
                                       "time",      "zone",    NULL};
    for (const char *const *k = more; *k != NULL;) {
        if (sql_token_is(t, next, *k)) {
            next++;
            k = more;
        } else {
            k++;
        }
    }
    if (sql_token_op(t, next, "(")) {
        while (next < w->s->last && !sql_token_op(t, next, ")")) {
            next++;
        }
        if (next == w->s->last) {
            (void)span_fail(w->err, SPAN_INVALID, "syntax error: \"(\" in a cast is not closed");
            buf_deinit(&name);
            return 0;
        }
        next++;
    }
    if (next < w->s->last && slice_eq(sql_token_text(t, next), slice_str("[]"))) {
        (void)span_fail(w->err, SPAN_UNSUPPORTED, "arrays are not supported");
        buf_deinit(&name);
        return 0;
    }
    bool chained = w->cast_end == i && w->cast_end != 0;
    size_t start = chained ? w->cast_start : operand_start(t, i - 1, w->s->first);
    size_t at = chained ? w->cast_out : t->t[start].out;
    w->cast_end = next;
    w->cast_start = start;
    w->cast_out = at;
    insert_at(w, at, "CAST(");
    for (size_t k = start; k < i; k++) {
        t->t[k].out += 5;
    }
    buf_printf(&w->out->text, " AS %s)", to);
    for (size_t k = i; k < next; k++) {
        t->t[k].out = (uint32_t)w->out->text.size;
    }
    skip_to(w, t->t[next - 1].end);
    buf_deinit(&name);
    return next;
}

static bool rewrite_param(struct rewriter *w, size_t i)
{
    struct slice s = sql_token_text(w->t, i);
    if (s.data[0] == '$' && s.size > 1 && isdigit(s.data[1])) {
        unsigned long n = strtoul((const char *)s.data + 1, NULL, 10);
        if (n == 0 || n > PARAM_MAX) {
            (void)span_fail(w->err, SPAN_NOT_FOUND, "there is no parameter $%lu", n);
            return false;
        }
        w->out->param_max = n > w->out->param_max ? (unsigned)n : w->out->param_max;
        buf_printf(&w->out->text, "?%lu", n);
        skip_to(w, w->t->t[i].end);
        return true;
    }
    (void)span_fail(w->err, SPAN_INVALID, "parameters are written $1, $2 ...; \"%.*s\" is not one",
                    (int)s.size, (const char *)s.data);
    return false;
}

static void rewrite_string(struct rewriter *w, size_t i)
{
    struct slice s = sql_token_text(w->t, i);
    if (s.data[0] == '\'') {
        return; /* SQLite's own spelling */
    }
    struct buf v = {0};
    sql_token_name(w->t, i, &v);
    buf_append_byte(&w->out->text, '\'');
    for (size_t k = 0; k < v.size; k++) {
        if (v.data[k] == '\'') {
            buf_append_byte(&w->out->text, '\'');
        }
        buf_append_byte(&w->out->text, v.data[k]);
    }
    buf_append_byte(&w->out->text, '\'');
    skip_to(w, w->t->t[i].end);
    buf_deinit(&v);
}

static void add_literal(struct rewriter *w, size_t i)
{
    struct sql_rewritten *r = w->out;
    if (r->literal_count == r->literal_cap) {
        r->literal_cap = r->literal_cap == 0 ? 8 : r->literal_cap * 2;
        r->literals = span_realloc(r->literals, r->literal_cap * sizeof *r->literals);
    }
    r->literals[r->literal_count++] =
        (struct sql_literal){.kind = w->t->t[i].kind, .src = sql_token_text(w->t, i)};
    char num[16];
    snprintf(num, sizeof num, "?%zu", r->literal_count);
    replace_token(w, i, num);
}

/* May this literal become a parameter? Only where SQLite treats both alike. */
static bool can_normalise(const struct rewriter *w, size_t i)
{
    if (!w->normalise || !w->in_values) {
        return false;
    }
    const struct sql_tokens *t = w->t;
    if (i == w->s->first || (t->t[i].kind == TOK_NUMBER && t->t[i].end - t->t[i].start > 18)) {
        return false; /* -9223372036854775808 is an integer only as text */
    }
    static const char *const ops[] = {
        "=", "<", ">", "<=", ">=", "<>", "!=", "==", ",", "(", "+", "-", "*", NULL};
    for (const char *const *k = ops; *k != NULL; k++) {
        if (sql_token_op(t, i - 1, *k)) {
            return true;
        }
    }
    return sql_token_is(t, i - 1, "BETWEEN") || sql_token_is(t, i - 1, "AND");
}

static bool word_is(struct slice s, const char *w)
{
    return s.size == strlen(w) && strncasecmp((const char *)s.data, w, s.size) == 0;
}

static bool is_count(const struct rewriter *w, size_t i)
{
    return i < w->s->last && (w->t->t[i].kind == TOK_NUMBER || w->t->t[i].kind == TOK_PARAM);
}

static size_t after_rows(const struct rewriter *w, size_t i)
{
    return i < w->s->last && (sql_token_is(w->t, i, "ROW") || sql_token_is(w->t, i, "ROWS")) ? i + 1
                                                                                             : i;
}

static bool put_count(struct rewriter *w, size_t i)
{
    if (w->t->t[i].kind == TOK_PARAM) {
        return rewrite_param(w, i);
    }
    buf_append_slice(&w->out->text, sql_token_text(w->t, i));
    return true;
}

/* OFFSET m [ROWS] and behind it FETCH FIRST [n] ROWS ONLY, LIMIT n or nothing: SQLite wants LIMIT
 * n OFFSET m. At token i; the token after it all, 0 where it is something else. *bad: a parameter
 * that cannot be. */
static size_t rewrite_offset(struct rewriter *w, size_t i, bool *bad)
{
    const struct sql_tokens *t = w->t;
    size_t count = 0; /* its token; 0: all rows */
    bool one = false;
    if (!is_count(w, i + 1)) {
        return 0;
    }
    size_t n = after_rows(w, i + 2);
    if (sql_token_is(t, n, "FETCH") &&
        (sql_token_is(t, n + 1, "FIRST") || sql_token_is(t, n + 1, "NEXT"))) {
        one = !is_count(w, n + 2);
        count = one ? 0 : n + 2;
        n = after_rows(w, one ? n + 2 : n + 3);
        if (n >= w->s->last || !sql_token_is(t, n, "ONLY")) {
            return 0;
        }
        n++;
    } else if (sql_token_is(t, n, "LIMIT") && is_count(w, n + 1)) {
        count = n + 1;
        n += 2;
    }
    if (n < w->s->last && t->t[n].kind != TOK_WORD) {
        return 0; /* the count goes on: an expression */
    }
    buf_append_str(&w->out->text, "LIMIT ");
    buf_append_str(&w->out->text, one ? "1" : count == 0 ? "-1" : "");
    *bad = count != 0 && !put_count(w, count);
    buf_append_str(&w->out->text, " OFFSET ");
    *bad = *bad || !put_count(w, i + 1);
    for (size_t k = i; k < n; k++) {
        w->t->t[k].out = (uint32_t)w->out->text.size;
    }
    skip_to(w, t->t[n - 1].end);
    return n;
}

/* Words that mean something else in SQLite. Returns how many tokens were used up (0: none). *bad:
 * the error is set. */
static size_t rewrite_word(struct rewriter *w, size_t i, bool *bad)
{
    struct sql_tokens *t = w->t;
    struct slice s = sql_token_text(t, i);
    bool dot = sql_token_op(t, i + 1, ".");
    bool after_dot = i > w->s->first && sql_token_op(t, i - 1, ".");
    if (dot && !after_dot && i + 2 < w->s->last) {
        /* public.t and main.t are t; pg_catalog.f( is f(. Other schemas are SQLite's to refuse. */
        bool call = sql_token_op(t, i + 3, "(");
        if (word_is(s, "public") || word_is(s, "main") || (word_is(s, "pg_catalog") && call)) {
            skip_to(w, t->t[i + 2].start);
            t->t[i + 1].out = (uint32_t)w->out->text.size;
            return 2;
        }
    }
    if (dot || after_dot) {
        return 0;
    }
    static const char *const calls[] = {"current_user",    "session_user",   "current_role",
                                        "current_catalog", "current_schema", NULL};
    if ((s.data[0] | 0x20) == 'c' || (s.data[0] | 0x20) == 's') {
        for (const char *const *k = calls; *k != NULL; k++) {
            if (word_is(s, *k) && !sql_token_op(t, i + 1, "(")) {
                copy_to(w, t->t[i].end);
                buf_append_str(&w->out->text, "()");
                return 1;
            }
        }
    }
    if (word_is(s, "ilike")) {
        replace_token(w, i, "LIKE");
        return 1;
    }
    if (word_is(s, "limit") && sql_token_is(t, i + 1, "ALL")) {
        replace_token(w, i, "LIMIT -1");
        skip_to(w, t->t[i + 1].end);
        t->t[i + 1].out = (uint32_t)w->out->text.size;
        return 2;
    }
    if (word_is(s, "offset") && i > w->s->first && t->t[i].depth == t->t[w->s->first].depth &&
        (w->s->limit == 0 || w->s->limit > i) && w->s->verb == VERB_SELECT) {
        size_t end = rewrite_offset(w, i, bad);
        if (end != 0) {
            return end - i;
        }
        if (w->s->limit == 0) {
            replace_token(w, i, "LIMIT -1 OFFSET");
            return 1;
        }
    }
    if (word_is(s, "fetch") &&
        (sql_token_is(t, i + 1, "FIRST") || sql_token_is(t, i + 1, "NEXT"))) {
        bool one = i + 2 >= w->s->last ||
                   !(t->t[i + 2].kind == TOK_NUMBER || t->t[i + 2].kind == TOK_PARAM);
        replace_token(w, i, one ? "LIMIT 1" : "LIMIT ");
        if (!one) {
            skip_to(w, t->t[i + 2].start);
            copy_to(w, t->t[i + 2].end);
        }
        size_t n = i + (one ? 2 : 3);
        while (n < w->s->last && (sql_token_is(t, n, "ROW") || sql_token_is(t, n, "ROWS") ||
                                  sql_token_is(t, n, "ONLY"))) {
            n++;
        }
        skip_to(w, t->t[n - 1].end);
        return n - i;
    }
    return 0;
}

/* WHERE, SET and VALUES switch literals on; what follows them at the same depth switches off. */
static void track_clause(struct rewriter *w, size_t i)
{
    static const char *const off[] = {"ORDER",     "GROUP", "HAVING", "RETURNING", "SELECT",
                                      "UNION",     "FROM",  "LIMIT",  "WINDOW",    "EXCEPT",
                                      "INTERSECT", "CAST",  NULL};
    const struct sql_tokens *t = w->t;
    if (sql_token_is(t, i, "WHERE") || sql_token_is(t, i, "SET") || sql_token_is(t, i, "VALUES")) {
        w->in_values = true;
        return;
    }
    for (const char *const *k = off; w->in_values && *k != NULL; k++) {
        if (sql_token_is(t, i, *k)) {
            w->in_values = false;
        }
    }
    if (sql_token_is(t, i, "ON") && sql_token_is(t, i + 1, "CONFLICT")) {
        w->in_values = false;
    }
}

/* Statements whose literals may become parameters: one verb, no subquery (whose columns would keep
 * or lose names), not too many literals, no parameters already. */
static bool worth_normalising(const struct sql_tokens *t, const struct sql_stmt *s)
{
    if (s->with || s->last == s->first ||
        t->t[s->last - 1].end - t->t[s->first].start > NORMALISE_BYTES_MAX) {
        return false;
    }
    if (s->verb != VERB_SELECT && s->verb != VERB_INSERT && s->verb != VERB_UPDATE &&
        s->verb != VERB_DELETE) {
        return false;
    }
    size_t literals = 0;
    for (size_t i = s->first; i < s->last; i++) {
        switch (t->t[i].kind) {
        case TOK_PARAM:
            return false;
        case TOK_NUMBER:
        case TOK_STRING:
        case TOK_BLOB:
            literals++;
            break;
        case TOK_WORD:
            if (i != s->main && sql_token_is(t, i, "SELECT")) {
                return false;
            }
            break;
        case TOK_QUOTED:
        case TOK_OP:
            break;
        }
    }
    return literals > 0 && literals <= NORMALISE_LITERALS_MAX;
}

static size_t rewrite_token(struct rewriter *w, size_t i)
{
    struct sql_tokens *t = w->t;
    switch (t->t[i].kind) {
    case TOK_PARAM:
        return rewrite_param(w, i) ? 1 : 0;
    case TOK_NUMBER:
    case TOK_BLOB:
        if (can_normalise(w, i)) {
            add_literal(w, i);
        }
        return 1;
    case TOK_STRING:
        if (can_normalise(w, i)) {
            add_literal(w, i);
        } else {
            rewrite_string(w, i);
        }
        return 1;
    case TOK_WORD: {
        if (w->normalise) {
            track_clause(w, i);
        }
        bool bad = false;
        size_t n = rewrite_word(w, i, &bad);
        return bad ? 0 : n == 0 ? 1 : n;
    }
    case TOK_OP:
        if (sql_token_op(t, i, "::")) {
            size_t next = rewrite_cast(w, i);
            return next == 0 ? 0 : next - i;
        }
        return 1;
    case TOK_QUOTED:
        return 1;
    }
    return 1;
}

/* Whether a and b, side by side, would read as one token or as another one. */
static bool would_merge(uint8_t a, uint8_t b)
{
    if (a == b && strchr("'\"`", a) != NULL) {
        return true; /* a doubled quote */
    }
    bool word = isalnum(a) || a == '_' || a == '$' || a >= 0x80;
    return word && (isalnum(b) || b == '_' || b == '$' || b >= 0x80 || b == '.' || b == '\'');
}

/* Tokens that touch in the source stay two where one of them was replaced: 'a'$$b$$ is not 'a''b',
 * nor 'x'5 parameter ?15. What was not changed stays as it is, for SQLite to judge. */
static void keep_apart(struct rewriter *w, size_t i, size_t used, size_t at)
{
    const struct buf *text = &w->out->text;
    if (at == 0 || at >= text->size || !would_merge(text->data[at - 1], text->data[at])) {
        return;
    }
    insert_at(w, at, " ");
    for (size_t k = i; k < i + used; k++) {
        w->t->t[k].out++;
    }
}

/* One token, and what it uses up; 0 with err set if that cannot be done. */
static size_t rewrite_one(struct rewriter *w, size_t i)
{
    struct sql_token *token = &w->t->t[i];
    copy_to(w, token->start);
    size_t at = w->out->text.size;
    token->out = (uint32_t)at;
    w->err->code = SPAN_OK;
    bool cast = sql_token_op(w->t, i, "::");
    size_t used = rewrite_token(w, i);
    if (used == 0) {
        return 0;
    }
    bool plain = w->copied == token->start;
    if (plain) {
        copy_to(w, token->end);
    }
    if (!cast && !(plain && w->plain)) {
        keep_apart(w, i, used, at);
    }
    w->plain = plain;
    return used;
}

/* Tokens [i, end) are not there; what stands around them stays apart. */
static void leave_out(struct rewriter *w, size_t i, size_t end)
{
    copy_to(w, w->t->t[i].start);
    buf_append_byte(&w->out->text, ' ');
    for (; i < end; i++) {
        w->t->t[i].out = (uint32_t)w->out->text.size;
    }
    skip_to(w, w->t->t[end].start);
    w->plain = false;
}

span_status sql_stmt_rewrite(struct sql_tokens *t, const struct sql_stmt *s, bool normalise,
                             struct sql_rewritten *out, struct span_error *err)
{
    buf_clear(&out->text);
    out->literal_count = 0;
    out->param_max = 0;
    struct rewriter w = {.t = t, .s = s, .out = out, .err = err};
    w.normalise = normalise && worth_normalising(t, s);
    out->normalised = w.normalise;
    if (s->first == s->last) {
        return SPAN_OK;
    }
    w.copied = t->t[s->first].start;
    bool behind = s->for_update != 0 && s->for_end < s->last; /* FOR UPDATE LIMIT 1 */
    size_t last = s->for_update != 0 && !behind ? s->for_update : s->last;
    for (size_t i = s->first; i < last;) {
        if (behind && i == s->for_update) {
            leave_out(&w, i, s->for_end);
            i = s->for_end;
        }
        size_t used = rewrite_one(&w, i);
        if (used == 0) {
            return err->code;
        }
        i += used;
    }
    copy_to(&w, t->t[last - 1].end);
    for (size_t i = last; i < s->last; i++) {
        t->t[i].out = (uint32_t)out->text.size;
    }
    return SPAN_OK;
}

size_t sql_source_offset(const struct sql_tokens *t, const struct sql_stmt *s, size_t out_offset)
{
    size_t best = s->first;
    for (size_t i = s->first; i < s->last; i++) {
        if (t->t[i].out <= out_offset) {
            best = i;
        }
    }
    if (best >= t->count) {
        return 0;
    }
    size_t off = t->t[best].start + (out_offset - t->t[best].out);
    return off < t->t[best].end ? off : t->t[best].start;
}
