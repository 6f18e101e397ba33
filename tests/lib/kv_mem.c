/* The key-value store in memory; see kv_mem.h. A skip list of keys, each with its versions oldest
 * first. */
#include "tests/lib/kv_mem.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/map.h"
#include "base/rng.h"

#include <stdio.h>
#include <stdlib.h>

#define LEVELS   16
#define EPOCH_NS (1700000000ULL * SEC_NS)

struct version {
    uint64_t ts;
    bool gone;
    struct buf value;
};

struct node {
    struct buf key;
    struct version *v;
    size_t count;
    size_t cap;
    struct node *next[LEVELS];
};

struct schema_version {
    uint32_t table;
    uint64_t ts;
    uint64_t version;
};

struct kv_mem_store {
    struct node head;
    struct rng rng;
    uint64_t now;
    struct schema_version *schema;
    size_t schema_count;
    struct map64 counters; /* counter -> next, as a number */
    struct buf *bounds;
    size_t bound_count;
    uint64_t fail_commit_at;
    span_status fail_commit;
    unsigned fail_times;
    uint64_t fail_read_at;
    span_status fail_read;
    uint64_t reads;
    uint64_t update_locks;
    const char *missing; /* nodes */
};

struct write {
    struct buf key;
    struct buf value;
    bool gone;
};

struct span {
    struct buf start;
    struct buf end; /* empty: one key when point, else unbounded */
    bool point;
};

struct used {
    uint32_t table;
    uint64_t version;
};

struct mem {
    struct kv base;
    struct kv_mem_store *s;
    bool open;
    bool read_only;
    uint64_t read_at;
    uint64_t seen;
    struct write *w;
    size_t w_count;
    size_t w_cap;
    struct mapb latest; /* key -> index of its last write + 1 */
    struct span *spans;
    size_t span_count;
    struct used *used;
    size_t used_count;
    struct used *ddl;
    size_t ddl_count;
    bool canceled;
    char id[64];
    uint64_t id_seq;
};

struct kv_scan {
    struct mem *m;
    struct buf start;
    struct buf end;
    bool reverse;
    struct slice *own; /* the transaction's own keys in the span, sorted */
    size_t own_count;
    size_t own_at;
    struct node *at; /* forward: next node to look at */
    struct buf back; /* reverse: look below this key */
    bool back_open;  /* reverse: nothing above */
    struct buf key;
    struct buf value;
};

static struct mem *mem_of(struct kv *kv)
{
    return (struct mem *)(void *)kv;
}

/* --- the skip list --- */

static struct node *find_ge(struct kv_mem_store *s, struct slice key, struct node **prev)
{
    struct node *n = &s->head;
    for (int l = LEVELS - 1; l >= 0; l--) {
        while (n->next[l] != NULL && slice_cmp(buf_slice(&n->next[l]->key), key) < 0) {
            n = n->next[l];
        }
        if (prev != NULL) {
            prev[l] = n;
        }
    }
    return n->next[0];
}

/* Last node below key; all: the last of all. NULL: none. */
static struct node *find_lt(struct kv_mem_store *s, struct slice key, bool all)
{
    struct node *n = &s->head;
    for (int l = LEVELS - 1; l >= 0; l--) {
        while (n->next[l] != NULL && (all || slice_cmp(buf_slice(&n->next[l]->key), key) < 0)) {
            n = n->next[l];
        }
    }
    return n == &s->head ? NULL : n;
}

static struct node *find_or_add(struct kv_mem_store *s, struct slice key)
{
    struct node *prev[LEVELS];
    struct node *n = find_ge(s, key, prev);
    if (n != NULL && slice_eq(buf_slice(&n->key), key)) {
        return n;
    }
    n = SPAN_NEW(struct node);
    buf_set(&n->key, key);
    int level = 1;
    while (level < LEVELS && (rng_u64(&s->rng) & 3) == 0) {
        level++;
    }
    for (int l = 0; l < level; l++) {
        n->next[l] = prev[l]->next[l];
        prev[l]->next[l] = n;
    }
    return n;
}

static const struct version *at_time(const struct node *n, uint64_t ts)
{
    for (size_t i = n->count; i > 0; i--) {
        if (n->v[i - 1].ts <= ts) {
            return n->v[i - 1].gone ? NULL : &n->v[i - 1];
        }
    }
    return NULL;
}

struct kv_mem_store *kv_mem_store_new(void)
{
    struct kv_mem_store *s = SPAN_NEW(struct kv_mem_store);
    rng_init(&s->rng, 1);
    s->now = EPOCH_NS;
    map64_init(&s->counters);
    return s;
}

void kv_mem_store_free(struct kv_mem_store *s)
{
    for (struct node *n = s->head.next[0]; n != NULL;) {
        struct node *next = n->next[0];
        for (size_t i = 0; i < n->count; i++) {
            buf_deinit(&n->v[i].value);
        }
        span_free(n->v);
        buf_deinit(&n->key);
        span_free(n);
        n = next;
    }
    for (size_t i = 0; i < s->bound_count; i++) {
        buf_deinit(&s->bounds[i]);
    }
    span_free(s->bounds);
    span_free(s->schema);
    map64_deinit(&s->counters);
    span_free(s);
}

void kv_mem_advance(struct kv_mem_store *s, uint64_t ns)
{
    s->now += ns;
}

void kv_mem_fail_commit(struct kv_mem_store *s, uint64_t nth, span_status st, unsigned times)
{
    s->fail_commit_at = nth;
    s->fail_commit = st;
    s->fail_times = times;
}

void kv_mem_fail_read(struct kv_mem_store *s, uint64_t nth, span_status st)
{
    s->fail_read_at = nth;
    s->fail_read = st;
}

void kv_mem_miss_nodes(struct kv_mem_store *s, const char *nodes)
{
    s->missing = nodes;
}

size_t kv_mem_boundaries(const struct kv_mem_store *s)
{
    return s->bound_count;
}

uint64_t kv_mem_reads(const struct kv_mem_store *s)
{
    return s->reads;
}

uint64_t kv_mem_update_locks(const struct kv_mem_store *s)
{
    return s->update_locks;
}

void kv_mem_each(struct kv_mem_store *s, struct slice start, struct slice end,
                 void (*f)(void *ctx, struct slice key, struct slice value), void *ctx)
{
    for (struct node *n = find_ge(s, start, NULL); n != NULL; n = n->next[0]) {
        if (end.size > 0 && slice_cmp(buf_slice(&n->key), end) >= 0) {
            return;
        }
        const struct version *v = at_time(n, UINT64_MAX);
        if (v != NULL) {
            f(ctx, buf_slice(&n->key), buf_slice(&v->value));
        }
    }
}

/* --- transactions --- */

static void reset(struct mem *m)
{
    for (size_t i = 0; i < m->w_count; i++) {
        buf_deinit(&m->w[i].key);
        buf_deinit(&m->w[i].value);
    }
    for (size_t i = 0; i < m->span_count; i++) {
        buf_deinit(&m->spans[i].start);
        buf_deinit(&m->spans[i].end);
    }
    m->w_count = 0;
    m->span_count = 0;
    m->used_count = 0;
    m->ddl_count = 0;
    mapb_deinit(&m->latest);
    mapb_init(&m->latest);
    m->open = false;
    m->read_only = false;
}

static span_status mem_begin(struct kv *kv, const struct kv_txn_options *opt,
                             struct span_error *err)
{
    struct mem *m = mem_of(kv);
    if (m->open) {
        return span_fail(err, SPAN_INTERNAL, "begin inside a transaction");
    }
    reset(m);
    m->open = true;
    m->read_only = opt->read_only;
    m->read_at = m->s->now;
    m->id[0] = '\0';
    if (opt->mode == KV_READ_AT) {
        m->read_at = opt->at.ns;
    } else if (opt->mode == KV_READ_MAX_STALENESS) {
        m->read_at = m->s->now > opt->staleness_ns ? m->s->now - opt->staleness_ns : 1;
    }
    if (m->read_at < EPOCH_NS && opt->mode == KV_READ_AT) {
        m->open = false;
        return span_fail(err, SPAN_BELOW_HORIZON, "timestamp is older than the version window");
    }
    return SPAN_OK;
}

static bool key_table(struct slice key, uint32_t *table)
{
    if (key.size < 5 || key.data[0] != KEY_TABLE_PREFIX) {
        return false;
    }
    *table = (uint32_t)key.data[1] << 24 | (uint32_t)key.data[2] << 16 |
             (uint32_t)key.data[3] << 8 | key.data[4];
    return true;
}

static uint64_t in_force(const struct kv_mem_store *s, uint32_t table, uint64_t ts)
{
    for (size_t i = s->schema_count; i > 0; i--) {
        if (s->schema[i - 1].table == table && s->schema[i - 1].ts <= ts) {
            return s->schema[i - 1].version;
        }
    }
    return 0;
}

/* Rule E2, and that callers name the version before they touch a table. */
static span_status check_schema(struct mem *m, struct slice key, uint64_t ts,
                                struct span_error *err)
{
    uint32_t table = 0;
    if (!key_table(key, &table) || table < KEY_USER_TABLE_MIN) {
        return SPAN_OK;
    }
    uint64_t have = in_force(m->s, table, ts);
    for (size_t i = 0; i < m->used_count; i++) {
        if (m->used[i].table == table) {
            if (m->used[i].version == have) {
                return SPAN_OK;
            }
            return span_fail(err, SPAN_STALE_SCHEMA, "table %u is at version %llu, not %llu", table,
                             (unsigned long long)have, (unsigned long long)m->used[i].version);
        }
    }
    if (have == 0) {
        return SPAN_OK; /* born in this transaction */
    }
    return span_fail(err, SPAN_INTERNAL, "table %u was touched without use_table", table);
}

static span_status check_read(struct mem *m, struct slice key, enum kv_lock lock,
                              struct span_error *err)
{
    m->s->reads++;
    m->s->update_locks += lock == KV_LOCK_UPDATE ? 1 : 0;
    if (!m->open) {
        return span_fail(err, SPAN_INTERNAL, "read outside a transaction");
    }
    if (m->canceled) {
        return span_fail(err, SPAN_CANCELED, "canceled");
    }
    if (m->s->fail_read_at > 0 && --m->s->fail_read_at == 0) {
        return span_fail(err, m->s->fail_read, "injected");
    }
    if (key.size > LIMIT_KEY_BYTES + 64) { /* no range takes the message: it would never answer */
        return span_fail(err, SPAN_DEADLINE, "asked about a key of %zu bytes", key.size);
    }
    if (lock != KV_LOCK_NONE && m->read_only) {
        return span_fail(err, SPAN_INTERNAL, "lock in a read-only transaction");
    }
    return check_schema(m, key, m->read_at, err);
}

static void note_span(struct mem *m, struct slice start, struct slice end, bool point,
                      enum kv_lock lock)
{
    if (m->read_only || lock == KV_LOCK_NONE) {
        return;
    }
    m->spans = span_realloc(m->spans, (m->span_count + 1) * sizeof *m->spans);
    struct span *sp = &m->spans[m->span_count++];
    memset(sp, 0, sizeof *sp);
    buf_set(&sp->start, start);
    buf_set(&sp->end, end);
    sp->point = point;
}

static const struct write *own_write(const struct mem *m, struct slice key)
{
    size_t i = (size_t)(uintptr_t)mapb_get(&m->latest, key);
    return i == 0 ? NULL : &m->w[i - 1];
}

static void see(struct mem *m, uint64_t ts)
{
    m->seen = ts > m->seen ? ts : m->seen;
}

static span_status mem_get(struct kv *kv, struct slice key, enum kv_lock lock, bool *found,
                           struct buf *value, struct span_error *err)
{
    struct mem *m = mem_of(kv);
    buf_clear(value);
    *found = false;
    span_status st = check_read(m, key, lock, err);
    if (st != SPAN_OK) {
        return st;
    }
    note_span(m, key, slice_of("", 0), true, lock);
    const struct write *w = own_write(m, key);
    if (w != NULL) {
        *found = !w->gone;
        buf_append_slice(value, buf_slice(&w->value));
        return SPAN_OK;
    }
    struct node *n = find_ge(m->s, key, NULL);
    if (n != NULL && slice_eq(buf_slice(&n->key), key)) {
        const struct version *v = at_time(n, m->read_at);
        if (v != NULL) {
            *found = true;
            see(m, v->ts);
            buf_append_slice(value, buf_slice(&v->value));
        }
    }
    return SPAN_OK;
}

static span_status mem_get_many(struct kv *kv, const struct slice *keys, size_t n,
                                enum kv_lock lock, bool *found, struct buf *values,
                                struct span_error *err)
{
    for (size_t i = 0; i < n; i++) {
        span_status st = mem_get(kv, keys[i], lock, &found[i], &values[i], err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

static int cmp_slices(const void *a, const void *b)
{
    return slice_cmp(*(const struct slice *)a, *(const struct slice *)b);
}

static bool in_span(struct slice k, struct slice start, struct slice end)
{
    return slice_cmp(k, start) >= 0 && (end.size == 0 || slice_cmp(k, end) < 0);
}

static span_status mem_scan_open(struct kv *kv, struct slice start, struct slice end, bool reverse,
                                 enum kv_lock lock, size_t hint, struct kv_scan **out,
                                 struct span_error *err)
{
    struct mem *m = mem_of(kv);
    (void)hint;
    *out = NULL;
    span_status st = check_read(m, start, lock, err);
    if (st != SPAN_OK) {
        return st;
    }
    note_span(m, start, end, false, lock);
    struct kv_scan *sc = SPAN_NEW(struct kv_scan);
    sc->m = m;
    buf_set(&sc->start, start);
    buf_set(&sc->end, end);
    sc->reverse = reverse;
    size_t pos = 0;
    struct slice k;
    while (mapb_next(&m->latest, &pos, &k) != NULL) {
        if (in_span(k, start, end)) {
            sc->own = span_realloc(sc->own, (sc->own_count + 1) * sizeof *sc->own);
            sc->own[sc->own_count++] = k;
        }
    }
    if (sc->own_count > 1) {
        qsort(sc->own, sc->own_count, sizeof *sc->own, cmp_slices);
    }
    sc->at = find_ge(m->s, start, NULL);
    buf_set(&sc->back, end);
    sc->back_open = end.size == 0;
    *out = sc;
    return SPAN_OK;
}

/* Next committed node of the scan that is visible, without taking it. NULL: none. */
static struct node *peek(struct kv_scan *sc)
{
    struct kv_mem_store *s = sc->m->s;
    for (;;) {
        struct node *n = sc->reverse ? find_lt(s, buf_slice(&sc->back), sc->back_open) : sc->at;
        if (n == NULL || !in_span(buf_slice(&n->key), buf_slice(&sc->start), buf_slice(&sc->end))) {
            return NULL;
        }
        if (at_time(n, sc->m->read_at) != NULL) {
            return n;
        }
        if (sc->reverse) {
            buf_set(&sc->back, buf_slice(&n->key));
            sc->back_open = false;
        } else {
            sc->at = n->next[0];
        }
    }
}

static void take(struct kv_scan *sc, const struct node *n)
{
    if (sc->reverse) {
        buf_set(&sc->back, buf_slice(&n->key));
        sc->back_open = false;
    } else {
        sc->at = n->next[0];
    }
}

static span_status mem_scan_next(struct kv_scan *sc, struct slice *key, struct slice *value,
                                 struct span_error *err)
{
    if (sc->m->canceled) {
        return span_fail(err, SPAN_CANCELED, "canceled");
    }
    for (;;) {
        struct node *n = peek(sc);
        const struct slice *own = NULL;
        if (sc->own_at < sc->own_count) {
            own = &sc->own[sc->reverse ? sc->own_count - 1 - sc->own_at : sc->own_at];
        }
        if (n == NULL && own == NULL) {
            return SPAN_NOT_FOUND;
        }
        int c = n == NULL ? 1 : own == NULL ? -1 : slice_cmp(buf_slice(&n->key), *own);
        c = n != NULL && own != NULL && sc->reverse ? -c : c;
        if (n != NULL && c <= 0) {
            take(sc, n);
        }
        if (own != NULL && c >= 0) {
            const struct write *w = own_write(sc->m, *own);
            INVARIANT(w != NULL);
            sc->own_at++;
            if (w->gone) {
                continue;
            }
            buf_set(&sc->key, *own);
            buf_set(&sc->value, buf_slice(&w->value));
        } else {
            const struct version *v = n == NULL ? NULL : at_time(n, sc->m->read_at);
            INVARIANT(v != NULL);
            see(sc->m, v->ts);
            buf_set(&sc->key, buf_slice(&n->key));
            buf_set(&sc->value, buf_slice(&v->value));
        }
        *key = buf_slice(&sc->key);
        *value = buf_slice(&sc->value);
        return SPAN_OK;
    }
}

static void mem_scan_close(struct kv_scan *sc)
{
    buf_deinit(&sc->start);
    buf_deinit(&sc->end);
    buf_deinit(&sc->back);
    buf_deinit(&sc->key);
    buf_deinit(&sc->value);
    span_free(sc->own);
    span_free(sc);
}

static span_status add_write(struct mem *m, struct slice key, struct slice value, bool gone,
                             struct span_error *err)
{
    if (!m->open || m->read_only) {
        return span_fail(err, SPAN_INTERNAL, "write outside a read-write transaction");
    }
    span_status st = check_schema(m, key, m->read_at, err);
    if (st != SPAN_OK) {
        return st;
    }
    if (m->w_count == m->w_cap) {
        m->w_cap = m->w_cap == 0 ? 16 : m->w_cap * 2;
        m->w = span_realloc(m->w, m->w_cap * sizeof *m->w);
    }
    struct write *w = &m->w[m->w_count++];
    memset(w, 0, sizeof *w);
    buf_set(&w->key, key);
    buf_set(&w->value, value);
    w->gone = gone;
    mapb_put(&m->latest, buf_slice(&w->key), (void *)(uintptr_t)m->w_count);
    if (m->id[0] == '\0') {
        snprintf(m->id, sizeof m->id, "%llu@mem", (unsigned long long)++m->id_seq);
    }
    return SPAN_OK;
}

static span_status mem_put(struct kv *kv, struct slice key, struct slice value,
                           struct span_error *err)
{
    return add_write(mem_of(kv), key, value, false, err);
}

static span_status mem_del(struct kv *kv, struct slice key, struct span_error *err)
{
    return add_write(mem_of(kv), key, slice_of("", 0), true, err);
}

static struct kv_mark mem_mark(struct kv *kv)
{
    return (struct kv_mark){mem_of(kv)->w_count};
}

static void mem_rollback_to(struct kv *kv, struct kv_mark mark)
{
    struct mem *m = mem_of(kv);
    while (m->w_count > mark.n) {
        struct write *w = &m->w[--m->w_count];
        buf_deinit(&w->key);
        buf_deinit(&w->value);
    }
    mapb_deinit(&m->latest);
    mapb_init(&m->latest);
    for (size_t i = 0; i < m->w_count; i++) {
        mapb_put(&m->latest, buf_slice(&m->w[i].key), (void *)(uintptr_t)(i + 1));
    }
}

/* Has anything in the span changed since the transaction began? */
static bool span_changed(const struct mem *m, const struct span *sp)
{
    struct slice start = buf_slice(&sp->start);
    for (struct node *n = find_ge(m->s, start, NULL); n != NULL; n = n->next[0]) {
        struct slice k = buf_slice(&n->key);
        if (sp->point ? !slice_eq(k, start) : !in_span(k, start, buf_slice(&sp->end))) {
            return false;
        }
        if (n->count > 0 && n->v[n->count - 1].ts > m->read_at) {
            return true;
        }
    }
    return false;
}

static span_status validate(struct mem *m, struct span_error *err)
{
    struct kv_mem_store *s = m->s;
    if (s->fail_commit_at > 0 && --s->fail_commit_at == 0) {
        s->fail_commit_at = --s->fail_times > 0 ? 1 : 0;
        return span_fail(err, s->fail_commit, "injected");
    }
    for (size_t i = 0; i < m->span_count; i++) {
        if (span_changed(m, &m->spans[i])) {
            return span_fail(err, SPAN_CONFLICT, "what was read has changed");
        }
    }
    for (size_t i = 0; i < m->w_count; i++) {
        struct span point = {.start = m->w[i].key, .point = true};
        if (span_changed(m, &point)) {
            return span_fail(err, SPAN_CONFLICT, "what is written has changed");
        }
    }
    for (size_t i = 0; i < m->used_count; i++) {
        if (in_force(s, m->used[i].table, UINT64_MAX) != m->used[i].version) {
            return span_fail(err, SPAN_STALE_SCHEMA, "table %u has changed", m->used[i].table);
        }
    }
    return SPAN_OK;
}

/* As the ranges have it: a transaction's writes in one range are one log entry. */
static span_status check_sizes(const struct mem *m, struct span_error *err)
{
    const struct kv_mem_store *s = m->s;
    size_t *bytes = span_calloc(s->bound_count + 1, sizeof *bytes);
    span_status st = SPAN_OK;
    for (size_t i = 0; st == SPAN_OK && i < m->w_count; i++) {
        struct slice key = buf_slice(&m->w[i].key);
        if ((size_t)(uintptr_t)mapb_get(&m->latest, key) != i + 1) {
            continue;
        }
        size_t r = 0;
        while (r < s->bound_count && slice_cmp(buf_slice(&s->bounds[r]), key) <= 0) {
            r++;
        }
        bytes[r] += key.size + m->w[i].value.size + 16;
        if (bytes[r] > LIMIT_TXN_RANGE_BYTES) {
            st = span_fail(err, SPAN_TOO_LARGE, "more than %llu bytes in one range",
                           (unsigned long long)LIMIT_TXN_RANGE_BYTES);
        }
    }
    span_free(bytes);
    return st;
}

static span_status mem_commit(struct kv *kv, struct tt_ts *ts, struct span_error *err)
{
    struct mem *m = mem_of(kv);
    struct kv_mem_store *s = m->s;
    if (!m->open) {
        return span_fail(err, SPAN_INTERNAL, "commit without a transaction");
    }
    if (m->read_only) {
        ts->ns = m->read_at;
        reset(m);
        return SPAN_OK;
    }
    span_status st = validate(m, err);
    if (st == SPAN_OK) {
        st = check_sizes(m, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    s->now += 1000;
    ts->ns = s->now;
    for (size_t i = 0; i < m->w_count; i++) {
        if ((size_t)(uintptr_t)mapb_get(&m->latest, buf_slice(&m->w[i].key)) != i + 1) {
            continue; /* overwritten later */
        }
        struct node *n = find_or_add(s, buf_slice(&m->w[i].key));
        if (n->count == n->cap) {
            n->cap = n->cap == 0 ? 2 : n->cap * 2;
            n->v = span_realloc(n->v, n->cap * sizeof *n->v);
        }
        struct version *v = &n->v[n->count++];
        memset(v, 0, sizeof *v);
        v->ts = s->now;
        v->gone = m->w[i].gone;
        buf_move(&v->value, &m->w[i].value);
    }
    for (size_t i = 0; i < m->ddl_count; i++) {
        s->schema = span_realloc(s->schema, (s->schema_count + 1) * sizeof *s->schema);
        s->schema[s->schema_count++] =
            (struct schema_version){m->ddl[i].table, s->now, m->ddl[i].version};
    }
    see(m, s->now);
    reset(m);
    return SPAN_OK;
}

static void mem_rollback(struct kv *kv)
{
    reset(mem_of(kv));
}

static void mem_use_table(struct kv *kv, uint32_t table, uint64_t version)
{
    struct mem *m = mem_of(kv);
    for (size_t i = 0; i < m->used_count; i++) {
        if (m->used[i].table == table) {
            m->used[i].version = version;
            return;
        }
    }
    m->used = span_realloc(m->used, (m->used_count + 1) * sizeof *m->used);
    m->used[m->used_count++] = (struct used){table, version};
}

static span_status mem_put_schema_version(struct kv *kv, uint32_t table, uint64_t version,
                                          struct span_error *err)
{
    struct mem *m = mem_of(kv);
    if (!m->open || m->read_only) {
        return span_fail(err, SPAN_INTERNAL, "schema change outside a transaction");
    }
    m->ddl = span_realloc(m->ddl, (m->ddl_count + 1) * sizeof *m->ddl);
    m->ddl[m->ddl_count++] = (struct used){table, version};
    return SPAN_OK;
}

static span_status mem_delete_span(struct kv *kv, struct slice start, struct slice end,
                                   struct span_error *err)
{
    struct kv_scan *sc = NULL;
    struct buf *keys = NULL;
    size_t n = 0;
    span_status st = mem_scan_open(kv, start, end, false, KV_LOCK_UPDATE, 0, &sc, err);
    while (st == SPAN_OK) {
        struct slice k;
        struct slice v;
        st = mem_scan_next(sc, &k, &v, err);
        if (st == SPAN_OK) {
            keys = span_realloc(keys, (n + 1) * sizeof *keys);
            memset(&keys[n], 0, sizeof keys[n]);
            buf_set(&keys[n++], k);
        }
    }
    if (sc != NULL) {
        mem_scan_close(sc);
    }
    st = st == SPAN_NOT_FOUND ? SPAN_OK : st;
    for (size_t i = 0; i < n; i++) {
        if (st == SPAN_OK) {
            st = mem_del(kv, buf_slice(&keys[i]), err);
        }
        buf_deinit(&keys[i]);
    }
    span_free(keys);
    return st;
}

static span_status mem_alloc_ids(struct kv *kv, uint32_t counter, uint64_t count, uint64_t seen_max,
                                 uint64_t *first, struct span_error *err)
{
    struct kv_mem_store *s = mem_of(kv)->s;
    (void)err;
    uint64_t next = (uint64_t)(uintptr_t)map64_get(&s->counters, counter);
    next = next == 0 ? 1 : next;
    next = seen_max >= next ? seen_max + 1 : next;
    *first = next;
    map64_put(&s->counters, counter, (void *)(uintptr_t)(next + count));
    return SPAN_OK;
}

static struct tt_ts mem_not_before(struct kv *kv)
{
    return tt_ts_of(mem_of(kv)->seen);
}

static void mem_clear_not_before(struct kv *kv)
{
    mem_of(kv)->seen = 0;
}

static const char *mem_txn_id(struct kv *kv)
{
    return mem_of(kv)->id;
}

static bool mem_in_txn(struct kv *kv)
{
    return mem_of(kv)->open;
}

static struct tt_ts mem_read_ts(struct kv *kv)
{
    return tt_ts_of(mem_of(kv)->open ? mem_of(kv)->read_at : 0);
}

static struct tt_ts mem_now_latest(struct kv *kv)
{
    return tt_ts_of(mem_of(kv)->s->now);
}

static void mem_set_deadline(struct kv *kv, uint64_t mono_ns)
{
    (void)kv;
    (void)mono_ns;
}

static void mem_set_lock_timeout(struct kv *kv, uint64_t ns)
{
    (void)kv;
    (void)ns;
}

static void mem_cancel(struct kv *kv)
{
    mem_of(kv)->canceled = true;
}

static void mem_clear_cancel(struct kv *kv)
{
    mem_of(kv)->canceled = false;
}

static span_status mem_split_at(struct kv *kv, struct slice key, struct span_error *err)
{
    struct kv_mem_store *s = mem_of(kv)->s;
    (void)err;
    size_t at = 0;
    for (; at < s->bound_count && slice_cmp(buf_slice(&s->bounds[at]), key) < 0; at++) {
    }
    if (at < s->bound_count && slice_eq(buf_slice(&s->bounds[at]), key)) {
        return SPAN_OK;
    }
    s->bounds = span_realloc(s->bounds, (s->bound_count + 1) * sizeof *s->bounds);
    memmove(&s->bounds[at + 1], &s->bounds[at], (s->bound_count - at) * sizeof *s->bounds);
    memset(&s->bounds[at], 0, sizeof s->bounds[at]);
    buf_set(&s->bounds[at], key);
    s->bound_count++;
    return SPAN_OK;
}

static span_status mem_transfer_leader(struct kv *kv, uint64_t range, uint32_t node,
                                       struct span_error *err)
{
    (void)kv;
    (void)node;
    return range == 0 ? span_fail(err, SPAN_NOT_FOUND, "no range 0") : SPAN_OK;
}

static span_status mem_move_replica(struct kv *kv, uint64_t range, uint32_t add, uint32_t remove,
                                    struct span_error *err)
{
    (void)kv;
    return range == 0 || add == remove ? span_fail(err, SPAN_NOT_FOUND, "no such change") : SPAN_OK;
}

static span_status mem_merge_ranges(struct kv *kv, uint64_t left, uint64_t right,
                                    struct span_error *err)
{
    (void)kv;
    return left == right ? span_fail(err, SPAN_INVALID, "no neighbours") : SPAN_OK;
}

static void hex(const struct buf *b, struct buf *out)
{
    buf_clear(out);
    for (size_t i = 0; i < b->size; i++) {
        buf_printf(out, "%02x", b->data[i]);
    }
}

static span_status mem_show(struct kv *kv, enum kv_show what, struct kv_table *out,
                            struct span_error *err)
{
    static const char *const names[] = {"range_id", "start_key", "end_key"};
    static const unsigned types[] = {20, 25, 25};
    static const char *const one[] = {"setting"};
    struct kv_mem_store *s = mem_of(kv)->s;
    (void)err;
    if (what != KV_SHOW_RANGES) {
        kv_table_init(out, 1, one, NULL);
        out->missing = s->missing == NULL ? NULL : span_strdup(s->missing);
        return SPAN_OK;
    }
    kv_table_init(out, 3, names, types);
    struct buf a = {0};
    struct buf b = {0};
    for (size_t i = 0; i <= s->bound_count; i++) {
        char id[24];
        snprintf(id, sizeof id, "%zu", i + 1);
        buf_clear(&a);
        buf_clear(&b);
        if (i > 0) {
            hex(&s->bounds[i - 1], &a);
        }
        if (i < s->bound_count) {
            hex(&s->bounds[i], &b);
        }
        const char *cells[] = {id, buf_cstr(&a), i < s->bound_count ? buf_cstr(&b) : NULL};
        kv_table_add_row(out, cells);
    }
    buf_deinit(&a);
    buf_deinit(&b);
    return SPAN_OK;
}

static span_status mem_txn_status(struct kv *kv, const char *id, enum kv_txn_outcome *out,
                                  struct tt_ts *ts, struct span_error *err)
{
    (void)kv;
    if (strchr(id, '@') == NULL) {
        return span_fail(err, SPAN_INVALID, "\"%s\" is no transaction id", id);
    }
    *out = KV_TXN_COMMITTED;
    ts->ns = EPOCH_NS;
    return SPAN_OK;
}

static span_status mem_set_cluster(struct kv *kv, const char *name, const char *value,
                                   struct span_error *err)
{
    (void)kv;
    (void)value;
    return strcmp(name, "truetime.epsilon") == 0
               ? SPAN_OK
               : span_fail(err, SPAN_INVALID, "no cluster setting \"%s\"", name);
}

static void mem_free(struct kv *kv)
{
    struct mem *m = mem_of(kv);
    reset(m);
    mapb_deinit(&m->latest);
    span_free(m->w);
    span_free(m->spans);
    span_free(m->used);
    span_free(m->ddl);
    span_free(m);
}

static const struct kv_ops mem_ops = {
    .begin = mem_begin,
    .get = mem_get,
    .get_many = mem_get_many,
    .scan_open = mem_scan_open,
    .scan_next = mem_scan_next,
    .scan_close = mem_scan_close,
    .put = mem_put,
    .del = mem_del,
    .mark = mem_mark,
    .rollback_to = mem_rollback_to,
    .commit = mem_commit,
    .rollback = mem_rollback,
    .use_table = mem_use_table,
    .put_schema_version = mem_put_schema_version,
    .delete_span = mem_delete_span,
    .alloc_ids = mem_alloc_ids,
    .not_before = mem_not_before,
    .clear_not_before = mem_clear_not_before,
    .txn_id = mem_txn_id,
    .in_txn = mem_in_txn,
    .read_ts = mem_read_ts,
    .now_latest = mem_now_latest,
    .set_deadline = mem_set_deadline,
    .set_lock_timeout = mem_set_lock_timeout,
    .cancel = mem_cancel,
    .clear_cancel = mem_clear_cancel,
    .split_at = mem_split_at,
    .transfer_leader = mem_transfer_leader,
    .move_replica = mem_move_replica,
    .merge_ranges = mem_merge_ranges,
    .show = mem_show,
    .txn_status = mem_txn_status,
    .set_cluster = mem_set_cluster,
    .free = mem_free,
};

struct kv *kv_mem_new(struct kv_mem_store *s)
{
    struct mem *m = SPAN_NEW(struct mem);
    m->base.ops = &mem_ops;
    m->s = s;
    mapb_init(&m->latest);
    return &m->base;
}
