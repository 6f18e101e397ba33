/* What single reads say: values that may not be read at all, and the orders that reads and writes
 * put on transactions, as edges of the graph. */
#include "base/alloc.h"
#include "tests/check/check_impl.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- values that may not be read ---- */

/* True: `value` may be read by `reader` as far as its writer goes. `last`: nothing of the key stood
 * behind it. */
static bool check_value(struct checker *c, uint32_t reader, uint64_t key, int64_t value, bool last)
{
    const struct written *w = checker_write(c, checker_key(c, key), value);
    if (w == NULL) {
        if (checker_found(c, CHECK_GARBAGE_READ)) {
            buf_append_str(&c->r->say, "  ");
            checker_name(c, reader);
            buf_printf(&c->r->say, " read %" PRId64 " from key %" PRIu64 ", which nobody wrote\n\n",
                       value, key);
        }
        return false;
    }
    if (c->h->txns[w->txn].outcome == HISTORY_FAIL) {
        if (checker_found(c, CHECK_ABORTED_READ)) {
            buf_append_str(&c->r->say, "  ");
            checker_name(c, reader);
            buf_printf(&c->r->say, " read %" PRId64 " from key %" PRIu64 ", written by ", value,
                       key);
            checker_name(c, w->txn);
            buf_append_str(&c->r->say, ", which did not happen\n\n");
        }
        return false;
    }
    if (last && !w->is_final && w->txn != reader) {
        if (checker_found(c, CHECK_INTERMEDIATE_READ)) {
            buf_append_str(&c->r->say, "  ");
            checker_name(c, reader);
            buf_printf(&c->r->say, " read %" PRId64 " from key %" PRIu64 "; ", value, key);
            checker_name(c, w->txn);
            buf_printf(&c->r->say, " wrote it and then %" PRId64 "\n\n", w->next);
        }
        return false;
    }
    return true;
}

static void say_internal(struct checker *c, uint32_t txn, uint64_t key)
{
    if (checker_found(c, CHECK_INTERNAL)) {
        buf_append_str(&c->r->say, "  ");
        checker_name(c, txn);
        buf_printf(&c->r->say,
                   " read key %" PRIu64
                   " and did not find what it had read or written there before\n\n",
                   key);
    }
}

/* An edge from `from` to each write of the key that nothing puts in order: appends no list shows,
 * registers without timestamp. By the key's stand-in, unless `from` is behind it itself, which
 * would look like a circle. */
static void to_loose(struct checker *c, const struct keyed *k, uint32_t from, enum edge_kind kind)
{
    bool is_one = false;
    for (size_t i = 0; i < k->write_count && k->loose != 0 && !is_one; i++) {
        const struct written *w = &c->writes[k->write + i];
        is_one = w->loose && w->txn == from;
    }
    if (k->loose != 0 && !is_one) {
        graph_add(&c->g, from, k->loose - 1, kind, k->key);
    }
    for (size_t i = 0; i < k->write_count && is_one; i++) {
        const struct written *w = &c->writes[k->write + i];
        if (w->loose) {
            graph_add(&c->g, from, w->txn, kind, k->key);
        }
    }
}

static void make_loose(struct checker *c, struct keyed *k, struct written *w)
{
    if (k->loose == 0) {
        k->loose = graph_add_stand_in(&c->g) + 1;
    }
    w->loose = true;
    graph_add(&c->g, k->loose - 1, w->txn, EDGE_VIA, k->key);
}

/* ---- append ---- */

/* What the transaction itself had appended to the key before operation `at`, oldest first, is the
 * end of this list; their number. SIZE_MAX: it is not. */
static size_t own_tail(const struct checker *c, const struct history_txn *t, size_t at)
{
    const struct history_op *ops = &c->h->ops[t->op];
    const struct history_op *read = &ops[at];
    size_t own = 0;
    for (size_t i = at; i-- > 0;) {
        if (ops[i].kind != HISTORY_APPEND_OP || ops[i].key != read->key) {
            continue;
        }
        own++;
        if (own > read->list_count ||
            c->h->values[read->list + read->list_count - own] != ops[i].value) {
            return SIZE_MAX;
        }
    }
    return own;
}

static bool same_values(const struct checker *c, const struct history_op *a,
                        const struct history_op *b, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (c->h->values[a->list + i] != c->h->values[b->list + i]) {
            return false;
        }
    }
    return true;
}

static bool check_duplicates(struct checker *c, uint32_t txn, const struct history_op *op)
{
    const int64_t *v = &c->h->values[op->list];
    /* A doubled value stands behind itself in the longest list too, which is looked at in whole by
     * check_longest; here only what is cheap: neighbours. */
    for (size_t i = 1; i < op->list_count; i++) {
        if (v[i] == v[i - 1]) {
            if (checker_found(c, CHECK_DUPLICATE)) {
                buf_append_str(&c->r->say, "  ");
                checker_name(c, txn);
                buf_printf(&c->r->say, " read key %" PRIu64 " with %" PRId64 " in it twice\n\n",
                           op->key, v[i]);
            }
            return false;
        }
    }
    return true;
}

static void append_read(struct checker *c, uint32_t n, size_t at, bool is_first, size_t before)
{
    const struct history_txn *t = &c->h->txns[n];
    const struct history_op *op = &c->h->ops[t->op + at];
    struct keyed *k = checker_key(c, op->key);
    size_t own = own_tail(c, t, at);
    if (own == SIZE_MAX) {
        say_internal(c, n, op->key);
        return;
    }
    size_t count = op->list_count - own; /* of others: the version that was read */
    if (!is_first) {
        const struct history_op *was = &c->h->ops[t->op + before];
        size_t was_own = own_tail(c, t, before);
        if (was_own != SIZE_MAX &&
            (was->list_count - was_own != count || !same_values(c, was, op, count))) {
            say_internal(c, n, op->key);
        }
        return;
    }
    if (count != 0 && !check_value(c, n, op->key, c->h->values[op->list + count - 1], true)) {
        return;
    }
    if (k == NULL) {
        return;
    }
    const struct history_op *longest = &c->h->ops[k->longest];
    if (!check_duplicates(c, n, op)) {
        return;
    }
    if (!same_values(c, op, longest, op->list_count)) {
        if (checker_found(c, CHECK_INCOMPATIBLE_ORDER)) {
            buf_append_str(&c->r->say, "  ");
            checker_name(c, n);
            buf_printf(&c->r->say,
                       " read a list of %zu from key %" PRIu64
                       " that does not begin the list of %zu another one read\n\n",
                       op->list_count, op->key, longest->list_count);
        }
        return;
    }
    if (count != 0) {
        const struct written *w = checker_write(c, k, c->h->values[op->list + count - 1]);
        graph_add(&c->g, w->txn, n, EDGE_WR, op->key);
    }
    /* The next version that is not the reader's own: of its own appends there may be several. */
    const struct written *next = NULL;
    for (size_t i = count; i < longest->list_count; i++) {
        next = checker_write(c, k, c->h->values[longest->list + i]);
        if (next == NULL || next->txn != n) {
            break;
        }
        next = NULL;
    }
    if (next != NULL) {
        graph_add(&c->g, n, next->txn, EDGE_RW, op->key);
    } else {
        to_loose(c, k, n, EDGE_RW);
    }
}

static int by_value(const void *a, const void *b)
{
    const int64_t *x = a;
    const int64_t *y = b;
    return *x < *y ? -1 : *x > *y;
}

static uint32_t txn_of_op(const struct checker *c, size_t op)
{
    uint32_t low = 0;
    uint32_t high = (uint32_t)c->h->txn_count;
    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        if (c->h->txns[mid].op <= op) {
            low = mid;
        } else {
            high = mid;
        }
    }
    return low;
}

/* The longest list: every value in it, each once; its order is the order of the versions. */
static void check_longest(struct checker *c, struct keyed *k)
{
    const struct written *before = NULL;
    uint32_t reader = k->longest == SIZE_MAX ? 0 : txn_of_op(c, k->longest);
    size_t n = k->longest == SIZE_MAX ? 0 : c->h->ops[k->longest].list_count;
    const int64_t *v = n == 0 ? NULL : &c->h->values[c->h->ops[k->longest].list];
    if (n > 1) {
        int64_t *sorted = span_calloc(n, sizeof(*sorted));
        for (size_t i = 0; i < n; i++) {
            sorted[i] = v[i];
        }
        qsort(sorted, n, sizeof(*sorted), by_value);
        for (size_t i = 1; i < n; i++) {
            if (sorted[i] == sorted[i - 1] && checker_found(c, CHECK_DUPLICATE)) {
                buf_append_str(&c->r->say, "  ");
                checker_name(c, reader);
                buf_printf(&c->r->say, " read key %" PRIu64 " with %" PRId64 " in it twice\n\n",
                           k->key, sorted[i]);
            }
        }
        span_free(sorted);
    }
    for (size_t i = 0; i < n; i++) {
        const struct written *w = checker_write(c, k, v[i]);
        if (!check_value(c, reader, k->key, v[i], false)) {
            before = NULL;
            continue;
        }
        if (before != NULL) {
            graph_add(&c->g, before->txn, w->txn, EDGE_WW, k->key);
        }
        before = w;
    }
    /* Appends that no list shows are behind all that the longest one shows. */
    for (size_t i = 0; i < k->write_count; i++) {
        struct written *w = &c->writes[k->write + i];
        if (!w->seen && c->counts[w->txn]) {
            make_loose(c, k, w);
        }
    }
    if (before != NULL) {
        to_loose(c, k, before->txn, EDGE_WW);
    }
}

/* Calls fn for each read of each transaction that counts, with the read of the key before it. */
static void each_read(struct checker *c, enum history_op_kind kind,
                      void (*fn)(struct checker *c, uint32_t n, size_t at, bool is_first,
                                 size_t before))
{
    for (uint32_t n = 0; n < c->h->txn_count; n++) {
        const struct history_txn *t = &c->h->txns[n];
        const struct history_op *ops = &c->h->ops[t->op];
        for (size_t i = 0; i < t->op_count && c->counts[n]; i++) {
            size_t before = i;
            for (size_t k = i; ops[i].kind == kind && k-- > 0 && before == i;) {
                before = ops[k].kind == kind && ops[k].key == ops[i].key ? k : before;
            }
            if (ops[i].kind == kind) {
                fn(c, n, i, before == i, before);
            }
        }
    }
}

void check_append(struct checker *c)
{
    for (size_t i = 0; i < c->key_count; i++) {
        check_longest(c, &c->keys[i]);
    }
    each_read(c, HISTORY_LIST, append_read);
}

/* ---- register ---- */

/* Does transaction n write this key after operation `at`? Its last write of it, or NULL. */
static const struct history_op *last_write(const struct checker *c, uint32_t n, uint64_t key)
{
    const struct history_txn *t = &c->h->txns[n];
    for (size_t i = t->op_count; i-- > 0;) {
        const struct history_op *op = &c->h->ops[t->op + i];
        if (op->kind == HISTORY_WRITE && op->key == key) {
            return op;
        }
    }
    return NULL;
}

static void register_read(struct checker *c, uint32_t n, size_t at, bool is_first, size_t before)
{
    const struct history_txn *t = &c->h->txns[n];
    const struct history_op *ops = &c->h->ops[t->op];
    const struct history_op *op = &ops[at];
    /* What it wrote or read itself comes first. */
    for (size_t i = at; i-- > 0;) {
        bool is_own = ops[i].kind == HISTORY_WRITE && ops[i].key == op->key;
        if (!is_own && (is_first || i != before)) {
            continue;
        }
        if (op->is_null != ops[i].is_null || (!op->is_null && op->value != ops[i].value)) {
            say_internal(c, n, op->key);
        }
        return;
    }
    uint32_t version = 0;
    if (!op->is_null) {
        if (!check_value(c, n, op->key, op->value, true)) {
            return;
        }
        const struct written *w = checker_write(c, checker_key(c, op->key), op->value);
        version = (uint32_t)(w - c->writes) + 1;
        graph_add(&c->g, w->txn, n, EDGE_WR, op->key);
    }
    c->seen[c->seen_count++] = (struct seen){
        .key = op->key,
        .version = version,
        .reader = n,
        .writes = last_write(c, n, op->key) != NULL,
    };
}

static int by_version(const void *a, const void *b)
{
    const struct seen *x = a;
    const struct seen *y = b;
    if (x->key != y->key) {
        return x->key < y->key ? -1 : 1;
    }
    if (x->version != y->version) {
        return x->version < y->version ? -1 : 1;
    }
    return x->reader < y->reader ? -1 : x->reader > y->reader;
}

static int by_ts(const void *a, const void *b, void *ctx)
{
    const struct written *writes = ctx;
    const struct written *x = &writes[*(const uint32_t *)a];
    const struct written *y = &writes[*(const uint32_t *)b];
    return x->ts < y->ts ? -1 : x->ts > y->ts;
}

/* Versions of one key by commit timestamp; the others behind a stand-in. */
static void order_versions(struct checker *c, struct keyed *k)
{
    uint32_t *list = span_calloc(k->write_count + 1, sizeof(*list));
    size_t n = 0;
    for (size_t i = 0; i < k->write_count; i++) {
        struct written *w = &c->writes[k->write + i];
        if (!w->is_final || !c->counts[w->txn]) {
            continue;
        }
        if (w->ts != 0) {
            list[n++] = (uint32_t)(k->write + i);
            continue;
        }
        make_loose(c, k, w);
    }
    qsort_r(list, n, sizeof(*list), by_ts, c->writes);
    for (size_t i = 0; i < n; i++) {
        if (i == 0) {
            k->first_by_ts = list[i] + 1;
        } else {
            c->writes[list[i - 1]].after = list[i] + 1;
            graph_add(&c->g, c->writes[list[i - 1]].txn, c->writes[list[i]].txn, EDGE_WW, k->key);
        }
    }
    span_free(list);
}

/* Readers of one version: each is before whoever wrote over it. */
static void order_readers(struct checker *c, const struct seen *s, size_t count)
{
    const struct keyed *k = checker_key(c, s->key);
    if (k == NULL) {
        return;
    }
    uint32_t after = s->version == 0 ? k->first_by_ts : c->writes[s->version - 1].after;
    for (size_t i = 0; i < count; i++) {
        if (after != 0) {
            graph_add(&c->g, s[i].reader, c->writes[after - 1].txn, EDGE_RW, s->key);
        }
        if (s->version == 0) {
            to_loose(c, k, s[i].reader, EDGE_RW);
        }
        /* More than two that wrote over one version are a lost update already. */
        unsigned writers = 0;
        for (size_t j = 0; j < count && writers < 3; j++) {
            if (s[j].writes) {
                writers++;
                graph_add(&c->g, s[i].reader, s[j].reader, EDGE_RW, s->key);
            }
        }
    }
}

void check_register(struct checker *c)
{
    c->seen = span_calloc(c->h->op_count + 1, sizeof(*c->seen));
    each_read(c, HISTORY_READ, register_read);
    for (size_t i = 0; i < c->key_count; i++) {
        order_versions(c, &c->keys[i]);
    }
    qsort(c->seen, c->seen_count, sizeof(*c->seen), by_version);
    for (size_t i = 0, n = 0; i < c->seen_count; i += n) {
        const struct seen *s = &c->seen[i];
        for (n = 1; i + n < c->seen_count && s[n].key == s->key && s[n].version == s->version;) {
            n++;
        }
        order_readers(c, s, n);
    }
    span_free(c->seen);
    c->seen = NULL;
}

/* ---- bank ---- */

void check_bank(struct checker *c)
{
    int64_t want = (int64_t)c->h->accounts * c->h->balance;
    for (uint32_t n = 0; n < c->h->txn_count; n++) {
        const struct history_txn *t = &c->h->txns[n];
        for (size_t i = 0; i < t->op_count && c->counts[n]; i++) {
            const struct history_op *op = &c->h->ops[t->op + i];
            if (op->kind != HISTORY_AUDIT) {
                continue;
            }
            c->r->audits++;
            c->r->audits_past += t->as_of;
            bool missing = op->key != c->h->accounts;
            if ((missing || op->value != want) &&
                checker_found(c, missing ? CHECK_MISSING_ACCOUNTS : CHECK_WRONG_TOTAL)) {
                buf_append_str(&c->r->say, "  ");
                checker_name(c, n);
                buf_printf(&c->r->say,
                           " found %" PRIu64 " accounts holding %" PRId64 "; there are %" PRIu64
                           " holding %" PRId64 "\n\n",
                           op->key, op->value, c->h->accounts, want);
            }
        }
    }
}
