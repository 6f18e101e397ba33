/* Tokens, statements and their clauses; see split.h. Rewriting is in rewrite.c. */
#include "sql/split.h"

#include "base/alloc.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

void sql_tokens_init(struct sql_tokens *t)
{
    memset(t, 0, sizeof *t);
}

void sql_tokens_deinit(struct sql_tokens *t)
{
    span_free(t->t);
    memset(t, 0, sizeof *t);
}

static void add_token(struct sql_tokens *t, enum sql_token_kind kind, size_t start, size_t end,
                      size_t depth)
{
    if (t->count == t->cap) {
        t->cap = t->cap == 0 ? 64 : t->cap * 2;
        t->t = span_realloc(t->t, t->cap * sizeof *t->t);
    }
    t->t[t->count++] = (struct sql_token){
        .kind = kind, .start = (uint32_t)start, .end = (uint32_t)end, .depth = (uint32_t)depth};
}

static bool id_start(unsigned char c)
{
    return isalpha(c) || c == '_' || c >= 0x80;
}

static bool id_part(unsigned char c)
{
    return isalnum(c) || c == '_' || c == '$' || c >= 0x80;
}

/* End of a quoted token whose opening quote is at p; doubled quotes stay inside. n: not terminated.
 */
static size_t quoted_end(const uint8_t *s, size_t n, size_t p, unsigned char close, bool backslash)
{
    for (size_t i = p + 1; i < n; i++) {
        if (backslash && s[i] == '\\') {
            i++;
            continue;
        }
        if (s[i] == close) {
            if (close != ']' && i + 1 < n && s[i + 1] == close) {
                i++;
                continue;
            }
            return i + 1;
        }
    }
    return 0;
}

/* $tag$ ... $tag$ at p: its end, 0 when not terminated, p when it is no dollar quote at all. */
static size_t dollar_end(const uint8_t *s, size_t n, size_t p)
{
    size_t q = p + 1;
    while (q < n && (id_start(s[q]) || isdigit(s[q])) && !(q == p + 1 && isdigit(s[q]))) {
        q++;
    }
    if (q >= n || s[q] != '$') {
        return p;
    }
    size_t tag = q + 1 - p;
    for (size_t i = q + 1; i + tag <= n; i++) {
        if (s[i] == '$' && memcmp(s + i, s + p, tag) == 0) {
            return i + tag;
        }
    }
    return 0;
}

static size_t number_end(const uint8_t *s, size_t n, size_t p)
{
    if (s[p] == '0' && p + 2 < n && (s[p + 1] == 'x' || s[p + 1] == 'X') && isxdigit(s[p + 2])) {
        for (p += 2; p < n && isxdigit(s[p]); p++) {
        }
        return p;
    }
    while (p < n && isdigit(s[p])) {
        p++;
    }
    if (p < n && s[p] == '.') {
        for (p++; p < n && isdigit(s[p]); p++) {
        }
    }
    if (p < n && (s[p] == 'e' || s[p] == 'E')) {
        size_t q = p + 1;
        if (q < n && (s[q] == '+' || s[q] == '-')) {
            q++;
        }
        if (q < n && isdigit(s[q])) {
            for (p = q; p < n && isdigit(s[p]); p++) {
            }
        }
    }
    return p;
}

/* Skips spaces and comments; false for a block comment without an end. */
static bool skip_space(const uint8_t *s, size_t n, size_t *p)
{
    for (;;) {
        while (*p < n && (s[*p] == ' ' || (s[*p] >= '\t' && s[*p] <= '\r'))) {
            (*p)++;
        }
        if (*p + 1 < n && s[*p] == '-' && s[*p + 1] == '-') {
            while (*p < n && s[*p] != '\n') {
                (*p)++;
            }
            continue;
        }
        if (*p + 1 < n && s[*p] == '/' && s[*p + 1] == '*') {
            size_t q = *p + 2;
            while (q + 1 < n && !(s[q] == '*' && s[q + 1] == '/')) {
                q++;
            }
            if (q + 1 >= n) {
                return false;
            }
            *p = q + 2;
            continue;
        }
        return true;
    }
}

static size_t op_end(const uint8_t *s, size_t n, size_t p)
{
    static const char *const two[] = {"::", "||", "<=", ">=", "<>", "!=", "==", "<<", ">>", "->"};
    if (p + 2 < n && memcmp(s + p, "->>", 3) == 0) {
        return p + 3;
    }
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++) {
        if (p + 1 < n && memcmp(s + p, two[i], 2) == 0) {
            return p + 2;
        }
    }
    return strchr("()[],.;+-*/%&|~<>=!:", s[p]) != NULL && s[p] != 0 ? p + 1 : 0;
}

/* The end of x'..', 0 unless it holds pairs of hexadecimal digits only, as SQLite wants it: such a
 * literal may become a parameter, and then nobody would look at it again. */
static size_t blob_end(const uint8_t *s, size_t n, size_t p)
{
    size_t end = quoted_end(s, n, p + 1, '\'', false);
    for (size_t i = p + 2; i + 1 < end; i++) {
        if (!isxdigit(s[i])) {
            return 0;
        }
    }
    return end == 0 || (end - p - 3) % 2 != 0 ? 0 : end;
}

/* Kind and end of the token at p. end 0: bad. */
static enum sql_token_kind token_at(const uint8_t *s, size_t n, size_t p, size_t *end)
{
    unsigned char c = s[p];
    unsigned char next = p + 1 < n ? s[p + 1] : 0;
    if ((c == 'x' || c == 'X') && next == '\'') {
        *end = blob_end(s, n, p);
        return TOK_BLOB;
    }
    if ((c == 'e' || c == 'E') && next == '\'') {
        *end = quoted_end(s, n, p + 1, '\'', true);
        return TOK_STRING;
    }
    if (id_start(c)) {
        for (*end = p; *end < n && id_part(s[*end]); (*end)++) {
        }
        return TOK_WORD;
    }
    if (isdigit(c) || (c == '.' && isdigit(next))) {
        *end = number_end(s, n, p);
        return TOK_NUMBER;
    }
    switch (c) {
    case '\'':
        *end = quoted_end(s, n, p, '\'', false);
        return TOK_STRING;
    case '"':
    case '`':
        *end = quoted_end(s, n, p, c, false);
        return TOK_QUOTED;
    case '[':
        *end = quoted_end(s, n, p, ']', false);
        return TOK_QUOTED;
    case '$':
        if (!isdigit(next)) {
            *end = dollar_end(s, n, p);
            if (*end != p) {
                return TOK_STRING;
            }
        }
        /* fall through */
    case '?':
    case '@':
        for (*end = p + 1; *end < n && id_part(s[*end]) && (c != '?' || isdigit(s[*end])) &&
                           (c != '$' || !isdigit(next) || isdigit(s[*end]));
             (*end)++) {
        }
        return TOK_PARAM;
    default:
        break;
    }
    if (c == ':' && id_start(next)) {
        for (*end = p + 1; *end < n && id_part(s[*end]); (*end)++) {
        }
        return TOK_PARAM;
    }
    *end = op_end(s, n, p);
    return TOK_OP;
}

span_status sql_tokenize(struct slice src, struct sql_tokens *out, size_t *bad_at)
{
    out->src = src;
    out->count = 0;
    size_t depth = 0;
    for (size_t p = 0;;) {
        *bad_at = p;
        if (!skip_space(src.data, src.size, &p)) {
            return SPAN_INVALID;
        }
        if (p >= src.size) {
            return SPAN_OK;
        }
        *bad_at = p;
        size_t end = 0;
        enum sql_token_kind kind = token_at(src.data, src.size, p, &end);
        if (end == 0) {
            return SPAN_INVALID;
        }
        uint8_t c = src.data[p];
        if (kind == TOK_OP && c == ')' && depth > 0) {
            depth--;
        }
        if (kind == TOK_OP && c == ';') {
            depth = 0;
        }
        add_token(out, kind, p, end, depth);
        if (kind == TOK_OP && c == '(') {
            depth++;
        }
        p = end;
    }
}

struct slice sql_token_text(const struct sql_tokens *t, size_t i)
{
    if (i >= t->count) {
        return slice_of("", 0);
    }
    return slice_of(t->src.data + t->t[i].start, t->t[i].end - t->t[i].start);
}

bool sql_token_is(const struct sql_tokens *t, size_t i, const char *word)
{
    if (i >= t->count || t->t[i].kind != TOK_WORD) {
        return false;
    }
    struct slice s = sql_token_text(t, i);
    return strlen(word) == s.size && strncasecmp((const char *)s.data, word, s.size) == 0;
}

bool sql_token_op(const struct sql_tokens *t, size_t i, const char *op)
{
    return i < t->count && t->t[i].kind == TOK_OP && slice_eq(sql_token_text(t, i), slice_str(op));
}

static bool any_of(const struct sql_tokens *t, size_t i, const char *const *words)
{
    for (; *words != NULL; words++) {
        if (sql_token_is(t, i, *words)) {
            return true;
        }
    }
    return false;
}

static void unescape(struct slice s, unsigned char quote, bool backslash, struct buf *out)
{
    for (size_t i = 0; i < s.size; i++) {
        if (s.data[i] == quote) {
            i++; /* doubled */
        } else if (backslash && s.data[i] == '\\' && i + 1 < s.size) {
            static const char from[] = "nrtbf";
            static const char to[] = "\n\r\t\b\f";
            const char *e = strchr(from, s.data[++i]);
            buf_append_byte(out, e != NULL ? (uint8_t)to[e - from] : s.data[i]);
            continue;
        }
        if (i < s.size) {
            buf_append_byte(out, s.data[i]);
        }
    }
}

/* c is a hexadecimal digit: blob_end looked. */
static int hex_of(unsigned char c)
{
    return isdigit(c) ? c - '0' : tolower(c) - 'a' + 10;
}

static void text_value(enum sql_token_kind kind, struct slice s, struct buf *out)
{
    if (kind == TOK_BLOB && s.size >= 3) {
        for (size_t i = 2; i + 2 < s.size; i += 2) {
            buf_append_byte(out, (uint8_t)(hex_of(s.data[i]) << 4 | hex_of(s.data[i + 1])));
        }
        return;
    }
    if (s.size < 2 || (kind != TOK_STRING && kind != TOK_QUOTED)) {
        buf_append_slice(out, s);
        return;
    }
    uint8_t c = s.data[0];
    if (c == '$') {
        const uint8_t *tag = memchr(s.data + 1, '$', s.size - 1);
        size_t n = tag == NULL ? 1 : (size_t)(tag - s.data) + 1;
        buf_append(out, s.data + n, s.size - 2 * n);
        return;
    }
    bool backslash = c == 'e' || c == 'E';
    size_t skip = backslash ? 2 : 1;
    uint8_t close = backslash ? '\'' : c == '[' ? ']' : c;
    unescape(slice_of(s.data + skip, s.size - skip - 1), close, backslash, out);
}

void sql_token_name(const struct sql_tokens *t, size_t i, struct buf *out)
{
    buf_clear(out);
    if (i < t->count) {
        text_value(t->t[i].kind, sql_token_text(t, i), out);
    }
    (void)buf_cstr(out);
}

void sql_literal_value(const struct sql_literal *l, struct buf *out)
{
    buf_clear(out);
    text_value(l->kind, l->src, out);
}

void sql_quote_ident(struct buf *out, const char *name)
{
    buf_append_byte(out, '"');
    for (; *name != '\0'; name++) {
        if (*name == '"') {
            buf_append_byte(out, '"');
        }
        buf_append_byte(out, (uint8_t)*name);
    }
    buf_append_byte(out, '"');
}

static bool is_name(const struct sql_tokens *t, size_t i, size_t last)
{
    return i < last && (t->t[i].kind == TOK_WORD || t->t[i].kind == TOK_QUOTED);
}

/* [schema .] name [AS alias | alias] at i; returns the token after it. */
static size_t parse_target(const struct sql_tokens *t, struct sql_stmt *s, size_t i,
                           bool bare_alias)
{
    static const char *const not_alias[] = {"SET",     "WHERE", "RETURNING", "INDEXED", "NOT",
                                            "USING",   "ORDER", "LIMIT",     "VALUES",  "SELECT",
                                            "DEFAULT", "WITH",  NULL};
    if (sql_token_is(t, i, "ONLY") && is_name(t, i + 1, s->last)) {
        i++;
    }
    if (!is_name(t, i, s->last)) {
        return i;
    }
    if (i + 2 < s->last && sql_token_op(t, i + 1, ".") && is_name(t, i + 2, s->last)) {
        s->target_schema = i;
        i += 2;
    }
    s->target = i++;
    if (i + 1 < s->last && sql_token_is(t, i, "AS")) {
        s->alias = i + 1;
        i += 2;
    } else if (bare_alias && is_name(t, i, s->last) && !any_of(t, i, not_alias)) {
        s->alias = i++;
    }
    s->after_target = i;
    return i;
}

static size_t parse_or(const struct sql_tokens *t, struct sql_stmt *s, size_t i)
{
    static const char *const names[] = {"ABORT", "FAIL", "IGNORE", "REPLACE", "ROLLBACK"};
    if (!sql_token_is(t, i, "OR")) {
        return i;
    }
    for (int k = 0; k < 5; k++) {
        if (sql_token_is(t, i + 1, names[k])) {
            s->conflict = k == 0   ? OR_ABORT
                          : k == 1 ? OR_FAIL
                          : k == 2 ? OR_IGNORE
                          : k == 3 ? OR_REPLACE
                                   : OR_ROLLBACK;
        }
    }
    return i + 2;
}

/* The strength of FOR UPDATE, NO KEY UPDATE, SHARE or KEY SHARE at token i; the token after it, 0
 * for other words. */
static size_t lock_strength(const struct sql_tokens *t, size_t i, bool *share)
{
    if (!sql_token_is(t, i, "FOR")) {
        return 0;
    }
    i++;
    if (sql_token_is(t, i, "NO") && sql_token_is(t, i + 1, "KEY") &&
        sql_token_is(t, i + 2, "UPDATE")) {
        return i + 3;
    }
    if (sql_token_is(t, i, "KEY") && sql_token_is(t, i + 1, "SHARE")) {
        *share = true;
        return i + 2;
    }
    *share = sql_token_is(t, i, "SHARE");
    return *share || sql_token_is(t, i, "UPDATE") ? i + 1 : 0;
}

/* FOR .. [OF name, ..] [NOWAIT | SKIP LOCKED], as often as it stands there; i: the first FOR. */
static void parse_locks(const struct sql_tokens *t, struct sql_stmt *s, size_t i)
{
    bool share = false;
    size_t end = lock_strength(t, i, &share);
    if (end == 0) {
        return;
    }
    s->for_update = i;
    s->for_share = true;
    for (; end != 0 && end <= s->last; end = lock_strength(t, i, &share)) {
        i = end;
        s->for_share = s->for_share && share;
        if (sql_token_is(t, i, "OF") && is_name(t, i + 1, s->last)) {
            for (i += 2; sql_token_op(t, i, ",") && is_name(t, i + 1, s->last); i += 2) {
            }
        }
        bool skip = sql_token_is(t, i, "SKIP") && sql_token_is(t, i + 1, "LOCKED");
        if (i < s->last && (skip || sql_token_is(t, i, "NOWAIT"))) {
            s->for_wait = i;
            i += skip ? 2 : 1;
        }
        s->for_end = i;
    }
}

/* Notes the first depth-0 occurrence of each clause of [i, last). */
static void parse_clauses(const struct sql_tokens *t, struct sql_stmt *s, size_t i)
{
    uint32_t base = s->first < t->count ? t->t[s->first].depth : 0;
    for (; i < s->last; i++) {
        if (t->t[i].depth != base || t->t[i].kind != TOK_WORD) {
            continue;
        }
        if (s->from == 0 && sql_token_is(t, i, "FROM") &&
            !(i > 0 && sql_token_is(t, i - 1, "DISTINCT"))) {
            s->from = i;
        } else if (s->where == 0 && s->on_conflict == 0 && sql_token_is(t, i, "WHERE")) {
            s->where = i;
        } else if (s->order == 0 && sql_token_is(t, i, "ORDER")) {
            s->order = i;
        } else if (s->limit == 0 && sql_token_is(t, i, "LIMIT")) {
            s->limit = i;
        } else if (s->returning == 0 && sql_token_is(t, i, "RETURNING")) {
            s->returning = i;
        } else if (s->for_update == 0 && s->verb == VERB_SELECT) {
            parse_locks(t, s, i);
        }
    }
}

static void parse_insert(const struct sql_tokens *t, struct sql_stmt *s)
{
    size_t i = s->main + 1;
    s->verb = VERB_INSERT;
    if (sql_token_is(t, s->main, "REPLACE")) {
        s->conflict = OR_REPLACE;
    } else {
        i = parse_or(t, s, i);
    }
    if (!sql_token_is(t, i, "INTO")) {
        return;
    }
    i = parse_target(t, s, i + 1, false);
    if (s->target == 0) {
        return;
    }
    uint32_t base = t->t[s->main].depth;
    if (i < s->last && sql_token_op(t, i, "(")) {
        s->columns = i;
        for (i++; i < s->last && t->t[i].depth > base; i++) {
        }
        i++;
    }
    for (; i < s->last; i++) {
        if (t->t[i].depth != base) {
            continue;
        }
        if (s->values == 0 && s->select == 0 && sql_token_is(t, i, "VALUES")) {
            s->values = i;
        } else if (s->values == 0 && s->select == 0 && s->dflt == 0 &&
                   (sql_token_is(t, i, "SELECT") || sql_token_is(t, i, "WITH"))) {
            s->select = i;
        } else if (s->select == 0 && s->values == 0 && sql_token_is(t, i, "DEFAULT")) {
            s->dflt = i;
            s->values_rows = 1;
        } else if (sql_token_is(t, i, "ON") && sql_token_is(t, i + 1, "CONFLICT")) {
            s->on_conflict = s->on_conflict == 0 ? i : s->on_conflict;
        } else if (sql_token_is(t, i, "RETURNING") && s->returning == 0) {
            s->returning = i;
        } else if (s->values != 0 && s->on_conflict == 0 && s->returning == 0 &&
                   sql_token_op(t, i, "(")) {
            s->values_rows++;
        }
    }
}

static void parse_update(const struct sql_tokens *t, struct sql_stmt *s)
{
    s->verb = VERB_UPDATE;
    size_t i = parse_target(t, s, parse_or(t, s, s->main + 1), true);
    while (i < s->last && !sql_token_is(t, i, "SET")) {
        i++;
    }
    s->set = i < s->last ? i : 0;
    parse_clauses(t, s, i);
}

static void parse_delete(const struct sql_tokens *t, struct sql_stmt *s)
{
    s->verb = VERB_DELETE;
    size_t i = s->main + 1;
    if (sql_token_is(t, i, "FROM")) {
        i = parse_target(t, s, i + 1, true);
        parse_clauses(t, s, i);
    }
}

static enum sql_verb verb_create(const struct sql_tokens *t, size_t i)
{
    static const char *const skip[] = {"UNIQUE", "OR", "REPLACE", NULL};
    bool unique = sql_token_is(t, i, "UNIQUE");
    while (any_of(t, i, skip)) {
        i++;
    }
    if (sql_token_is(t, i, "TABLE") && !unique) {
        return VERB_CREATE_TABLE;
    }
    if (sql_token_is(t, i, "INDEX")) {
        return VERB_CREATE_INDEX;
    }
    return sql_token_is(t, i, "VIEW") ? VERB_CREATE_VIEW : VERB_CREATE_OTHER;
}

static enum sql_verb verb_drop(const struct sql_tokens *t, size_t i)
{
    if (sql_token_is(t, i, "TABLE")) {
        return VERB_DROP_TABLE;
    }
    if (sql_token_is(t, i, "INDEX")) {
        return VERB_DROP_INDEX;
    }
    return sql_token_is(t, i, "VIEW") ? VERB_DROP_VIEW : VERB_DROP_OTHER;
}

static enum sql_verb verb_of(const struct sql_tokens *t, size_t i)
{
    static const struct {
        const char *word;
        enum sql_verb verb;
    } table[] = {
        {"SELECT", VERB_SELECT},
        {"VALUES", VERB_SELECT},
        {"ALTER", VERB_ALTER},
        {"TRUNCATE", VERB_TRUNCATE},
        {"BEGIN", VERB_BEGIN},
        {"START", VERB_BEGIN},
        {"COMMIT", VERB_COMMIT},
        {"END", VERB_COMMIT},
        {"ROLLBACK", VERB_ROLLBACK},
        {"ABORT", VERB_ROLLBACK},
        {"SAVEPOINT", VERB_SAVEPOINT},
        {"RELEASE", VERB_RELEASE},
        {"SET", VERB_SET},
        {"RESET", VERB_RESET},
        {"SHOW", VERB_SHOW},
        {"EXPLAIN", VERB_EXPLAIN},
        {"DISCARD", VERB_DISCARD},
        {"DEALLOCATE", VERB_DEALLOCATE},
        {"VACUUM", VERB_NOOP},
        {"ANALYZE", VERB_NOOP},
        {"ANALYSE", VERB_NOOP},
        {"REINDEX", VERB_NOOP},
        {"CHECKPOINT", VERB_NOOP},
        {"PREPARE", VERB_UNSUPPORTED},
        {"EXECUTE", VERB_UNSUPPORTED},
        {"LOCK", VERB_UNSUPPORTED},
        {"COPY", VERB_UNSUPPORTED},
        {"DECLARE", VERB_UNSUPPORTED},
        {"FETCH", VERB_UNSUPPORTED},
        {"MOVE", VERB_UNSUPPORTED},
        {"CLOSE", VERB_UNSUPPORTED},
        {"LISTEN", VERB_UNSUPPORTED},
        {"UNLISTEN", VERB_UNSUPPORTED},
        {"NOTIFY", VERB_UNSUPPORTED},
        {"COMMENT", VERB_UNSUPPORTED},
        {"GRANT", VERB_UNSUPPORTED},
        {"REVOKE", VERB_UNSUPPORTED},
        {"DO", VERB_UNSUPPORTED},
        {"CALL", VERB_UNSUPPORTED},
        {"MERGE", VERB_UNSUPPORTED},
        {"PRAGMA", VERB_UNSUPPORTED},
        {"ATTACH", VERB_UNSUPPORTED},
        {"DETACH", VERB_UNSUPPORTED},
        {"CLUSTER", VERB_UNSUPPORTED},
        {"REFRESH", VERB_UNSUPPORTED},
        {"IMPORT", VERB_UNSUPPORTED},
    };

    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        if (sql_token_is(t, i, table[k].word)) {
            return table[k].verb;
        }
    }
    return VERB_OTHER;
}

static void classify(const struct sql_tokens *t, struct sql_stmt *s)
{
    static const char *const mains[] = {"SELECT", "VALUES", "INSERT", "REPLACE",
                                        "UPDATE", "DELETE", NULL};
    s->main = s->first;
    if (s->first == s->last) {
        s->verb = VERB_EMPTY;
        return;
    }
    if (sql_token_is(t, s->first, "EXPLAIN")) {
        s->verb = VERB_EXPLAIN;
        return;
    }
    if (sql_token_is(t, s->first, "WITH")) {
        s->with = true;
        uint32_t base = t->t[s->first].depth;
        for (s->main++; s->main < s->last; s->main++) {
            if (t->t[s->main].depth == base && any_of(t, s->main, mains)) {
                break;
            }
        }
        if (s->main == s->last) {
            s->main = s->first;
            s->verb = VERB_OTHER;
            return;
        }
    }
    if (sql_token_is(t, s->main, "INSERT") || sql_token_is(t, s->main, "REPLACE")) {
        parse_insert(t, s);
    } else if (sql_token_is(t, s->main, "UPDATE")) {
        parse_update(t, s);
    } else if (sql_token_is(t, s->main, "DELETE")) {
        parse_delete(t, s);
    } else if (sql_token_is(t, s->main, "CREATE")) {
        s->verb = verb_create(t, s->main + 1);
    } else if (sql_token_is(t, s->main, "DROP")) {
        s->verb = verb_drop(t, s->main + 1);
    } else if (sql_token_op(t, s->main, "(")) {
        s->verb = VERB_SELECT; /* (SELECT ...): SQLite refuses it with its own words */
    } else {
        s->verb = verb_of(t, s->main);
        if (s->verb == VERB_SELECT) {
            parse_clauses(t, s, s->main);
        }
    }
}

bool sql_stmt_next(const struct sql_tokens *t, size_t *at, struct sql_stmt *s)
{
    memset(s, 0, sizeof *s);
    if (*at >= t->count) {
        return false;
    }
    s->first = *at;
    bool trigger = sql_token_is(t, *at, "CREATE") &&
                   (sql_token_is(t, *at + 1, "TRIGGER") || sql_token_is(t, *at + 2, "TRIGGER"));
    size_t i = *at;
    for (; i < t->count; i++) {
        if (sql_token_op(t, i, ";") && (!trigger || sql_token_is(t, i - 1, "END"))) {
            break;
        }
    }
    s->last = i;
    *at = i + 1;
    classify(t, s);
    return true;
}
