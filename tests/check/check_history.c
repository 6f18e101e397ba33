/* The frame of the checker: who wrote what, who counts, and the parts in order. */
#include "tests/check/check_history.h"

#include "base/alloc.h"
#include "tests/check/check_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SAY_EACH 3 /* anomalies of a kind that are put in words */

const char *check_anomaly_text(enum check_anomaly a)
{
    static const char *const texts[] = {
#define X(name, text) text,
        CHECK_ANOMALIES(X)
#undef X
    };
    return texts[a];
}

const char *check_anomaly_name(enum check_anomaly a)
{
    static const char *const names[] = {
#define X(name, text) #name,
        CHECK_ANOMALIES(X)
#undef X
    };
    return names[a];
}

bool checker_found(struct checker *c, enum check_anomaly a)
{
    c->r->found_total++;
    if (++c->r->found[a] > SAY_EACH) {
        return false;
    }
    buf_printf(&c->r->say, "%s\n", check_anomaly_text(a));
    return true;
}

void checker_name(struct checker *c, uint32_t txn)
{
    const struct history_txn *t = &c->h->txns[txn];
    buf_printf(&c->r->say, "line %" PRIu64 " (client %" PRIu64 "%s)", t->line, t->client,
               t->outcome == HISTORY_UNKNOWN ? ", outcome unknown" : "");
}

static int by_key_value(const void *a, const void *b)
{
    const struct written *x = a;
    const struct written *y = b;
    if (x->key != y->key) {
        return x->key < y->key ? -1 : 1;
    }
    return x->value < y->value ? -1 : x->value > y->value;
}

struct keyed *checker_key(struct checker *c, uint64_t key)
{
    size_t low = 0;
    size_t high = c->key_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (c->keys[mid].key < key) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < c->key_count && c->keys[low].key == key ? &c->keys[low] : NULL;
}

struct written *checker_write(struct checker *c, const struct keyed *k, int64_t value)
{
    if (k == NULL) {
        return NULL;
    }
    size_t low = k->write;
    size_t high = k->write + k->write_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (c->writes[mid].value < value) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low < k->write + k->write_count && c->writes[low].value == value ? &c->writes[low]
                                                                            : NULL;
}

static bool is_write(const struct history_op *op)
{
    return op->kind == HISTORY_APPEND_OP || op->kind == HISTORY_WRITE;
}

static void collect_txn(struct checker *c, uint32_t n, size_t *count)
{
    const struct history_txn *t = &c->h->txns[n];
    const struct history_op *ops = &c->h->ops[t->op];
    for (size_t i = 0; i < t->op_count; i++) {
        struct written *w = &c->writes[*count];
        if (!is_write(&ops[i])) {
            continue;
        }
        *w = (struct written){.key = ops[i].key,
                              .value = ops[i].value,
                              .txn = n,
                              .op = (uint32_t)(t->op + i),
                              .ts = t->ts,
                              .is_final = true};
        for (size_t k = i + 1; k < t->op_count && w->is_final; k++) {
            if (is_write(&ops[k]) && ops[k].key == w->key) {
                w->is_final = false;
                w->next = ops[k].value;
            }
        }
        (*count)++;
    }
}

/* Every write, sorted, and the keys they make. INVALID: one value twice in one key. */
static span_status collect(struct checker *c, struct span_error *err)
{
    size_t count = 0;
    c->writes = span_calloc(c->h->op_count + 1, sizeof(*c->writes));
    c->keys = span_calloc(c->h->op_count + 1, sizeof(*c->keys));
    for (uint32_t i = 0; i < c->h->txn_count; i++) {
        collect_txn(c, i, &count);
    }
    c->write_count = count;
    qsort(c->writes, count, sizeof(*c->writes), by_key_value);
    for (size_t i = 0; i < count; i++) {
        const struct written *w = &c->writes[i];
        if (i == 0 || w[-1].key != w->key) {
            c->keys[c->key_count++] =
                (struct keyed){.key = w->key, .write = i, .longest = SIZE_MAX};
        } else if (w[-1].value == w->value) {
            return span_fail(err, SPAN_INVALID,
                             "line %" PRIu64 ": %" PRId64 " is written to key %" PRIu64
                             " a second time (also in line %" PRIu64
                             "): values must differ, or nobody can tell which one was read",
                             c->h->txns[w->txn].line, w->value, w->key, c->h->txns[w[-1].txn].line);
        }
        c->keys[c->key_count - 1].write_count++;
    }
    return SPAN_OK;
}

static void show(struct checker *c, uint64_t key, int64_t value, bool *again)
{
    struct written *w = checker_write(c, checker_key(c, key), value);
    if (w == NULL) {
        return;
    }
    w->seen = true;
    if (c->h->txns[w->txn].outcome == HISTORY_UNKNOWN && !c->counts[w->txn]) {
        c->counts[w->txn] = true;
        c->r->unknown_seen++;
        *again = true;
    }
}

/* Marks what the reads of transaction n show. */
static void show_reads(struct checker *c, uint32_t n, bool *again)
{
    const struct history_txn *t = &c->h->txns[n];
    for (size_t i = 0; i < t->op_count; i++) {
        const struct history_op *op = &c->h->ops[t->op + i];
        if (op->kind == HISTORY_READ && !op->is_null) {
            show(c, op->key, op->value, again);
        }
        if (op->kind != HISTORY_LIST) {
            continue;
        }
        struct keyed *k = checker_key(c, op->key);
        size_t known = 0;
        if (k != NULL && k->longest != SIZE_MAX) {
            /* What the longest list so far begins with has been marked already. */
            const int64_t *a = &c->h->values[c->h->ops[k->longest].list];
            const int64_t *b = &c->h->values[op->list];
            while (known < op->list_count && known < k->longest_count && a[known] == b[known]) {
                known++;
            }
        }
        for (size_t v = known; v < op->list_count; v++) {
            show(c, op->key, c->h->values[op->list + v], again);
        }
        if (k != NULL && (k->longest == SIZE_MAX || op->list_count > k->longest_count)) {
            k->longest = t->op + i;
            k->longest_count = op->list_count;
        }
    }
}

/* Acknowledged transactions count; one of unknown outcome does as soon as a value of its is read by
 * one that counts. */
static void decide_who_counts(struct checker *c)
{
    const struct history *h = c->h;
    bool again = false;
    c->counts = span_calloc(h->txn_count + 1, sizeof(*c->counts));
    for (uint32_t i = 0; i < h->txn_count; i++) {
        if (h->txns[i].outcome == HISTORY_OK) {
            c->counts[i] = true;
            show_reads(c, i, &again);
        }
    }
    while (again) {
        again = false;
        for (uint32_t i = 0; i < h->txn_count; i++) {
            if (h->txns[i].outcome == HISTORY_UNKNOWN && c->counts[i]) {
                show_reads(c, i, &again);
            }
        }
    }
}

static void count_all(struct checker *c)
{
    const struct history *h = c->h;
    struct check_report *r = c->r;
    r->transactions = h->txn_count;
    r->keys = c->key_count;
    for (size_t i = 0; i < h->txn_count; i++) {
        const struct history_txn *t = &h->txns[i];
        r->ok += t->outcome == HISTORY_OK;
        r->failed += t->outcome == HISTORY_FAIL;
        r->unknown += t->outcome == HISTORY_UNKNOWN;
        r->timestamps += t->ts != 0 && t->outcome == HISTORY_OK;
        for (size_t k = 0; k < t->op_count; k++) {
            enum history_op_kind kind = h->ops[t->op + k].kind;
            r->reads += kind == HISTORY_LIST || kind == HISTORY_READ;
            r->writes += is_write(&h->ops[t->op + k]) || kind == HISTORY_TRANSFER;
        }
    }
}

span_status check_history(const struct history *h, struct check_report *out, struct span_error *err)
{
    struct checker c = {.h = h, .r = out};
    memset(out, 0, sizeof(*out));
    if (h->txn_count >= UINT32_MAX / 4 || h->op_count >= UINT32_MAX / 4) {
        return span_fail(err, SPAN_INVALID, "too long a history");
    }
    span_status st = collect(&c, err);
    if (st == SPAN_OK) {
        count_all(&c);
        decide_who_counts(&c);
        graph_init(&c.g, (uint32_t)h->txn_count);
        for (uint32_t i = 0; i < h->txn_count; i++) {
            const struct history_txn *t = &h->txns[i];
            bool counts = c.counts[i];
            graph_set_interval(&c.g, i, counts && !t->as_of ? t->start : 0,
                               counts && t->outcome == HISTORY_OK ? t->end : UINT64_MAX);
        }
        if (h->kind == HISTORY_APPEND) {
            check_append(&c);
        } else if (h->kind == HISTORY_REGISTER) {
            check_register(&c);
        } else {
            check_bank(&c);
        }
        graph_seal(&c.g);
        check_cycles(&c);
        check_timestamps(&c);
        graph_deinit(&c.g);
    }
    span_free(c.writes);
    span_free(c.keys);
    span_free(c.counts);
    return st;
}

void check_report_deinit(struct check_report *r)
{
    buf_deinit(&r->say);
}
