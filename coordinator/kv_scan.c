/* Scans of a session. What is left of a scan is a sequence of pages (rows that are here) and gaps
 * (spans to be asked for), in the order of the scan:
 *
 *   [gap a..z)  ->  [page a..f][gap f..g)[page g..k][gap m..z)  -> ...
 *
 * One read of a gap asks several ranges at once and puts pages and smaller gaps in its place. While
 * the first page is being consumed the gap behind it is asked for. Own writes are merged in by
 * looking for the next one above (below) the last key given, so that writes made during the scan
 * count, too. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "coordinator/kv_impl.h"

#define PARALLEL_RANGES 8
#define SPARES          4

struct scan_item {
    bool gap;
    bool asked; /* gap: the scan's op reads it */
    struct read_page page;
    struct buf start; /* gap */
    struct buf end;
};

struct kv_scan {
    struct kv_ses *s;
    bool reverse;
    enum kv_lock lock;
    size_t hint;
    uint32_t page_rows; /* of the next request; 0: the most */
    size_t given;
    struct scan_item *items;
    size_t item_count;
    size_t item_cap;
    size_t at;        /* row of the first item, a page */
    struct kv_op *op; /* reads a gap; NULL: none under way */
    struct buf start;
    struct buf end;
    struct buf last; /* last key given */
    bool has_last;
    struct buf value; /* of an own write */
};

/* ---- page buffers ---- */

static void page_free(struct read_page *p)
{
    buf_deinit(&p->bytes);
    buf_deinit(&p->rest_start);
    buf_deinit(&p->rest_end);
    span_free(p->rows);
}

void kv_spares_free(struct kv_ses *s)
{
    while (s->spare_count > 0) {
        page_free(&s->spare[--s->spare_count]);
    }
    while (s->pool_count > 0) {
        kv_op_free(s->pool[--s->pool_count]);
    }
}

static void page_give_back(struct kv_ses *s, struct read_page *p)
{
    if (s->spare_count < SPARES) {
        s->spare[s->spare_count++] = *p;
    } else {
        page_free(p);
    }
}

static struct read_page page_spare(struct kv_ses *s)
{
    static const struct read_page none;
    return s->spare_count == 0 ? none : s->spare[--s->spare_count];
}

static struct kv_op *op_get(struct kv_ses *s)
{
    return s->pool_count == 0 ? kv_op_new() : s->pool[--s->pool_count];
}

static void op_put(struct kv_ses *s, struct kv_op *op)
{
    if (s->pool_count < sizeof s->pool / sizeof s->pool[0]) {
        s->pool[s->pool_count++] = op;
    } else {
        kv_op_free(op);
    }
}

/* ---- items ---- */

static struct scan_item *item_insert(struct kv_scan *c, size_t at)
{
    if (c->item_count == c->item_cap) {
        c->item_cap = c->item_cap == 0 ? 4 : c->item_cap * 2;
        c->items = span_realloc(c->items, c->item_cap * sizeof *c->items);
    }
    memmove(&c->items[at + 1], &c->items[at], (c->item_count - at) * sizeof *c->items);
    c->item_count++;
    memset(&c->items[at], 0, sizeof c->items[at]);
    return &c->items[at];
}

static void item_remove(struct kv_scan *c, size_t at)
{
    struct scan_item *it = &c->items[at];
    if (it->gap) {
        buf_deinit(&it->start);
        buf_deinit(&it->end);
    } else {
        page_give_back(c->s, &it->page);
    }
    memmove(&c->items[at], &c->items[at + 1], (c->item_count - at - 1) * sizeof *c->items);
    c->item_count--;
}

static void gap_insert(struct kv_scan *c, size_t at, struct slice start, struct slice end)
{
    struct scan_item *it = item_insert(c, at);
    it->gap = true;
    buf_set(&it->start, start);
    buf_set(&it->end, end);
}

/* ---- reading gaps ---- */

static span_status ask(struct kv_scan *c, struct scan_item *gap, struct span_error *err)
{
    struct kv_op *op = op_get(c->s);
    struct txn_read *r = &op->g.read;
    buf_move(&op->start, &gap->start);
    buf_move(&op->end, &gap->end);
    r->start = buf_slice(&op->start);
    r->end = buf_slice(&op->end);
    r->reverse = c->reverse;
    r->page_rows = c->page_rows;
    r->parallel = c->page_rows == 0 ? PARALLEL_RANGES : 1;
    struct slice anchor = c->reverse ? slice_of(NULL, 0)
                                     : r->start; /* where a reverse scan begins is not known yet */
    span_status st = kv_read_begin(c->s, op, c->lock, anchor, err);
    if (st == SPAN_OK && atomic_load(&c->s->canceled)) {
        st = span_fail(err, SPAN_CANCELED, "canceled");
    }
    if (st != SPAN_OK) {
        buf_move(&gap->start, &op->start);
        buf_move(&gap->end, &op->end);
        op_put(c->s, op);
        return st;
    }
    gap->asked = true;
    c->op = op;
    (void)kv_op_post(c->s, op); /* CLOSED: it is done at once, and says so */
    if (c->page_rows != 0) {    /* the hint was too low */
        c->page_rows = c->page_rows >= LIMIT_RESULT_PAGE_ROWS / 4 ? 0 : c->page_rows * 4;
    }
    return SPAN_OK;
}

/* The answer takes the gap's place. */
static void replace_gap(struct kv_scan *c, size_t at, struct kv_op *op)
{
    struct txn_read *r = &op->g.read;
    item_remove(c, at);
    for (size_t i = 0; i < r->page_count; i++) {
        struct read_page *p = &r->pages[i];
        bool more = !p->complete;
        if (more) {
            gap_insert(c, at, buf_slice(&p->rest_start), buf_slice(&p->rest_end));
        }
        if (p->count > 0) { /* before its gap */
            item_insert(c, at)->page = *p;
            *p = page_spare(c->s);
            at++;
        }
        at += more ? 1 : 0;
    }
    if (!r->complete) {
        gap_insert(c, at, c->reverse ? r->start : buf_slice(&r->rest),
                   c->reverse ? buf_slice(&r->rest) : r->end);
    }
}

static span_status take(struct kv_scan *c, struct span_error *err)
{
    struct kv_op *op = c->op;
    c->op = NULL;
    size_t at = 0;
    while (at < c->item_count && !c->items[at].asked) {
        at++;
    }
    INVARIANT(at < c->item_count);
    span_status st = kv_read_end(c->s, op, err);
    if (st == SPAN_OK) {
        replace_gap(c, at, op);
    } else {
        c->items[at].asked = false;
        buf_move(&c->items[at].start, &op->start);
        buf_move(&c->items[at].end, &op->end);
    }
    op_put(c->s, op);
    return st;
}

/* Makes the first item a page with a row at c->at; NOT_FOUND when the store has no more. */
static span_status fill(struct kv_scan *c, struct span_error *err)
{
    for (;;) {
        if (c->item_count == 0) {
            return SPAN_NOT_FOUND;
        }
        struct scan_item *it = &c->items[0];
        if (!it->gap && c->at < it->page.count) {
            bool wanted = c->hint == 0 || c->given >= c->hint;
            if (wanted && c->op == NULL && c->item_count > 1 && c->items[1].gap &&
                c->s->failed == SPAN_OK) {
                struct span_error ignored; /* asked again, and told, when it is needed */
                (void)ask(c, &c->items[1], &ignored);
            }
            return SPAN_OK;
        }
        if (!it->gap) {
            item_remove(c, 0);
            c->at = 0;
            continue;
        }
        span_status st = c->op == NULL ? ask(c, it, err) : SPAN_OK;
        if (st == SPAN_OK) {
            kv_op_wait(c->s, c->op);
            st = take(c, err);
        }
        if (st != SPAN_OK) {
            return st;
        }
    }
}

/* ---- the scan ---- */

span_status kv_scan_open(struct kv *kv, struct slice start, struct slice end, bool reverse,
                         enum kv_lock lock, size_t hint_rows, struct kv_scan **out,
                         struct span_error *err)
{
    struct kv_ses *s = (struct kv_ses *)(void *)kv;
    *out = NULL;
    struct kv_scan *c = SPAN_NEW(struct kv_scan);
    c->s = s;
    c->reverse = reverse;
    c->lock = lock;
    c->hint = hint_rows;
    c->page_rows = hint_rows >= LIMIT_RESULT_PAGE_ROWS ? 0 : (uint32_t)hint_rows;
    buf_set(&c->start, start);
    buf_set(&c->end, end);
    span_status st = SPAN_OK;
    if (end.size == 0 || slice_cmp(start, end) < 0) {
        gap_insert(c, 0, start, end);
        st = ask(c, &c->items[0], err);
    }
    if (st == SPAN_OK && c->op != NULL && s->kind == KV_TXN_READ_ONLY && s->read_ts.ns == 0) {
        kv_op_wait(s, c->op); /* the core chooses the timestamp that other reads must use, too */
        st = take(c, err);
    }
    if (st != SPAN_OK) {
        kv_scan_close(c);
        return st;
    }
    *out = c;
    return SPAN_OK;
}

/* Next own write in the scan's direction, not past its end. */
static bool next_own(const struct kv_scan *c, struct txn_write *w)
{
    if (c->s->writes.count == 0) {
        return false;
    }
    struct slice start = buf_slice(&c->start);
    struct slice end = buf_slice(&c->end);
    if (!c->reverse) {
        bool any = write_buffer_seek(&c->s->writes, c->has_last ? buf_slice(&c->last) : start,
                                     c->has_last, w);
        return any && (end.size == 0 || slice_cmp(w->key, end) < 0);
    }
    bool any = write_buffer_seek_before(&c->s->writes, c->has_last ? buf_slice(&c->last) : end, w);
    return any && slice_cmp(w->key, start) >= 0;
}

static void given(struct kv_scan *c, struct slice key)
{
    buf_set(&c->last, key);
    c->has_last = true;
}

span_status kv_scan_next(struct kv_scan *c, struct slice *key, struct slice *value,
                         struct span_error *err)
{
    for (;;) {
        if (c->s->failed != SPAN_OK) {
            if (err != NULL) {
                *err = c->s->fail_err;
            }
            return c->s->failed;
        }
        span_status st = fill(c, err);
        if (st != SPAN_OK && st != SPAN_NOT_FOUND) {
            return st;
        }
        bool stored = st == SPAN_OK;
        const struct read_page *p = stored ? &c->items[0].page : NULL;
        struct slice k = stored ? read_row_key(p, &p->rows[c->at]) : slice_of(NULL, 0);
        struct txn_write w;
        bool own = next_own(c, &w);
        if (!own && !stored) {
            return SPAN_NOT_FOUND;
        }
        int order = !own ? -1 : !stored ? 1 : slice_cmp(k, w.key);
        if (own && stored && c->reverse) {
            order = -order;
        }
        if (order < 0) { /* the stored row comes first */
            *key = k;
            *value = read_row_value(p, &p->rows[c->at]);
            c->at++;
            c->given++;
            given(c, k);
            return SPAN_OK;
        }
        if (order == 0) { /* the own write stands for it */
            c->at++;
        }
        given(c, w.key);
        if (!w.tombstone) {
            buf_set(&c->value, w.value);
            *key = buf_slice(&c->last);
            *value = buf_slice(&c->value);
            c->given++;
            return SPAN_OK;
        }
    }
}

void kv_scan_close(struct kv_scan *c)
{
    if (c->op != NULL && kv_op_is_done(c->op)) {
        op_put(c->s, c->op);
    } else {
        kv_op_abandon(c->op);
    }
    while (c->item_count > 0) {
        item_remove(c, 0);
    }
    span_free(c->items);
    buf_deinit(&c->start);
    buf_deinit(&c->end);
    buf_deinit(&c->last);
    buf_deinit(&c->value);
    span_free(c);
}
