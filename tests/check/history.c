/* The history file: a reader for the few shapes of JSON in it, and the writer that tests use. The
 * reader is strict about what it knows and passes over members it does not know, so that a later
 * version may add some. Depth is bounded: a hostile file cannot exhaust the stack. */
#include "tests/check/history.h"

#include "base/alloc.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DEPTH_MAX 8

void history_init_empty(struct history *h, enum history_kind kind)
{
    memset(h, 0, sizeof(*h));
    h->kind = kind;
}

void history_deinit(struct history *h)
{
    span_free(h->txns);
    span_free(h->ops);
    span_free(h->values);
    memset(h, 0, sizeof(*h));
}

static void *grow(void *array, size_t *cap, size_t count, size_t size)
{
    if (count < *cap) {
        return array;
    }
    *cap = *cap == 0 ? 64 : 2 * *cap;
    return span_realloc(array, *cap * size);
}

struct history_txn *history_add_txn(struct history *h, uint64_t client, uint64_t start,
                                    uint64_t end, enum history_outcome outcome)
{
    h->txns = grow(h->txns, &h->txn_cap, h->txn_count, sizeof(*h->txns));
    struct history_txn *t = &h->txns[h->txn_count++];
    *t = (struct history_txn){.line = h->txn_count + 1,
                              .client = client,
                              .start = start,
                              .end = end,
                              .outcome = outcome,
                              .op = h->op_count};
    return t;
}

static void add_value(struct history *h, int64_t v)
{
    h->values = grow(h->values, &h->value_cap, h->value_count, sizeof(*h->values));
    h->values[h->value_count++] = v;
}

void history_add_op(struct history *h, struct history_op op, const int64_t *list)
{
    h->ops = grow(h->ops, &h->op_cap, h->op_count, sizeof(*h->ops));
    /* An empty list points into the values, too: there is an array to point into. */
    h->values = grow(h->values, &h->value_cap, h->value_count, sizeof(*h->values));
    if (list != NULL) {
        op.list = h->value_count;
        for (size_t i = 0; i < op.list_count; i++) {
            add_value(h, list[i]);
        }
    }
    h->ops[h->op_count++] = op;
    h->txns[h->txn_count - 1].op_count++;
}

/* ---- reading ---- */

struct reader {
    const uint8_t *at;
    const uint8_t *end;
    const char *why; /* NULL: nothing wrong so far */
};

static bool fail(struct reader *r, const char *why)
{
    if (r->why == NULL) {
        r->why = why;
    }
    return false;
}

static void skip_space(struct reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\r')) {
        r->at++;
    }
}

/* Takes the character if it is the next one. */
static bool take(struct reader *r, char c)
{
    skip_space(r);
    if (r->at < r->end && *r->at == (uint8_t)c) {
        r->at++;
        return true;
    }
    return false;
}

static bool need(struct reader *r, char c, const char *why)
{
    return take(r, c) || fail(r, why);
}

static bool take_word(struct reader *r, const char *word)
{
    size_t n = strlen(word);
    skip_space(r);
    if ((size_t)(r->end - r->at) >= n && memcmp(r->at, word, n) == 0) {
        r->at += n;
        return true;
    }
    return false;
}

/* A string; nothing in the format needs escapes, which are passed over and not decoded. */
static bool read_string(struct reader *r, struct slice *out)
{
    if (!need(r, '"', "a string was expected")) {
        return false;
    }
    const uint8_t *start = r->at;
    while (r->at < r->end && *r->at != '"') {
        r->at += *r->at == '\\' && r->at + 1 < r->end ? 2 : 1;
    }
    *out = slice_of(start, (size_t)(r->at - start));
    return need(r, '"', "a string does not end");
}

static bool read_int(struct reader *r, int64_t *out)
{
    skip_space(r);
    bool negative = r->at < r->end && *r->at == '-';
    uint64_t v = 0;
    r->at += negative;
    const uint8_t *start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        unsigned digit = (unsigned)(*r->at - '0');
        if (v > ((uint64_t)INT64_MAX - digit) / 10) {
            return fail(r, "a number is too large");
        }
        v = v * 10 + digit;
        r->at++;
    }
    if (r->at == start) {
        return fail(r, "a whole number was expected");
    }
    *out = negative ? -(int64_t)v : (int64_t)v;
    return true;
}

static bool read_uint(struct reader *r, uint64_t *out)
{
    int64_t v = 0;
    if (!read_int(r, &v)) {
        return false;
    }
    *out = (uint64_t)v;
    return v >= 0 || fail(r, "a number is negative that must not be");
}

static bool read_bool(struct reader *r, bool *out)
{
    *out = take_word(r, "true");
    return *out || take_word(r, "false") || fail(r, "true or false was expected");
}

static bool is_scalar_end(uint8_t c)
{
    return c == ',' || c == '}' || c == ']' || c == ' ' || c == ':';
}

/* Passes over a value of any shape: brackets are counted, strings respected. */
static bool skip_value(struct reader *r)
{
    unsigned depth = 0;
    struct slice ignored;
    do {
        skip_space(r);
        if (r->at == r->end) {
            return fail(r, "the line ends in the middle of a value");
        }
        uint8_t c = *r->at;
        if (c == '"') {
            if (!read_string(r, &ignored)) {
                return false;
            }
        } else if (c == '{' || c == '[') {
            r->at++;
            if (++depth > DEPTH_MAX) {
                return fail(r, "values are nested too deep");
            }
        } else if (c == '}' || c == ']') {
            if (depth == 0) {
                return fail(r, "a value is missing");
            }
            depth--;
            r->at++;
        } else if (depth != 0 && (c == ',' || c == ':')) {
            r->at++;
        } else if (is_scalar_end(c)) {
            return fail(r, "a value is missing");
        } else {
            while (r->at < r->end && !is_scalar_end(*r->at)) {
                r->at++;
            }
        }
    } while (depth != 0);
    return true;
}

/* The next member's name inside an object whose '{' was taken; false at its end (or an error). */
static bool next_member(struct reader *r, bool *first, struct slice *name)
{
    if (take(r, '}')) {
        return false;
    }
    if (!*first && !need(r, ',', "',' or '}' was expected")) {
        return false;
    }
    *first = false;
    return read_string(r, name) && need(r, ':', "':' was expected");
}

static bool is(struct slice s, const char *word)
{
    return slice_eq(s, slice_str(word));
}

static bool read_list(struct reader *r, struct history *h, struct history_op *op)
{
    op->list = h->value_count;
    if (!need(r, '[', "a read of an append history gives a list")) {
        return false;
    }
    if (take(r, ']')) {
        return true;
    }
    do {
        int64_t v = 0;
        if (!read_int(r, &v)) {
            return false;
        }
        add_value(h, v);
        op->list_count++;
    } while (take(r, ','));
    return need(r, ']', "',' or ']' was expected");
}

static bool read_op(struct reader *r, struct history *h)
{
    struct history_op op = {0};
    struct slice name = {0};
    bool good = need(r, '[', "an operation is a list") && read_string(r, &name) &&
                need(r, ',', "an operation needs a key");
    if (!good) {
        return false;
    }
    bool is_bank = h->kind == HISTORY_BANK;
    if (is(name, "append") && h->kind == HISTORY_APPEND) {
        op.kind = HISTORY_APPEND_OP;
    } else if (is(name, "w") && h->kind == HISTORY_REGISTER) {
        op.kind = HISTORY_WRITE;
    } else if (is(name, "r") && !is_bank) {
        op.kind = h->kind == HISTORY_APPEND ? HISTORY_LIST : HISTORY_READ;
    } else if (is(name, "transfer") && is_bank) {
        op.kind = HISTORY_TRANSFER;
    } else if (is(name, "audit") && is_bank) {
        op.kind = HISTORY_AUDIT;
    } else {
        return fail(r, "an operation that this kind of history does not have");
    }
    good = read_uint(r, &op.key) && need(r, ',', "an operation needs a value");
    if (good && op.kind == HISTORY_TRANSFER) {
        good = read_uint(r, &op.to) && need(r, ',', "a transfer needs an amount");
    }
    if (good && op.kind == HISTORY_LIST) {
        good = read_list(r, h, &op);
    } else if (good && op.kind == HISTORY_READ && take_word(r, "null")) {
        op.is_null = true;
    } else if (good) {
        good = read_int(r, &op.value);
    }
    if (!good || !need(r, ']', "an operation has too many parts")) {
        return false;
    }
    history_add_op(h, op, NULL);
    return true;
}

static bool read_ops(struct reader *r, struct history *h)
{
    if (!need(r, '[', "\"ops\" is a list of operations")) {
        return false;
    }
    if (take(r, ']')) {
        return true;
    }
    do {
        if (!read_op(r, h)) {
            return false;
        }
    } while (take(r, ','));
    return need(r, ']', "',' or ']' was expected");
}

static bool read_outcome(struct reader *r, enum history_outcome *out)
{
    struct slice s = {0};
    if (!read_string(r, &s)) {
        return false;
    }
    *out = is(s, "ok") ? HISTORY_OK : is(s, "fail") ? HISTORY_FAIL : HISTORY_UNKNOWN;
    return *out != HISTORY_UNKNOWN || is(s, "unknown") ||
           fail(r, "an outcome is ok, fail or unknown");
}

/* A transaction, or the last line: *end is then set. */
static bool read_txn(struct reader *r, struct history *h, uint64_t line, bool *end)
{
    struct slice name = {0};
    bool first = true;
    unsigned seen = 0; /* 1 client, 2 start, 4 end, 8 outcome, 16 ops */
    uint64_t count = 0;
    bool is_last = false;
    struct history_txn t = {.line = line, .op = h->op_count};
    /* It is in the list while its operations are added to it. */
    size_t at = h->txn_count;
    (void)history_add_txn(h, 0, 0, 0, HISTORY_OK);
    if (!need(r, '{', "a line is an object")) {
        return false;
    }
    while (next_member(r, &first, &name)) {
        bool good = true;
        if (is(name, "client")) {
            good = read_uint(r, &t.client);
            seen |= 1;
        } else if (is(name, "start")) {
            good = read_uint(r, &t.start);
            seen |= 2;
        } else if (is(name, "end") && (take_word(r, "true"))) {
            is_last = true;
        } else if (is(name, "end")) {
            good = read_uint(r, &t.end);
            seen |= 4;
        } else if (is(name, "outcome")) {
            good = read_outcome(r, &t.outcome);
            seen |= 8;
        } else if (is(name, "ts")) {
            good = read_uint(r, &t.ts);
        } else if (is(name, "as_of")) {
            good = read_bool(r, &t.as_of);
        } else if (is(name, "transactions")) {
            good = read_uint(r, &count);
        } else if (is(name, "ops")) {
            good = (seen & 16) == 0 ? read_ops(r, h) : fail(r, "\"ops\" stands there twice");
            seen |= 16;
        } else {
            good = skip_value(r);
        }
        if (!good) {
            return false;
        }
    }
    if (r->why != NULL) {
        return false;
    }
    t.op_count = h->txns[at].op_count;
    h->txns[at] = t;
    if (is_last) {
        if (seen != 0) {
            return fail(r, "the last line is no transaction");
        }
        h->txn_count--;
        *end = true;
        return count == h->txn_count || fail(r, "the last line counts other transactions");
    }
    if (seen != 31) {
        return fail(r, "a transaction needs client, start, end, outcome and ops");
    }
    return t.end >= t.start || fail(r, "a transaction ends before it begins");
}

static bool read_header(struct reader *r, struct history *h)
{
    struct slice name = {0};
    struct slice kind = {0};
    uint64_t version = 0;
    bool first = true;
    if (!need(r, '{', "the first line is an object")) {
        return false;
    }
    while (next_member(r, &first, &name)) {
        bool good = true;
        if (is(name, "spanlite_history")) {
            good = read_uint(r, &version);
        } else if (is(name, "kind")) {
            good = read_string(r, &kind);
        } else if (is(name, "accounts")) {
            good = read_uint(r, &h->accounts);
        } else if (is(name, "balance")) {
            good = read_int(r, &h->balance);
        } else {
            good = skip_value(r);
        }
        if (!good) {
            return false;
        }
    }
    if (r->why != NULL) {
        return false;
    }
    if (version != HISTORY_VERSION) {
        return fail(r, version == 0 ? "the first line does not say \"spanlite_history\""
                                    : "a version that this program does not know");
    }
    if (is(kind, "bank") && h->accounts > (uint64_t)INT64_MAX / 1000000000) {
        return fail(r, "too many accounts");
    }
    for (int k = HISTORY_APPEND; k <= HISTORY_BANK; k++) {
        if (is(kind, history_kind_name((enum history_kind)k))) {
            h->kind = (enum history_kind)k;
            return true;
        }
    }
    return fail(r, "\"kind\" is append, register or bank");
}

span_status history_parse(struct slice text, struct history *h, struct span_error *err)
{
    const uint8_t *at = text.data;
    const uint8_t *end = text.data + text.size;
    uint64_t line = 0;
    bool whole = false;
    history_init_empty(h, HISTORY_APPEND);
    while (at < end) {
        const uint8_t *stop = memchr(at, '\n', (size_t)(end - at));
        struct reader r = {.at = at, .end = stop == NULL ? end : stop};
        line++;
        at = stop == NULL ? end : stop + 1;
        if (whole) {
            return span_fail(err, SPAN_INVALID, "line %" PRIu64 ": something stands behind the end",
                             line);
        }
        if (stop == NULL) {
            return span_fail(err, SPAN_INVALID, "line %" PRIu64 ": the line is cut off", line);
        }
        bool good = line == 1 ? read_header(&r, h) : read_txn(&r, h, line, &whole);
        skip_space(&r);
        if (good && r.at != r.end) {
            good = fail(&r, "something stands behind the object");
        }
        if (!good) {
            return span_fail(err, SPAN_INVALID, "line %" PRIu64 ": %s", line,
                             r.why == NULL ? "malformed" : r.why);
        }
    }
    if (!whole) {
        return span_fail(err, SPAN_INVALID,
                         "line %" PRIu64
                         ": the recording did not end: what was under way is not in "
                         "it, so nothing can be said about it",
                         line + 1);
    }
    return SPAN_OK;
}

/* ---- writing ---- */

const char *history_kind_name(enum history_kind kind)
{
    switch (kind) {
    case HISTORY_APPEND:
        return "append";
    case HISTORY_REGISTER:
        return "register";
    case HISTORY_BANK:
        return "bank";
    }
    return "?";
}

static void format_op(const struct history *h, const struct history_op *op, struct buf *out)
{
    switch (op->kind) {
    case HISTORY_APPEND_OP:
        buf_printf(out, "[\"append\",%" PRIu64 ",%" PRId64 "]", op->key, op->value);
        break;
    case HISTORY_WRITE:
        buf_printf(out, "[\"w\",%" PRIu64 ",%" PRId64 "]", op->key, op->value);
        break;
    case HISTORY_READ:
        buf_printf(out, "[\"r\",%" PRIu64 ",", op->key);
        if (op->is_null) {
            buf_append_str(out, "null]");
        } else {
            buf_printf(out, "%" PRId64 "]", op->value);
        }
        break;
    case HISTORY_LIST:
        buf_printf(out, "[\"r\",%" PRIu64 ",[", op->key);
        for (size_t i = 0; i < op->list_count; i++) {
            buf_printf(out, "%s%" PRId64, i == 0 ? "" : ",", h->values[op->list + i]);
        }
        buf_append_str(out, "]]");
        break;
    case HISTORY_TRANSFER:
        buf_printf(out, "[\"transfer\",%" PRIu64 ",%" PRIu64 ",%" PRId64 "]", op->key, op->to,
                   op->value);
        break;
    case HISTORY_AUDIT:
        buf_printf(out, "[\"audit\",%" PRIu64 ",%" PRId64 "]", op->key, op->value);
        break;
    }
}

void history_format(const struct history *h, struct buf *out)
{
    static const char *const outcomes[] = {"ok", "fail", "unknown"};
    buf_printf(out, "{\"spanlite_history\":%d,\"kind\":\"%s\"", HISTORY_VERSION,
               history_kind_name(h->kind));
    if (h->kind == HISTORY_BANK) {
        buf_printf(out, ",\"accounts\":%" PRIu64 ",\"balance\":%" PRId64, h->accounts, h->balance);
    }
    buf_append_str(out, "}\n");
    for (size_t i = 0; i < h->txn_count; i++) {
        const struct history_txn *t = &h->txns[i];
        buf_printf(out,
                   "{\"client\":%" PRIu64 ",\"start\":%" PRIu64 ",\"end\":%" PRIu64
                   ",\"outcome\":\"%s\"",
                   t->client, t->start, t->end, outcomes[t->outcome]);
        if (t->ts != 0) {
            buf_printf(out, ",\"ts\":%" PRIu64, t->ts);
        }
        buf_append_str(out, t->as_of ? ",\"as_of\":true,\"ops\":[" : ",\"ops\":[");
        for (size_t k = 0; k < t->op_count; k++) {
            buf_append_str(out, k == 0 ? "" : ",");
            format_op(h, &h->ops[t->op + k], out);
        }
        buf_append_str(out, "]}\n");
    }
    buf_printf(out, "{\"end\":true,\"transactions\":%zu}\n", h->txn_count);
}
