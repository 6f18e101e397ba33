/* Rows of the virtual tables from the key-value store: a plan's values become key spans, spans
 * become gets and scans, index entries become row keys fetched in batches.
 *
 * A right-hand side arrives without the column's affinity (probe 3.2). For numeric columns SQLite
 * turns it into a number before comparing, and so do we. A TEXT or BLOB column against a number is
 * compared in ways that depend on where the number came from, so such a constraint does not narrow
 * the scan: SQLite checks every row anyway. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/index.h"
#include "sql/session_impl.h"

#include <stdlib.h>

#define FETCH_FIRST 16 /* rows fetched by key at once behind an index scan: grows to FETCH_MAX */
#define FETCH_MAX   256

struct key_span {
    struct buf start;
    struct buf end; /* empty with exact: start is one key */
    bool exact;
};

enum cursor_mode {
    MODE_DONE,
    MODE_SCAN,   /* rows by primary key, span after span */
    MODE_REPLAY, /* rows from the statement's scan cache */
    MODE_KEYS,   /* rows fetched by exact key: fetched[] */
};

struct handle { /* what a virtual table's name stands for */
    struct sess_table *t;
    bool update;
};

struct source_cursor {
    struct sql_session *s;
    struct handle *h;
    struct key_span *spans;
    size_t span_count;
    size_t span_at;
    bool reverse;
    size_t hint;
    const struct table_index *index; /* secondary index of the scan, NULL: primary */
    bool covering;
    enum kv_lock lock;
    enum cursor_mode mode;
    struct kv_scan *scan;
    struct scan_cache *record;
    struct scan_cache *replay;
    size_t replay_at;
    struct slice row;         /* row bytes or index entry bytes */
    struct sql_value *values; /* decoded columns of the row */
    bool decoded;
    int64_t rowid;
    struct buf *keys; /* batch of row keys and what they hold */
    struct buf *fetched;
    bool *found;
    struct slice *key_slices;
    size_t batch_count;
    size_t batch_at;
    size_t batch_cap;
    size_t batch_next;
};

enum kv_lock session_lock(const struct sql_session *s, enum kv_lock wanted)
{
    return s->read_only ? KV_LOCK_NONE : wanted;
}

static int fail(struct source_cursor *c, span_status st, const struct span_error *err)
{
    if (c->s->fault == SPAN_OK) {
        c->s->fault = st;
        c->s->fault_err = *err;
    }
    return SQLITE_ERROR;
}

void session_scans_reset(struct sql_session *s)
{
    for (size_t i = 0; i < s->scan_slots; i++) {
        buf_deinit(&s->scans[i].start);
        buf_deinit(&s->scans[i].end);
        buf_deinit(&s->scans[i].rows);
    }
    memset(s->scans, 0, s->scan_slots * sizeof s->scans[0]);
    s->scan_slots = 0;
}

static int src_attach(void *ctx, const char *name, void **table, const struct vtab_shape **shape,
                      char **msg)
{
    struct sql_session *s = ctx;
    bool update = strncmp(name, UPDATE_PREFIX, strlen(UPDATE_PREFIX)) == 0;
    struct buf low = {0};
    schema_lower(update ? name + strlen(UPDATE_PREFIX) : name, &low);
    struct sess_table *t = mapb_get(&s->tables, buf_slice(&low));
    buf_deinit(&low);
    if (t == NULL) {
        *msg = sqlite3_mprintf("no such table: %s", name);
        return SQLITE_ERROR;
    }
    struct handle *h = SPAN_NEW(struct handle);
    h->t = t;
    h->update = update;
    *table = h;
    *shape = &t->shape;
    return SQLITE_OK;
}

static void src_release(void *ctx, void *table)
{
    (void)ctx;
    span_free(table);
}

static int src_open(void *ctx, void *table, void **cursor)
{
    struct source_cursor *c = SPAN_NEW(struct source_cursor);
    c->s = ctx;
    c->h = table;
    *cursor = c;
    return SQLITE_OK;
}

static void end_scan(struct source_cursor *c)
{
    if (c->scan != NULL) {
        c->s->kv->ops->scan_close(c->scan);
        c->scan = NULL;
    }
    if (c->record != NULL) {
        c->record->recording = false;
        c->record = NULL;
    }
    c->replay = NULL;
}

static void free_spans(struct source_cursor *c)
{
    for (size_t i = 0; i < c->span_count; i++) {
        buf_deinit(&c->spans[i].start);
        buf_deinit(&c->spans[i].end);
    }
    span_free(c->spans);
    c->spans = NULL;
    c->span_count = 0;
}

static void free_batch(struct source_cursor *c)
{
    for (size_t i = 0; i < c->batch_cap; i++) {
        buf_deinit(&c->keys[i]);
        buf_deinit(&c->fetched[i]);
    }
    span_free(c->keys);
    span_free(c->fetched);
    span_free(c->found);
    span_free(c->key_slices);
    c->keys = NULL;
    c->fetched = NULL;
    c->found = NULL;
    c->key_slices = NULL;
    c->batch_cap = 0;
    c->batch_count = 0;
    c->batch_at = 0;
}

static void src_close(void *cursor)
{
    struct source_cursor *c = cursor;
    end_scan(c);
    free_spans(c);
    free_batch(c);
    span_free(c->values);
    span_free(c);
}

/* --- from values to spans --- */

struct narrowing {
    struct source_cursor *c;
    const struct vtab_scan *scan;
    const struct table_index *ix;
    bool rowid_key; /* primary key is the rowid */
    bool empty;     /* a comparison with NULL: no row */
};

static enum sql_affinity key_affinity(const struct narrowing *n, size_t i)
{
    return n->rowid_key ? AFF_INTEGER : n->c->h->t->desc->columns[n->ix->columns[i]].affinity;
}

static enum sql_collation key_collation(const struct narrowing *n, size_t i)
{
    return n->rowid_key ? COLL_BINARY : n->ix->collations[i];
}

static bool key_desc(const struct narrowing *n, size_t i)
{
    return n->rowid_key ? false : n->ix->desc[i];
}

/* Value as the comparison will see it; false when it cannot narrow the scan. */
static bool comparable(const struct narrowing *n, size_t i, sqlite3_value *v, struct sql_value *out)
{
    enum sql_affinity aff = key_affinity(n, i);
    *out = sql_value_of(v);
    if (aff == AFF_TEXT || aff == AFF_BLOB) {
        return out->type != SQL_INT && out->type != SQL_REAL;
    }
    sql_value_apply_affinity(out, aff, NULL);
    return true;
}

static struct key_span *add_span(struct source_cursor *c)
{
    c->spans = span_realloc(c->spans, (c->span_count + 1) * sizeof *c->spans);
    struct key_span *sp = &c->spans[c->span_count++];
    memset(sp, 0, sizeof *sp);
    return sp;
}

/* If the right-hand side is a numeric column that holds text, SQLite turns our texts that look like
 * numbers into numbers, which lie below any text: an upper bound must leave them in. They all sort
 * below ":". */
static void widen_upper(const struct narrowing *n, size_t i, struct sql_value *v)
{
    enum sql_affinity aff = key_affinity(n, i);
    if ((aff == AFF_TEXT || aff == AFF_BLOB) && v->type == SQL_TEXT &&
        (v->s.size == 0 || v->s.data[0] < ':')) {
        v->s = slice_str(":");
    }
}

/* The bounds on the column after the pinned ones, in key space; empty bounds: the prefix's own. */
static void add_range(struct narrowing *n, const struct buf *prefix, size_t at)
{
    const struct vtab_plan *p = &n->scan->plan;
    struct key_span *sp = add_span(n->c);
    struct buf low = {0};
    struct buf high = {0};
    struct sql_value v;
    bool desc = at < (n->rowid_key ? 1 : n->ix->count) && key_desc(n, at);
    bool has_lo = p->has_lo && at == p->eq_count;
    bool has_hi = p->has_hi && at == p->eq_count;
    if (has_lo && comparable(n, at, n->scan->lo, &v)) {
        n->empty = n->empty || v.type == SQL_NULL;
        buf_append_slice(&low, buf_slice(prefix));
        key_encode(&low, &v, key_collation(n, at), desc);
    }
    if (has_hi && comparable(n, at, n->scan->hi, &v)) {
        n->empty = n->empty || v.type == SQL_NULL;
        widen_upper(n, at, &v);
        buf_append_slice(&high, buf_slice(prefix));
        key_encode(&high, &v, key_collation(n, at), desc);
    }
    bool lo_incl = p->lo_incl;
    bool hi_incl = p->hi_incl;
    if (desc) {
        struct buf t = low;
        low = high;
        high = t;
        lo_incl = p->hi_incl;
        hi_incl = p->lo_incl;
    }
    if (low.size == 0) {
        buf_append_slice(&sp->start, buf_slice(prefix));
    } else if (lo_incl) {
        buf_append_slice(&sp->start, buf_slice(&low));
    } else {
        key_prefix_end(&sp->start, buf_slice(&low));
    }
    if (high.size == 0) {
        key_prefix_end(&sp->end, buf_slice(prefix));
    } else if (hi_incl) {
        key_prefix_end(&sp->end, buf_slice(&high));
    } else {
        buf_append_slice(&sp->end, buf_slice(&high));
    }
    buf_deinit(&low);
    buf_deinit(&high);
}

/* Pins columns from `at` on and adds the spans that result; forks at an IN list. */
static void add_spans(struct narrowing *n, struct buf *prefix, size_t at)
{
    const struct vtab_plan *p = &n->scan->plan;
    if (at == p->eq_count) {
        size_t key_columns = n->rowid_key ? 1 : n->ix->count;
        bool whole = at == key_columns && n->ix->unique && p->null_ok == 0;
        if (whole && !n->empty) {
            struct key_span *sp = add_span(n->c);
            sp->exact = true;
            buf_append_slice(&sp->start, buf_slice(prefix));
            return;
        }
        add_range(n, prefix, at);
        return;
    }
    size_t size = prefix->size;
    struct sql_value v;
    if ((int)at != p->in_at) {
        if (!comparable(n, at, n->scan->eq[at], &v)) {
            add_range(n, prefix, p->eq_count + 1); /* the whole prefix */
            return;
        }
        if (v.type == SQL_NULL && (p->null_ok >> at & 1) == 0) {
            n->empty = true;
            return;
        }
        key_encode(prefix, &v, key_collation(n, at), key_desc(n, at));
        add_spans(n, prefix, at + 1);
        prefix->size = size;
        return;
    }
    sqlite3_value *e = NULL;
    for (int rc = sqlite3_vtab_in_first(n->scan->eq[at], &e); rc == SQLITE_OK && e != NULL;
         rc = sqlite3_vtab_in_next(n->scan->eq[at], &e)) {
        if (!comparable(n, at, e, &v)) {
            free_spans(n->c);
            add_range(n, prefix, p->eq_count + 1);
            return;
        }
        if (v.type == SQL_NULL) {
            continue;
        }
        key_encode(prefix, &v, key_collation(n, at), key_desc(n, at));
        bool empty = n->empty;
        add_spans(n, prefix, at + 1);
        n->empty = empty; /* a NULL elsewhere leaves that branch out */
        prefix->size = size;
    }
}

static int span_cmp(const void *a, const void *b)
{
    const struct key_span *x = a;
    const struct key_span *y = b;
    return slice_cmp(buf_slice(&x->start), buf_slice(&y->start));
}

/* In key order, without doubles ('5' and 5 in one IN list are one key). */
static void sort_spans(struct source_cursor *c)
{
    if (c->span_count < 2) {
        return;
    }
    qsort(c->spans, c->span_count, sizeof *c->spans, span_cmp);
    size_t n = 1;
    for (size_t i = 1; i < c->span_count; i++) {
        if (span_cmp(&c->spans[n - 1], &c->spans[i]) == 0) {
            buf_deinit(&c->spans[i].start);
            buf_deinit(&c->spans[i].end);
        } else {
            c->spans[n++] = c->spans[i];
        }
    }
    c->span_count = n;
}

/* A bound beyond the limit lies between two keys that may exist: its first LIMIT_KEY_BYTES bytes,
 * the greatest of them not above it, and that one's successor. */
static void cut_bound(struct buf *bound)
{
    if (bound->size > LIMIT_KEY_BYTES) {
        bound->size = LIMIT_KEY_BYTES;
        buf_append_byte(bound, 0);
    }
}

/* Comparisons with values too large for a key: the store need not be asked, and refuses to be. */
static void cut_spans(struct source_cursor *c)
{
    size_t n = 0;
    for (size_t i = 0; i < c->span_count; i++) {
        struct key_span *sp = &c->spans[i];
        bool none = sp->exact && sp->start.size > LIMIT_KEY_BYTES;
        cut_bound(&sp->start);
        cut_bound(&sp->end);
        none = none || (!sp->exact && sp->end.size > 0 &&
                        slice_cmp(buf_slice(&sp->start), buf_slice(&sp->end)) >= 0);
        if (none) {
            buf_deinit(&sp->start);
            buf_deinit(&sp->end);
        } else {
            c->spans[n++] = *sp;
        }
    }
    c->span_count = n;
}

static void build_spans(struct source_cursor *c, const struct vtab_scan *scan)
{
    struct sess_table *t = c->h->t;
    const struct table_index *ix = &t->desc->primary;
    if (scan->plan.index != 0) {
        ix = &t->desc->indexes[t->index_of[scan->plan.index]];
    }
    struct narrowing n = {.c = c, .scan = scan, .ix = ix};
    n.rowid_key = scan->plan.index == 0 && t->desc->pk != PK_COLUMNS;
    struct buf prefix = {0};
    key_index_prefix(&prefix, t->desc->id, ix->id);
    add_spans(&n, &prefix, 0);
    buf_deinit(&prefix);
    if (n.empty) {
        free_spans(c);
    }
    cut_spans(c);
    sort_spans(c);
}

/* --- rows by key --- */

static void batch_reserve(struct source_cursor *c, size_t n)
{
    if (n <= c->batch_cap) {
        return;
    }
    c->keys = span_realloc(c->keys, n * sizeof *c->keys);
    c->fetched = span_realloc(c->fetched, n * sizeof *c->fetched);
    c->found = span_realloc(c->found, n * sizeof *c->found);
    c->key_slices = span_realloc(c->key_slices, n * sizeof *c->key_slices);
    memset(c->keys + c->batch_cap, 0, (n - c->batch_cap) * sizeof *c->keys);
    memset(c->fetched + c->batch_cap, 0, (n - c->batch_cap) * sizeof *c->fetched);
    c->batch_cap = n;
}

/* Fetches keys[0 .. batch_count) under lock. */
static int batch_fetch(struct source_cursor *c, enum kv_lock lock)
{
    struct span_error err = {0};
    struct kv *kv = c->s->kv;
    span_status st = SPAN_OK;
    c->batch_at = 0;
    if (c->batch_count == 1) {
        st = kv->ops->get(kv, buf_slice(&c->keys[0]), lock, &c->found[0], &c->fetched[0], &err);
    } else if (c->batch_count > 1) {
        for (size_t i = 0; i < c->batch_count; i++) {
            c->key_slices[i] = buf_slice(&c->keys[i]);
            buf_clear(&c->fetched[i]);
        }
        st = kv->ops->get_many(kv, c->key_slices, c->batch_count, lock, c->found, c->fetched, &err);
    }
    return st == SPAN_OK ? SQLITE_OK : fail(c, st, &err);
}

/* Row keys of the index entries in entry[0 .. n) into the batch; missing entries drop out. */
static int keys_from_entries(struct source_cursor *c)
{
    size_t n = 0;
    struct buf key = {0};
    for (size_t i = 0; i < c->batch_count; i++) {
        if (!c->found[i]) {
            continue;
        }
        buf_clear(&key);
        if (index_entry_row_key(c->h->t->desc, c->index, buf_slice(&c->fetched[i]), &key) !=
            SPAN_OK) {
            struct span_error err = {0};
            buf_deinit(&key);
            span_status st =
                span_fail(&err, SPAN_CORRUPT, "index \"%s\" holds a bad entry", c->index->name);
            return fail(c, st, &err);
        }
        buf_set(&c->keys[n++], buf_slice(&key));
    }
    buf_deinit(&key);
    c->batch_count = n;
    return SQLITE_OK;
}

static bool all_exact(const struct source_cursor *c)
{
    for (size_t i = 0; i < c->span_count; i++) {
        if (!c->spans[i].exact) {
            return false;
        }
    }
    return true;
}

/* Every span is one key: fetch them all at once. */
static int start_points(struct source_cursor *c)
{
    bool update = c->h->update;
    c->mode = MODE_KEYS;
    batch_reserve(c, c->span_count);
    for (size_t i = 0; i < c->span_count; i++) {
        buf_set(&c->keys[i], buf_slice(&c->spans[i].start));
    }
    c->batch_count = c->span_count;
    enum kv_lock wanted = update && c->index == NULL ? KV_LOCK_UPDATE : c->s->read_lock;
    int rc = batch_fetch(c, session_lock(c->s, wanted));
    if (rc != SQLITE_OK || c->index == NULL || c->covering) {
        return rc;
    }
    rc = keys_from_entries(c);
    if (rc == SQLITE_OK) {
        rc = batch_fetch(c, session_lock(c->s, update ? KV_LOCK_UPDATE : c->s->read_lock));
    }
    return rc;
}

/* --- scans --- */

static struct scan_cache *scan_slot(struct source_cursor *c)
{
    struct sql_session *s = c->s;
    const struct key_span *sp = &c->spans[0];
    for (size_t i = 0; i < s->scan_slots; i++) {
        struct scan_cache *x = &s->scans[i];
        if (x->reverse == c->reverse && x->lock == c->lock &&
            slice_eq(buf_slice(&x->start), buf_slice(&sp->start)) &&
            slice_eq(buf_slice(&x->end), buf_slice(&sp->end))) {
            return x;
        }
    }
    if (s->scan_slots == SCAN_CACHE_SLOTS) {
        return NULL;
    }
    struct scan_cache *x = &s->scans[s->scan_slots++];
    x->reverse = c->reverse;
    x->lock = c->lock;
    buf_set(&x->start, buf_slice(&sp->start));
    buf_set(&x->end, buf_slice(&sp->end));
    return x;
}

/* A statement that scans the same span again (a correlated subquery, the inner side of a join) gets
 * it from memory: within one statement the answer cannot differ. */
static bool start_replay(struct source_cursor *c)
{
    struct scan_cache *x = scan_slot(c);
    if (x == NULL || x->scans == UINT32_MAX) {
        return false;
    }
    x->scans++;
    if (x->complete) {
        c->mode = MODE_REPLAY;
        c->replay = x;
        c->replay_at = 0;
        return true;
    }
    if (x->scans >= 2 && !x->recording) {
        x->recording = true;
        buf_clear(&x->rows);
        c->record = x;
    }
    return false;
}

static int open_span(struct source_cursor *c)
{
    struct span_error err = {0};
    size_t at = c->reverse ? c->span_count - 1 - c->span_at : c->span_at;
    struct key_span *sp = &c->spans[at];
    struct buf end = {0};
    if (sp->exact) {
        key_prefix_end(&end, buf_slice(&sp->start));
    } else {
        buf_append_slice(&end, buf_slice(&sp->end));
    }
    span_status st = SPAN_OK;
    if (end.size > 0 && slice_cmp(buf_slice(&sp->start), buf_slice(&end)) >= 0) {
        c->scan = NULL; /* contradictory bounds */
    } else {
        st = c->s->kv->ops->scan_open(c->s->kv, buf_slice(&sp->start), buf_slice(&end), c->reverse,
                                      c->lock, c->hint, &c->scan, &err);
    }
    buf_deinit(&end);
    c->span_at++;
    return st == SPAN_OK ? SQLITE_OK : fail(c, st, &err);
}

static void record_row(struct source_cursor *c, struct slice k, struct slice v)
{
    struct scan_cache *x = c->record;
    if (x == NULL) {
        return;
    }
    if (x->rows.size + k.size + v.size > SCAN_CACHE_BYTES) {
        x->scans = UINT32_MAX; /* too big: never again in this statement */
        x->recording = false;
        buf_deinit(&x->rows);
        c->record = NULL;
        return;
    }
    uint32_t n[2] = {(uint32_t)k.size, (uint32_t)v.size};
    buf_append(&x->rows, n, sizeof n);
    buf_append_slice(&x->rows, k);
    buf_append_slice(&x->rows, v);
}

/* Next key and value of the scan, over all spans; *end at the end. */
static int scan_step(struct source_cursor *c, struct slice *k, struct slice *v, bool *end)
{
    struct span_error err = {0};
    *end = false;
    for (;;) {
        if (c->scan == NULL) {
            if (c->span_at >= c->span_count) {
                *end = true;
                if (c->record != NULL) {
                    c->record->complete = true;
                    c->record->recording = false;
                    c->record = NULL;
                }
                return SQLITE_OK;
            }
            int rc = open_span(c);
            if (rc != SQLITE_OK) {
                return rc;
            }
            continue;
        }
        span_status st = c->s->kv->ops->scan_next(c->scan, k, v, &err);
        if (st == SPAN_OK) {
            record_row(c, *k, *v);
            return SQLITE_OK;
        }
        if (st != SPAN_NOT_FOUND) {
            return fail(c, st, &err);
        }
        c->s->kv->ops->scan_close(c->scan);
        c->scan = NULL;
    }
}

static void replay_step(struct source_cursor *c, struct slice *k, struct slice *v, bool *end)
{
    const struct buf *r = &c->replay->rows;
    *end = c->replay_at >= r->size;
    if (*end) {
        return;
    }
    uint32_t n[2];
    memcpy(n, r->data + c->replay_at, sizeof n);
    c->replay_at += sizeof n;
    *k = slice_of(r->data + c->replay_at, n[0]);
    *v = slice_of(r->data + c->replay_at + n[0], n[1]);
    c->replay_at += (size_t)n[0] + n[1];
}

static int any_step(struct source_cursor *c, struct slice *k, struct slice *v, bool *end)
{
    if (c->mode == MODE_REPLAY) {
        replay_step(c, k, v, end);
        return SQLITE_OK;
    }
    return scan_step(c, k, v, end);
}

/* Fills the batch from the index scan and fetches the rows behind it. */
static int refill_from_index(struct source_cursor *c)
{
    size_t want = c->batch_next;
    c->batch_next = want * 4 > FETCH_MAX ? FETCH_MAX : want * 4;
    for (;;) {
        batch_reserve(c, want);
        c->batch_count = 0;
        bool end = false;
        while (c->batch_count < want) {
            struct slice k;
            struct slice v;
            int rc = any_step(c, &k, &v, &end);
            if (rc != SQLITE_OK) {
                return rc;
            }
            if (end) {
                break;
            }
            c->found[c->batch_count] = true;
            buf_set(&c->fetched[c->batch_count++], v);
        }
        if (c->batch_count == 0) {
            c->mode = MODE_DONE;
            return SQLITE_OK;
        }
        int rc = keys_from_entries(c);
        if (rc == SQLITE_OK) {
            rc =
                batch_fetch(c, session_lock(c->s, c->h->update ? KV_LOCK_UPDATE : c->s->read_lock));
        }
        if (rc != SQLITE_OK) {
            return rc;
        }
        for (size_t i = 0; i < c->batch_count; i++) {
            if (c->found[i]) {
                return SQLITE_OK;
            }
        }
    }
}

/* Rowid of the current row, from its key or from an index entry. */
static int set_row(struct source_cursor *c, struct slice key, struct slice value)
{
    c->row = value;
    c->decoded = false;
    if (c->h->t->desc->pk == PK_COLUMNS) {
        return SQLITE_OK;
    }
    if (c->index != NULL && c->covering) {
        struct sql_value v;
        if (index_entry_rowid(c->h->t->desc, c->index, value, &v) == SPAN_OK) {
            c->rowid = v.i;
        }
        return SQLITE_OK;
    }
    uint32_t table = 0;
    uint16_t index = 0;
    struct slice rest;
    struct sql_value v;
    struct buf scratch = {0};
    if (key_parse_prefix(key, &table, &index, &rest) && key_decode(&rest, false, &v, &scratch)) {
        c->rowid = v.i;
    }
    buf_deinit(&scratch);
    return SQLITE_OK;
}

static int step(struct source_cursor *c)
{
    for (;;) {
        bool by_key = c->mode == MODE_KEYS || (c->index != NULL && !c->covering);
        if (c->mode == MODE_DONE) {
            return SQLITE_OK;
        }
        if (!by_key) {
            struct slice k;
            struct slice v;
            bool end = false;
            int rc = any_step(c, &k, &v, &end);
            if (rc != SQLITE_OK || end) {
                c->mode = MODE_DONE;
                return rc;
            }
            return set_row(c, k, v);
        }
        if (c->batch_at < c->batch_count) {
            size_t i = c->batch_at++;
            if (!c->found[i]) {
                continue;
            }
            return set_row(c, buf_slice(&c->keys[i]), buf_slice(&c->fetched[i]));
        }
        if (c->mode == MODE_KEYS) {
            c->mode = MODE_DONE;
            return SQLITE_OK;
        }
        int rc = refill_from_index(c);
        if (rc != SQLITE_OK) {
            c->mode = MODE_DONE;
            return rc;
        }
    }
}

static enum kv_lock scan_lock(const struct source_cursor *c, const struct vtab_scan *scan)
{
    bool bounded = scan->plan.eq_count > 0 || scan->plan.has_lo || scan->plan.has_hi;
    if (c->h->update && c->index == NULL && bounded) {
        return KV_LOCK_UPDATE; /* rule C6 */
    }
    if (c->h->update && c->index == NULL) {
        c->s->unbounded_pick = true;
    }
    /* An unbounded scan of an UPDATE searches S; the rows it picks are locked X after it (dml.c).
     */
    return c->s->read_lock;
}

static int src_filter(void *cursor, const struct vtab_scan *scan, char **msg)
{
    struct source_cursor *c = cursor;
    struct sess_table *t = c->h->t;
    (void)msg;
    if (scan->plan.index >= t->shape.index_count) {
        return SQLITE_ERROR;
    }
    end_scan(c);
    free_spans(c);
    c->batch_count = 0;
    c->batch_at = 0;
    c->batch_next = FETCH_FIRST;
    c->span_at = 0;
    c->reverse = scan->plan.reverse;
    c->hint = (size_t)scan->plan.hint_rows;
    c->index = scan->plan.index == 0 ? NULL : &t->desc->indexes[t->index_of[scan->plan.index]];
    c->covering = c->index != NULL && !c->h->update &&
                  (scan->plan.col_used & ~t->vindexes[scan->plan.index].covers) == 0;
    session_use_table(c->s, t);
    build_spans(c, scan);
    if (c->span_count == 0) {
        c->mode = MODE_DONE;
        return SQLITE_OK;
    }
    /* A unique index whose key holds a NULL has the row's key behind it: look for a prefix, not a
     * point. */
    if (all_exact(c)) {
        int rc = start_points(c);
        return rc == SQLITE_OK ? step(c) : rc;
    }
    c->mode = MODE_SCAN;
    c->lock = session_lock(c->s, scan_lock(c, scan));
    if (c->span_count == 1) {
        (void)start_replay(c);
    }
    return step(c);
}

static int src_next(void *cursor, char **msg)
{
    (void)msg;
    return step(cursor);
}

static bool src_eof(void *cursor)
{
    const struct source_cursor *c = cursor;
    return c->mode == MODE_DONE;
}

static int src_column(void *cursor, sqlite3_context *out, int column)
{
    struct source_cursor *c = cursor;
    const struct table_desc *d = c->h->t->desc;
    if (column < 0 || (size_t)column >= d->column_count) {
        return SQLITE_OK;
    }
    if (!c->decoded) {
        if (c->values == NULL) {
            c->values = span_calloc(d->column_count + 1, sizeof *c->values);
        }
        span_status st = c->index != NULL && c->covering
                             ? index_entry_columns(d, c->index, c->row, c->values)
                             : row_decode(c->row, c->values, d->column_count);
        if (st != SPAN_OK) {
            struct span_error err = {0};
            st = span_fail(&err, st, "a row of \"%s\" is corrupt", d->name);
            return fail(c, st, &err);
        }
        c->decoded = true;
    }
    sql_value_result(out, &c->values[column]);
    return SQLITE_OK;
}

static sqlite3_int64 src_rowid(void *cursor)
{
    const struct source_cursor *c = cursor;
    return c->rowid;
}

const struct vtab_source_ops session_source_ops = {
    .attach = src_attach,
    .release = src_release,
    .open = src_open,
    .close = src_close,
    .filter = src_filter,
    .next = src_next,
    .eof = src_eof,
    .column = src_column,
    .rowid = src_rowid,
};
