/* Reads over ranges: cut into one piece per range by the directory, asked in parallel, cut again
 * where the directory was wrong, and put together in order. What a locking read's answer names
 * (range, term) is the transaction's lock token there (rule C1). */
#include "base/alloc.h"
#include "base/invariant.h"
#include "coordinator/route/txn_impl.h"

#define PIECE_KEYS_MAX      256
#define PIECE_KEY_BYTES_MAX (256 * KIB)
#define FOLLOWER_AGE_NS     (100 * MS_NS) /* a replica's safe time is at best so far behind */
#define GRACE_NS_MAX        (250 * MS_NS)
#define STALENESS_NEAR_NS   (300 * MS_NS) /* bounded staleness: safe times are usually this close */

struct read_piece {
    struct route_request rr;
    struct read_op *op;
    struct list link; /* free list */
    bool busy;
    struct buf lo; /* span pieces: [lo, hi) */
    struct buf hi;
    uint32_t *keys; /* point pieces: which of r->keys are still to be answered */
    size_t key_count;
    size_t key_cap;
    size_t key_bytes;
    range_id range; /* point pieces: while keys are handed out */
    struct read_page page;
};

struct read_op {
    struct list link; /* txn->reads, or the free list */
    struct txn_clients *set;
    struct txn_client *txn; /* NULL: lock-free */
    struct txn_read *r;
    struct read_piece **pieces; /* in the order of the answer */
    size_t piece_count;
    size_t piece_cap;
    size_t busy;
    bool more_lag; /* bounded staleness that may still fall back to its bound */
};

struct read_op *read_of_link(struct list *link)
{
    return LIST_ENTRY(link, struct read_op, link);
}

void read_detach(struct read_op *op)
{
    op->txn = NULL;
}

void txn_read_init(struct txn_read *r)
{
    memset(r, 0, sizeof *r);
}

static void page_deinit(struct read_page *p)
{
    buf_deinit(&p->bytes);
    buf_deinit(&p->rest_start);
    buf_deinit(&p->rest_end);
    span_free(p->rows);
    memset(p, 0, sizeof *p);
}

static void page_clear(struct read_page *p)
{
    buf_clear(&p->bytes);
    buf_clear(&p->rest_start);
    buf_clear(&p->rest_end);
    p->count = 0;
    p->complete = true;
}

void txn_read_deinit(struct txn_read *r)
{
    REQUIRE(r->op == NULL);
    for (size_t i = 0; i < r->page_cap; i++) {
        page_deinit(&r->pages[i]);
    }
    span_free(r->pages);
    buf_deinit(&r->rest);
    memset(r, 0, sizeof *r);
}

/* ---- pieces ---- */

static struct read_piece *piece_new(struct read_op *op)
{
    struct txn_clients *t = op->set;
    struct read_piece *p;
    if (list_is_empty(&t->free_pieces)) {
        p = SPAN_NEW(struct read_piece);
    } else {
        p = LIST_ENTRY(t->free_pieces.next, struct read_piece, link);
        list_remove(&p->link);
        buf_clear(&p->lo);
        buf_clear(&p->hi);
        p->key_count = 0;
        p->key_bytes = 0;
    }
    p->op = op;
    p->busy = false;
    p->range = 0;
    page_clear(&p->page);
    return p;
}

static void piece_insert(struct read_op *op, size_t at, struct read_piece *p)
{
    if (op->piece_count == op->piece_cap) {
        op->piece_cap = op->piece_cap == 0 ? 4 : op->piece_cap * 2;
        op->pieces = span_realloc(op->pieces, op->piece_cap * sizeof(struct read_piece *));
    }
    memmove(&op->pieces[at + 1], &op->pieces[at],
            (op->piece_count - at) * sizeof(struct read_piece *));
    op->pieces[at] = p;
    op->piece_count++;
}

static void piece_remove(struct read_op *op, size_t at)
{
    struct read_piece *p = op->pieces[at];
    memmove(&op->pieces[at], &op->pieces[at + 1],
            (op->piece_count - at - 1) * sizeof(struct read_piece *));
    op->piece_count--;
    list_push_back(&op->set->free_pieces, &p->link);
}

static void piece_free(struct read_piece *p)
{
    buf_deinit(&p->lo);
    buf_deinit(&p->hi);
    span_free(p->keys);
    page_deinit(&p->page);
    span_free(p);
}

static void op_free(struct read_op *op)
{
    span_free(op->pieces);
    span_free(op);
}

void read_pools_free(struct txn_clients *t)
{
    LIST_EACH_SAFE(it, tmp, &t->free_pieces)
    {
        piece_free(LIST_ENTRY(it, struct read_piece, link));
    }
    LIST_EACH_SAFE(it2, tmp2, &t->free_ops)
    {
        op_free(read_of_link(it2));
    }
}

static struct read_op *op_new(struct txn_clients *t, struct txn_client *x, struct txn_read *r)
{
    struct read_op *op;
    if (list_is_empty(&t->free_ops)) {
        op = SPAN_NEW(struct read_op);
        list_init(&op->link);
    } else {
        op = read_of_link(t->free_ops.next);
        list_remove(&op->link);
    }
    op->set = t;
    op->txn = x;
    op->r = r;
    op->piece_count = 0;
    op->busy = 0;
    op->more_lag = false;
    if (x != NULL) {
        list_push_back(&x->reads, &op->link);
    }
    return op;
}

/* ---- the end ---- */

static struct read_page *out_page(struct txn_read *r)
{
    if (r->page_count == r->page_cap) {
        size_t cap = r->page_cap == 0 ? 1 : r->page_cap * 2;
        r->pages = span_realloc(r->pages, cap * sizeof *r->pages);
        memset(&r->pages[r->page_cap], 0, (cap - r->page_cap) * sizeof *r->pages);
        r->page_cap = cap;
    }
    return &r->pages[r->page_count++];
}

/* Buffers change hands, so that both sides keep reusing memory. */
static void give_pages(struct read_op *op)
{
    struct txn_read *r = op->r;
    r->page_count = 0;
    for (size_t i = 0; i < op->piece_count; i++) {
        struct read_page *out = out_page(r);
        struct read_page swap = *out;
        *out = op->pieces[i]->page;
        op->pieces[i]->page = swap;
    }
}

void read_end(struct txn_clients *t, const struct tt_now *now, struct read_op *op, span_status st,
              const struct range_response *resp)
{
    struct txn_read *r = op->r;
    r->status = st;
    if (st == SPAN_OK) {
        give_pages(op);
    } else {
        r->page_count = 0;
        fail_text(&r->err, st, resp);
    }
    while (op->piece_count > 0) {
        route_cancel(t->router, &op->pieces[op->piece_count - 1]->rr);
        piece_remove(op, op->piece_count - 1);
    }
    struct txn_client *x = op->txn;
    list_remove(&op->link);
    list_push_back(&t->free_ops, &op->link);
    op->r = NULL;
    op->txn = NULL;
    r->op = NULL;
    if (x != NULL && st != SPAN_OK && span_status_kind(st) == SPAN_KIND_RETRY) {
        /* The transaction can not go on (sql/kv.h): what it holds goes now. */
        client_kill(t, now, x, st, 0);
    }
    r->done(r, now);
}

void txn_read_stop(struct txn_clients *t, const struct tt_now *now, struct txn_read *r,
                   span_status why)
{
    if (r->op != NULL) {
        read_end(t, now, r->op, why, NULL);
    }
}

/* ---- requests ---- */

static bool schema_touches_span(uint32_t table, struct slice start, struct slice end)
{
    uint8_t lo[TABLE_PREFIX_BYTES];
    uint8_t hi[TABLE_PREFIX_BYTES];
    struct slice first = table_prefix(lo, table);
    struct slice after = table_prefix(hi, (uint64_t)table + 1);
    return slice_cmp(start, after) < 0 && (end.size == 0 || slice_cmp(first, end) < 0);
}

static bool piece_touches(const struct read_piece *p, uint32_t table)
{
    const struct txn_read *r = p->op->r;
    if (r->key_count == 0) {
        return schema_touches_span(table, buf_slice(&p->lo), buf_slice(&p->hi));
    }
    uint8_t lo[TABLE_PREFIX_BYTES];
    struct slice first = table_prefix(lo, table);
    for (size_t i = 0; i < p->key_count; i++) {
        if (slice_has_prefix(r->keys[p->keys[i]], first)) {
            return true;
        }
    }
    return false;
}

static void fill_schema(struct read_piece *p, struct range_request *q)
{
    const struct txn_read *r = p->op->r;
    if (r->schema_count == 0) {
        return;
    }
    q->schema = arena_alloc(&p->op->set->scratch, r->schema_count * sizeof *q->schema);
    for (size_t i = 0; i < r->schema_count; i++) {
        if (piece_touches(p, r->schema[i].table_id)) {
            q->schema[q->schema_count++] = r->schema[i];
        }
    }
}

static void fill_spans(struct read_piece *p, struct range_request *q)
{
    const struct txn_read *r = p->op->r;
    size_t n = r->key_count == 0 ? 1 : p->key_count;
    q->spans = arena_alloc(&p->op->set->scratch, n * sizeof *q->spans);
    q->span_count = n;
    if (r->key_count == 0) {
        q->spans[0] = (struct read_span){
            .span = {.start = buf_slice(&p->lo), .end = buf_slice(&p->hi)},
            .reverse = r->reverse,
            .max_rows = r->page_rows,
        };
        return;
    }
    for (size_t i = 0; i < n; i++) {
        q->spans[i] = (struct read_span){.span = {.start = r->keys[p->keys[i]], .point = true}};
    }
}

static void read_build(struct route_request *rr, struct range_request *q)
{
    struct read_piece *p = LIST_ENTRY(rr, struct read_piece, rr);
    struct read_op *op = p->op;
    const struct txn_read *r = op->r;
    arena_clear(&op->set->scratch);
    q->op = OP_READ;
    q->lock = r->lock;
    q->follower_ok = rr->follower_ok && !rr->follower_off;
    fill_spans(p, q);
    fill_schema(p, q);
    if (op->txn == NULL) {
        q->read_ts = r->read_ts;
        return;
    }
    struct touched *u = client_touch(op->txn, q->range);
    q->txn = op->txn->ref.id;
    q->age = op->txn->ref.age;
    q->term = u->term;
    if (u->term == 0) {
        u->node = rr->node;
    }
}

static bool resumes_item(const struct range_response *resp, uint32_t span)
{
    for (size_t i = 0; i < resp->resume_count; i++) {
        if (resp->resumes[i].span == span) {
            return true;
        }
    }
    return false;
}

static void take_rows(struct read_piece *p, const struct range_response *resp)
{
    const struct txn_read *r = p->op->r;
    struct read_page *g = &p->page;
    if (g->cap < g->count + resp->row_count) {
        g->cap = g->count + resp->row_count;
        g->rows = span_realloc(g->rows, g->cap * sizeof *g->rows);
    }
    for (size_t i = 0; i < resp->row_count; i++) {
        const struct row *w = &resp->rows[i];
        uint32_t item = 0;
        if (r->key_count != 0) {
            if (w->span >= p->key_count) {
                continue; /* no correct peer sends it */
            }
            item = p->keys[w->span];
        }
        g->rows[g->count++] = (struct read_row){
            .at = g->bytes.size,
            .key_size = (uint32_t)w->key.size,
            .value_size = (uint32_t)w->value.size,
            .item = item,
        };
        buf_append_slice(&g->bytes, w->key);
        buf_append_slice(&g->bytes, w->value);
    }
}

static void piece_send(struct txn_clients *t, const struct tt_now *now, struct read_piece *p);

/* True: the piece has all it will get. */
static bool take_answer(struct txn_clients *t, const struct tt_now *now, struct read_piece *p,
                        const struct range_response *resp)
{
    const struct txn_read *r = p->op->r;
    take_rows(p, resp);
    if (r->key_count == 0) {
        if (resp->resume_count > 0) {
            p->page.complete = false;
            buf_set(&p->page.rest_start, r->reverse ? buf_slice(&p->lo) : resp->resumes[0].key);
            buf_set(&p->page.rest_end, r->reverse ? resp->resumes[0].key : buf_slice(&p->hi));
        }
        return true;
    }
    size_t left = 0; /* the page was full: the other keys are asked for again */
    for (size_t i = 0; i < p->key_count; i++) {
        if (resumes_item(resp, (uint32_t)i)) {
            p->keys[left++] = p->keys[i];
        }
    }
    p->key_count = left;
    if (left > 0) {
        piece_send(t, now, p);
    }
    return left == 0;
}

/* The answer of a locking read is the lock token: range, term (rule C1). */
static span_status note_locks(struct read_piece *p, const struct range_response *resp)
{
    struct txn_client *x = p->op->txn;
    const struct txn_read *r = p->op->r;
    struct touched *u = client_touch(x, resp->range);
    if (u->term != 0 && u->term != resp->term) {
        return SPAN_LOCKS_LOST; /* two answers of two leaders: the first one's locks are gone */
    }
    u->term = resp->term;
    u->node = resp->leader != 0 ? resp->leader : p->rr.node;
    if (u->anchor.size == 0) {
        buf_set(&u->anchor, anchor_of(r->key_count == 0 ? buf_slice(&p->lo) : r->keys[p->keys[0]]));
    }
    return SPAN_OK;
}

static size_t piece_index(const struct read_op *op, const struct read_piece *p)
{
    for (size_t i = 0; i < op->piece_count; i++) {
        if (op->pieces[i] == p) {
            return i;
        }
    }
    INVARIANT(!"piece of its read");
    return 0;
}

static void resplit(struct txn_clients *t, const struct tt_now *now, struct read_piece *p);

/* Bounded staleness: the newest timestamp near now was not safe yet at this node, the bound itself
 * may be. */
static bool fall_back(struct txn_clients *t, const struct tt_now *now, struct read_op *op)
{
    struct txn_read *r = op->r;
    if (!op->more_lag || op->busy > 0 || op->piece_count != 1) {
        return false;
    }
    op->more_lag = false;
    r->read_ts.ns = now->tt.earliest.ns - r->staleness_ns;
    piece_send(t, now, op->pieces[0]);
    return true;
}

static void read_done(struct route_request *rr, const struct tt_now *now, span_status st,
                      const struct range_response *resp)
{
    struct read_piece *p = LIST_ENTRY(rr, struct read_piece, rr);
    struct read_op *op = p->op;
    struct txn_clients *t = op->set;
    p->busy = false;
    op->busy--;
    if (st == SPAN_STALE_DESCRIPTOR && resp == NULL) {
        resplit(t, now, p);
        return;
    }
    if (st == SPAN_OK && op->txn != NULL) {
        op->txn->seen = tt_max(op->txn->seen, resp->seen);
        st = note_locks(p, resp);
    }
    if (st == SPAN_OK) {
        op->r->seen = tt_max(op->r->seen, resp->seen);
        (void)take_answer(t, now, p, resp);
        if (op->busy == 0) {
            read_end(t, now, op, SPAN_OK, NULL);
        }
        return;
    }
    if (st == SPAN_UNAVAILABLE && resp == NULL && fall_back(t, now, op)) {
        return;
    }
    struct refusal f;
    refusal_init(&f, t->router, rr, st, resp);
    read_end(t, now, op, f.status, f.resp);
}

static void box_of_points(const struct read_piece *p, struct slice *lo, struct slice *hi)
{
    const struct txn_read *r = p->op->r;
    *lo = *hi = r->keys[p->keys[0]];
    for (size_t i = 1; i < p->key_count; i++) {
        struct slice k = r->keys[p->keys[i]];
        if (slice_cmp(k, *lo) < 0) {
            *lo = k;
        }
        if (slice_cmp(k, *hi) > 0) {
            *hi = k;
        }
    }
}

static void piece_send(struct txn_clients *t, const struct tt_now *now, struct read_piece *p)
{
    const struct txn_read *r = p->op->r;
    struct slice lo = buf_slice(&p->lo);
    struct slice hi = buf_slice(&p->hi);
    if (r->key_count != 0) {
        box_of_points(p, &lo, &hi);
    }
    /* Old enough for a replica's safe time: the own one is tried first. */
    bool follower = p->op->txn == NULL && r->read_ts.ns + FOLLOWER_AGE_NS <= now->tt.latest.ns;
    p->rr = (struct route_request){
        .key = lo,
        .lo = lo,
        .hi = hi,
        .box = true,
        .hi_point = r->key_count != 0,
        .follower_ok = follower,
        .deadline_ns = p->op->more_lag ? now->mono_ns + STALENESS_NEAR_NS : r->deadline_ns,
        .build = read_build,
        .done = read_done,
    };
    if (p->rr.deadline_ns > r->deadline_ns) {
        p->rr.deadline_ns = r->deadline_ns;
    }
    /* The range gives up a little earlier, so that what it waited for is heard. */
    uint64_t left = p->rr.deadline_ns > now->mono_ns ? p->rr.deadline_ns - now->mono_ns : 0;
    uint64_t grace = left / 8 < GRACE_NS_MAX ? left / 8 : GRACE_NS_MAX;
    p->rr.budget_end_ns = p->rr.deadline_ns - grace;
    p->rr.budget_max_ns = r->lock == READ_LOCK_NONE ? 0 : r->lock_wait_ns;
    p->busy = true;
    p->op->busy++;
    route_send(t->router, now, &p->rr);
}

/* ---- cutting ---- */

/* Last range that begins below `end` (empty: the last of all). It may end before `end`: then there
 * is a hole. */
static const struct dir_range *lookup_below(const struct directory *d, struct slice end)
{
    size_t lo = 0;
    size_t hi = d->count;
    while (lo < hi && end.size > 0) {
        size_t mid = (lo + hi) / 2;
        if (slice_cmp(buf_slice(&d->ranges[mid]->start), end) < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    size_t below = end.size == 0 ? d->count : lo;
    return below == 0 ? NULL : d->ranges[below - 1];
}

static bool end_before(struct slice a, struct slice b) /* as ends: empty is the last */
{
    return a.size > 0 && (b.size == 0 || slice_cmp(a, b) < 0);
}

/* Cuts [lo, hi) into at most `max` pieces inserted at `at`; what is left over goes to rest_*
 * (false: nothing is). In the direction of the read. A part of the key space that no descriptor
 * covers is one piece: the router asks around, and it is cut later. */
static bool cut_span(struct read_op *op, size_t at, struct slice lo, struct slice hi, size_t max,
                     struct buf *rest)
{
    struct directory *d = op->set->dir;
    bool reverse = op->r->reverse;
    for (size_t n = 0; n < max; n++) {
        const struct dir_range *g = reverse ? lookup_below(d, hi) : directory_lookup(d, lo);
        struct slice cut_lo = lo;
        struct slice cut_hi = hi;
        bool more = false;
        if (g != NULL && reverse) {
            bool hole = end_before(buf_slice(&g->end), hi);
            struct slice low = hole ? buf_slice(&g->end) : buf_slice(&g->start);
            more = slice_cmp(low, lo) > 0;
            cut_lo = more ? low : lo;
        } else if (g != NULL && end_before(buf_slice(&g->end), hi)) {
            cut_hi = buf_slice(&g->end);
            more = true;
        }
        struct read_piece *p = piece_new(op);
        buf_set(&p->lo, cut_lo);
        buf_set(&p->hi, cut_hi);
        piece_insert(op, at + n, p);
        if (!more) {
            return false;
        }
        /* the piece's own bytes outlive the descriptor */
        if (reverse) {
            hi = buf_slice(&p->lo);
        } else {
            lo = buf_slice(&p->hi);
        }
    }
    buf_set(rest, reverse ? hi : lo);
    return true;
}

static void add_key(struct read_piece *p, uint32_t key, size_t bytes)
{
    if (p->key_count == p->key_cap) {
        p->key_cap = p->key_cap == 0 ? 4 : p->key_cap * 2;
        p->keys = span_realloc(p->keys, p->key_cap * sizeof *p->keys);
    }
    p->keys[p->key_count++] = key;
    p->key_bytes += bytes;
}

/* Deals keys out to one piece per range, from piece `from` on. */
static void deal_key(struct read_op *op, size_t from, uint32_t key)
{
    struct slice k = op->r->keys[key];
    const struct dir_range *g = directory_lookup(op->set->dir, k);
    for (size_t i = op->piece_count; g != NULL && i-- > from;) {
        struct read_piece *p = op->pieces[i];
        if (!p->busy && p->range == g->range && p->key_count < PIECE_KEYS_MAX &&
            p->key_bytes + k.size < PIECE_KEY_BYTES_MAX) {
            add_key(p, key, k.size);
            return;
        }
    }
    struct read_piece *p = piece_new(op);
    p->range = g == NULL ? 0 : g->range;
    add_key(p, key, k.size);
    piece_insert(op, op->piece_count, p);
}

static void resplit(struct txn_clients *t, const struct tt_now *now, struct read_piece *p)
{
    struct read_op *op = p->op;
    size_t at = piece_index(op, p);
    size_t before = op->piece_count;
    if (op->r->key_count == 0) {
        struct buf lo = {0};
        struct buf hi = {0};
        buf_move(&lo, &p->lo);
        buf_move(&hi, &p->hi);
        piece_remove(op, at);
        before--;
        struct buf rest = {0};
        bool more = cut_span(op, at, buf_slice(&lo), buf_slice(&hi), SIZE_MAX, &rest);
        INVARIANT(!more);
        for (size_t i = at; i < at + op->piece_count - before; i++) {
            piece_send(t, now, op->pieces[i]);
        }
        buf_deinit(&lo);
        buf_deinit(&hi);
        buf_deinit(&rest);
        return;
    }
    /* The rows it has stay with it; its other keys are dealt anew. */
    for (size_t i = 0; i < p->key_count; i++) {
        deal_key(op, before, p->keys[i]);
    }
    p->key_count = 0;
    for (size_t i = before; i < op->piece_count; i++) {
        piece_send(t, now, op->pieces[i]);
    }
}

/* ---- start ---- */

static span_status choose_read_ts(const struct tt_now *now, struct read_op *op)
{
    struct txn_read *r = op->r;
    if (!tt_is_none(r->read_ts)) {
        return SPAN_OK;
    }
    if (r->mode != KV_READ_AT && now->state >= CLOCK_STALE_READS_ONLY) {
        return SPAN_CLOCK; /* rule B9: nothing that needs this clock */
    }
    if (r->mode == KV_READ_STRONG) {
        r->read_ts = now->tt.latest;
        return SPAN_OK;
    }
    if (r->mode == KV_READ_AT) {
        return SPAN_INVALID;
    }
    /* Rule A6: at or below own earliest, which never needs a wait. */
    uint64_t lag = r->staleness_ns < STALENESS_NEAR_NS ? r->staleness_ns : STALENESS_NEAR_NS;
    op->more_lag = r->staleness_ns > lag;
    r->read_ts.ns = now->tt.earliest.ns - lag;
    return SPAN_OK;
}

static span_status start(struct txn_clients *t, const struct tt_now *now, struct read_op *op)
{
    struct txn_read *r = op->r;
    if (op->txn == NULL) {
        if (r->lock != READ_LOCK_NONE) {
            return SPAN_INVALID;
        }
        if (r->read_ts.ns > now->tt.latest.ns) {
            return SPAN_IN_FUTURE; /* rule A6 */
        }
        span_status st = choose_read_ts(now, op);
        if (st != SPAN_OK) {
            return st;
        }
    } else if (op->txn->dead != SPAN_OK) {
        return op->txn->dead;
    } else if (op->txn->commit != NULL || r->lock == READ_LOCK_NONE) {
        return SPAN_INVALID;
    }
    if (r->key_count == 0) {
        r->complete =
            !cut_span(op, 0, r->start, r->end, r->parallel == 0 ? 1 : r->parallel, &r->rest);
    } else {
        for (size_t i = 0; i < r->key_count; i++) {
            deal_key(op, 0, (uint32_t)i);
        }
        r->complete = true;
    }
    op->more_lag = op->more_lag && op->piece_count == 1;
    size_t n = op->piece_count;
    for (size_t i = 0; i < n; i++) {
        piece_send(t, now, op->pieces[i]);
    }
    return SPAN_OK;
}

void txn_read_start(struct txn_clients *t, const struct tt_now *now, const struct txn_ref *ref,
                    struct txn_read *r)
{
    struct txn_client *x = NULL;
    if (!txn_id_is_none(&ref->id) && r->lock != READ_LOCK_NONE) {
        x = client_get(t, now, ref);
    }
    struct read_op *op = op_new(t, x, r);
    r->op = op;
    r->seen = tt_ts_of(0);
    r->page_count = 0;
    buf_clear(&r->rest);
    span_status st = start(t, now, op);
    if (st != SPAN_OK) {
        read_end(t, now, op, st, NULL);
    }
}
