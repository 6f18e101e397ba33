/* Commit of a client transaction.
 *
 *   plan: writes and locks per range
 *     |- nothing at all ------------------------------------------------> OK
 *     |- no writes -------> OP_VALIDATE at t to all, each must say OK --> OK, or a refusal
 *     |- one range -------> OP_COMMIT1 --OK----------------------------> committed@s
 *     |                        `--refused, nothing unanswered---------> that status, not proposed
 * (C11) |                        `--anything else-----------------------.
 *     `- several ---------> OP_COORDINATE to one, OP_PREPARE to all   |
 *                           others at once; the coordinator answers:  |
 *                              committed@s, or aborted (a record)     |
 *                              `--no answer, lost-------------------- resolve: OP_RELEASE,
 * OP_STATUS at the anchor until the deadline: committed@s, aborted, or UNKNOWN_OUTCOME
 *
 * Deadlines: the ranges are given three quarters of the time, so that their own giving up is heard;
 * the last eighth is for asking. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "coordinator/route/txn_impl.h"

#include <stdio.h>

#define PLAN_AGAIN_NS   (5 * MS_NS)   /* while a part of the key space is not known */
#define PLANS_MAX       16            /* the map changes under a commit at most so often */
#define VOTE_AGAIN_NS   (100 * MS_NS) /* a refusal that the coordinator may not have heard of */
#define STATUS_AGAIN_NS (30 * MS_NS)  /* still running */
#define CLASS_CONTROL   0

enum commit_state {
    COMMIT_PLANNING,
    COMMIT_VALIDATING,
    COMMIT_ONE,
    COMMIT_TWO_PHASE,
    COMMIT_RESOLVING,
};

struct commit_op;

/* What the transaction did in one range. */
struct part {
    struct route_request rr;
    struct commit_op *op;
    range_id range;
    uint64_t term; /* of its locks there; 0: none */
    node_id node;  /* hint */
    struct buf anchor;
    size_t from; /* its writes: c->writes[from, to) */
    size_t to;
    size_t *puts; /* schema versions that come into force here: indexes into c->schema_puts ... */
    struct buf *put_lo; /* ... for [put_lo, put_hi), the table's part in the range: proves that the
                           range covers it */
    struct buf *put_hi;
    size_t put_count;
    span_status refused;
};

struct commit_op {
    struct heap_node timer;
    struct txn_clients *set;
    struct txn_client *x;
    struct txn_commit *c;
    enum commit_state state;
    struct part **parts;
    size_t part_count;
    struct part *coord; /* TWO_PHASE: the coordinator's; ONE: the only one */
    size_t validating;
    struct tt_ts at; /* VALIDATING */
    uint64_t budget_end_ns;
    uint64_t patience_end_ns;
    bool maybe; /* a request may have had an effect that nobody has told of */
    bool sent;
    unsigned plans;
    span_status reason; /* why it will be aborted, as far as known */
    char why[160];      /* the same in words, where the status says too little; "": nothing */
    struct route_request resolve;
};

/* ---- parts ---- */

static struct part *part_find(const struct commit_op *op, range_id range)
{
    for (size_t i = 0; i < op->part_count; i++) {
        if (op->parts[i]->range == range) {
            return op->parts[i];
        }
    }
    return NULL;
}

static struct part *part_get(struct commit_op *op, range_id range, struct slice anchor)
{
    struct part *p = part_find(op, range);
    if (p != NULL) {
        return p;
    }
    if (op->part_count % 8 == 0) {
        op->parts = span_realloc(op->parts, (op->part_count + 8) * sizeof(struct part *));
    }
    p = SPAN_NEW(struct part);
    p->op = op;
    p->range = range;
    buf_set(&p->anchor, anchor_of(anchor));
    p->node = router_leader_of(op->set->router, buf_slice(&p->anchor));
    op->parts[op->part_count++] = p;
    return p;
}

static void parts_clear(struct commit_op *op)
{
    for (size_t i = 0; i < op->part_count; i++) {
        struct part *p = op->parts[i];
        route_cancel(op->set->router, &p->rr);
        for (size_t k = 0; k < p->put_count; k++) {
            buf_deinit(&p->put_lo[k]);
            buf_deinit(&p->put_hi[k]);
        }
        span_free(p->puts);
        span_free(p->put_lo);
        span_free(p->put_hi);
        buf_deinit(&p->anchor);
        span_free(p);
    }
    op->part_count = 0;
    op->coord = NULL;
}

static void add_put(struct part *p, size_t index, struct slice lo, struct slice hi)
{
    size_t n = p->put_count + 1;
    p->puts = span_realloc(p->puts, n * sizeof *p->puts);
    p->put_lo = span_realloc(p->put_lo, n * sizeof *p->put_lo);
    p->put_hi = span_realloc(p->put_hi, n * sizeof *p->put_hi);
    p->puts[n - 1] = index;
    buf_init(&p->put_lo[n - 1]);
    buf_init(&p->put_hi[n - 1]);
    buf_set(&p->put_lo[n - 1], lo);
    buf_set(&p->put_hi[n - 1], hi);
    p->put_count = n;
}

/* Where it is led, as far as known; never none, messages between ranges go there first. */
static node_id part_node(const struct part *p)
{
    node_id n = router_leader_of(p->op->set->router, buf_slice(&p->anchor));
    n = n != 0 ? n : p->rr.node;
    n = n != 0 ? n : p->node;
    return n != 0 ? n : router_cfg(p->op->set->router)->self;
}

/* ---- the end ---- */

static bool is_part(void *ctx, range_id range)
{
    return part_find(ctx, range) != NULL;
}

static void finish(struct commit_op *op, const struct tt_now *now, span_status st, struct tt_ts ts,
                   const struct range_response *resp)
{
    struct txn_clients *t = op->set;
    struct txn_client *x = op->x;
    struct txn_commit *c = op->c;
    c->status = st;
    c->ts = ts;
    c->seen_out = tt_max(c->seen, x->seen);
    if (st == SPAN_OK) {
        client_release(t, now, x, is_part,
                       op); /* where it only asked for locks that no answer told of */
    } else {
        if (op->why[0] != '\0') {
            (void)span_fail(&c->err, st, "%s", op->why);
        } else {
            fail_text(&c->err, st, resp);
        }
        client_release(t, now, x, NULL, NULL);
        for (size_t i = 0; i < op->part_count; i++) {
            struct part *p = op->parts[i];
            if (p->rr.node != 0 && client_touched(x, p->range) == NULL) {
                send_release(t, x, p->rr.target, slice_of(NULL, 0), p->rr.node);
            }
        }
    }
    route_cancel(t->router, &op->resolve);
    parts_clear(op);
    span_free(op->parts);
    heap_remove(&t->timers, &op->timer);
    span_free(op);
    x->commit = NULL;
    client_free(t, x);
    c->done(c, now);
}

static void abort_with(struct commit_op *op, const struct tt_now *now, span_status st,
                       const struct range_response *resp)
{
    span_status why = op->reason != SPAN_OK ? op->reason : st;
    finish(op, now, why, tt_ts_of(0), why == st ? resp : NULL);
}

static void note_reason(struct commit_op *op, span_status why)
{
    if (op->reason == SPAN_OK || op->reason == SPAN_ABORTED) {
        op->reason = why;
    }
}

void commit_note_wound(struct commit_op *op, span_status why)
{
    note_reason(op, why);
}

static void unknown(struct commit_op *op, const struct tt_now *now)
{
    finish(op, now, SPAN_UNKNOWN_OUTCOME, tt_ts_of(0), NULL);
}

/* ---- resolve (rule C11) ---- */

static void resolve_build(struct route_request *rr, struct range_request *q)
{
    const struct commit_op *op = LIST_ENTRY(rr, struct commit_op, resolve);
    q->op = OP_STATUS;
    q->txn = op->x->ref.id;
    q->age = op->x->ref.age;
    q->anchor = buf_slice(&op->coord->anchor);
    q->coordinator = q->anchor;
}

static void resolve_send(struct commit_op *op, const struct tt_now *now);

static void resolve_done(struct route_request *rr, const struct tt_now *now, span_status st,
                         const struct range_response *resp)
{
    struct commit_op *op = LIST_ENTRY(rr, struct commit_op, resolve);
    if (st != SPAN_OK) {
        unknown(op, now);
        return;
    }
    switch (resp->txn_state) {
    case TXN_STATE_COMMITTED:
        finish(op, now, SPAN_OK, resp->ts, NULL);
        break;
    case TXN_STATE_ABORTED:
        abort_with(op, now, SPAN_ABORTED, NULL);
        break;
    case TXN_STATE_RUNNING:
        heap_insert(&op->set->timers, &op->timer, now->mono_ns + STATUS_AGAIN_NS);
        break;
    default:
        unknown(op, now);
        break;
    }
}

static void resolve_send(struct commit_op *op, const struct tt_now *now)
{
    op->resolve = (struct route_request){
        .key = buf_slice(&op->coord->anchor),
        .deadline_ns = op->c->deadline_ns,
        .steady = true,
        .build = resolve_build,
        .done = resolve_done,
    };
    route_send(op->set->router, now, &op->resolve);
}

/* An abort record, or the news that it committed: nothing else lets 40001 be said. What still waits
 * there for locks goes first, or it would count as running. */
static void resolve(struct commit_op *op, const struct tt_now *now, span_status reason)
{
    if (reason != SPAN_UNKNOWN_OUTCOME && reason != SPAN_UNAVAILABLE) {
        note_reason(op, reason); /* who then tells of the abort is available */
    }
    op->state = COMMIT_RESOLVING;
    heap_remove(&op->set->timers, &op->timer);
    for (size_t i = 0; i < op->part_count; i++) {
        route_cancel(op->set->router, &op->parts[i]->rr);
    }
    struct part *p = op->coord;
    if (p->rr.node != 0) {
        send_release(op->set, op->x, p->rr.target, slice_of(NULL, 0), p->rr.node);
    }
    resolve_send(op, now);
}

/* ---- requests ---- */

/* First write at or above key. */
static size_t lower_bound(const struct txn_commit *c, size_t lo, size_t hi, struct slice key)
{
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (slice_cmp(c->writes[mid].key, key) < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

static bool writes_table(const struct part *p, uint32_t table)
{
    const struct txn_commit *c = p->op->c;
    uint8_t b[TABLE_PREFIX_BYTES];
    struct slice prefix = table_prefix(b, table);
    size_t i = lower_bound(c, p->from, p->to, prefix);
    return i < p->to && slice_has_prefix(c->writes[i].key, prefix);
}

static void fill_writes(const struct part *p, struct range_request *q)
{
    const struct txn_commit *c = p->op->c;
    struct arena *a = &p->op->set->scratch;
    size_t n = p->to - p->from;
    q->write_count = n + p->put_count;
    q->writes = arena_alloc(a, (q->write_count + 1) * sizeof *q->writes);
    if (n > 0) {
        memcpy(q->writes, &c->writes[p->from], n * sizeof *q->writes);
    }
    if (p->put_count > 0) {
        q->spans = arena_alloc(a, p->put_count * sizeof *q->spans);
        q->span_count = p->put_count;
    }
    for (size_t k = 0; k < p->put_count; k++) {
        const struct schema_use *s = &c->schema_puts[p->puts[k]];
        uint8_t *key = arena_alloc(a, SCHEMA_KEY_BYTES);
        uint8_t *value = arena_alloc(a, 8);
        for (int i = 0; i < 8; i++) {
            value[i] = (uint8_t)(s->version >> (8 * i));
        }
        q->writes[n + k] =
            (struct txn_write){.key = schema_key(key, s->table_id), .value = slice_of(value, 8)};
        q->spans[k].span =
            (struct span){.start = buf_slice(&p->put_lo[k]), .end = buf_slice(&p->put_hi[k])};
    }
    /* Rule E2: what is written is checked again; what was only read is protected by the S lock on
     * the version. */
    q->schema = arena_alloc(a, (c->schema_count + 1) * sizeof *q->schema);
    for (size_t i = 0; i < c->schema_count; i++) {
        if (writes_table(p, c->schema[i].table_id)) {
            q->schema[q->schema_count++] = c->schema[i];
        }
    }
}

static void fill_common(const struct part *p, struct range_request *q)
{
    const struct commit_op *op = p->op;
    arena_clear(&op->set->scratch);
    q->txn = op->x->ref.id;
    q->age = op->x->ref.age;
    /* Also at another range than the one that granted it (a split): then it refuses, as it must. */
    q->term = p->term;
    q->seen = tt_max(op->c->seen, op->x->seen);
    q->anchor = buf_slice(&p->anchor);
}

static void validate_build(struct route_request *rr, struct range_request *q)
{
    const struct part *p = LIST_ENTRY(rr, struct part, rr);
    fill_common(p, q);
    q->op = OP_VALIDATE;
    q->read_ts = p->op->at;
}

static void one_build(struct route_request *rr, struct range_request *q)
{
    const struct part *p = LIST_ENTRY(rr, struct part, rr);
    fill_common(p, q);
    fill_writes(p, q);
    q->op = OP_COMMIT1;
}

static void coordinate_build(struct route_request *rr, struct range_request *q)
{
    const struct part *p = LIST_ENTRY(rr, struct part, rr);
    const struct commit_op *op = p->op;
    fill_common(p, q);
    fill_writes(p, q);
    q->op = OP_COORDINATE;
    q->participants = arena_alloc(&op->set->scratch, op->part_count * sizeof *q->participants);
    for (size_t i = 0; i < op->part_count; i++) {
        const struct part *other = op->parts[i];
        if (other != p) {
            q->participants[q->participant_count++] =
                (struct txn_participant){buf_slice(&other->anchor), other->range,
                                         other->rr.node != 0 ? other->rr.node : other->node};
        }
    }
}

static void prepare_build(struct route_request *rr, struct range_request *q)
{
    const struct part *p = LIST_ENTRY(rr, struct part, rr);
    const struct part *coord = p->op->coord;
    fill_common(p, q);
    fill_writes(p, q);
    q->op = OP_PREPARE;
    q->coordinator = buf_slice(&coord->anchor);
    q->coordinator_range = coord->range;
    q->coordinator_node = part_node(coord);
}

/* Everything the request names must lie in one range. */
static void part_box(const struct part *p, struct route_request *rr)
{
    const struct txn_commit *c = p->op->c;
    struct slice lo = buf_slice(&p->anchor);
    struct slice hi = lo;
    bool point = true; /* hi itself belongs to it */
    if (p->to > p->from) {
        struct slice first = c->writes[p->from].key;
        struct slice last = c->writes[p->to - 1].key;
        lo = slice_cmp(first, lo) < 0 ? first : lo;
        hi = slice_cmp(last, hi) > 0 ? last : hi;
    }
    for (size_t k = 0; k < p->put_count; k++) {
        struct slice s = buf_slice(&p->put_lo[k]);
        struct slice e = buf_slice(&p->put_hi[k]);
        lo = slice_cmp(s, lo) < 0 ? s : lo;
        if (slice_cmp(e, hi) > 0) {
            hi = e;
            point = false;
        }
    }
    rr->key = buf_slice(&p->anchor);
    rr->lo = lo;
    rr->hi = hi;
    rr->box = true;
    rr->hi_point = point;
}

static void part_send(struct part *p, const struct tt_now *now, route_build_fn *build,
                      route_done_fn *done, uint64_t deadline_ns, bool silent)
{
    struct commit_op *op = p->op;
    p->rr = (struct route_request){
        .deadline_ns = deadline_ns,
        .budget_end_ns = op->budget_end_ns,
        .silent = silent,
        .steady = true,
        .build = build,
        .done = done,
    };
    part_box(p, &p->rr);
    op->sent = true;
    route_send(op->set->router, now, &p->rr);
}

/* ---- one range ---- */

static void plan(struct commit_op *op, const struct tt_now *now);

static void one_done(struct route_request *rr, const struct tt_now *now, span_status st,
                     const struct range_response *resp)
{
    struct part *p = LIST_ENTRY(rr, struct part, rr);
    struct commit_op *op = p->op;
    if (st == SPAN_OK) {
        finish(op, now, SPAN_OK, resp->ts, NULL);
        return;
    }
    if (rr->unanswered > 0 || st == SPAN_UNKNOWN_OUTCOME) {
        op->maybe = true;
    }
    if (st == SPAN_UNKNOWN_OUTCOME) {
        route_send(op->set->router, now, rr); /* idempotent: whoever leads now knows, or refuses */
        return;
    }
    if (st == SPAN_CLOSED) {
        commit_close(op, now);
        return;
    }
    if (op->maybe) {
        resolve(op, now, st);
        return;
    }
    if (resp == NULL && st == SPAN_STALE_DESCRIPTOR) {
        plan(op, now); /* nothing proposed: it was split, and is several ranges' now */
        return;
    }
    if (resp != NULL && p->term == 0) {
        /* Without locks there is no token that would refuse a copy of the request that comes later:
         * an abort record does. */
        resolve(op, now, st);
        return;
    }
    struct refusal f;
    refusal_init(&f, op->set->router, rr, st, resp);
    abort_with(op, now, f.status, f.resp);
}

/* ---- without writes ---- */

static void validate_done(struct route_request *rr, const struct tt_now *now, span_status st,
                          const struct range_response *resp)
{
    struct part *p = LIST_ENTRY(rr, struct part, rr);
    struct commit_op *op = p->op;
    if (st != SPAN_OK) {
        struct refusal f;
        refusal_init(&f, op->set->router, rr, st, resp);
        if (span_status_kind(f.status) != SPAN_KIND_RETRY && f.status != SPAN_CLOSED) {
            f.status = SPAN_ABORTED;
        }
        abort_with(op, now, f.status, f.resp);
        return;
    }
    if (--op->validating == 0) {
        finish(op, now, SPAN_OK, tt_ts_of(0), NULL);
    }
}

/* ---- two phases ---- */

/* A range that can not prepare says no to the coordinator itself; where it could not be reached as
 * it was planned (its map was stale), its gateway says it, which may always give up its own
 * transaction. */
static void vote_no(struct commit_op *op, const struct tt_now *now)
{
    const struct router_config *cfg = router_cfg(op->set->router);
    struct slice coordinator = buf_slice(&op->coord->anchor);
    node_id node = part_node(op->coord);
    for (size_t i = 0; i < op->part_count; i++) {
        const struct part *p = op->parts[i];
        if (p->refused == SPAN_OK) {
            continue;
        }
        struct txn_vote v = {.coordinator = coordinator,
                             .txn = op->x->ref.id,
                             .participant = buf_slice(&p->anchor),
                             .range = p->range,
                             .status = (uint16_t)p->refused};
        msg_encode_vote(cfg->out(cfg->out_ctx, node, CLASS_CONTROL), &v);
    }
    heap_insert(&op->set->timers, &op->timer, now->mono_ns + VOTE_AGAIN_NS);
}

static void prepare_done(struct route_request *rr, const struct tt_now *now, span_status st,
                         const struct range_response *resp)
{
    struct part *p = LIST_ENTRY(rr, struct part, rr);
    if (st == SPAN_OK || (resp == NULL && st != SPAN_STALE_DESCRIPTOR)) {
        return; /* its time is over: the coordinator decides without it */
    }
    p->refused = st;
    note_reason(p->op, st);
    if (st == SPAN_TOO_LARGE && resp != NULL) { /* the coordinator will not know which range */
        struct span_error err;
        fail_text(&err, st, resp);
        (void)snprintf(p->op->why, sizeof p->op->why, "%.150s", err.text);
    }
    vote_no(p->op, now);
}

static void coordinate_done(struct route_request *rr, const struct tt_now *now, span_status st,
                            const struct range_response *resp)
{
    struct part *p = LIST_ENTRY(rr, struct part, rr);
    struct commit_op *op = p->op;
    if (st == SPAN_OK) {
        finish(op, now, SPAN_OK, resp->ts, NULL);
    } else if ((st == SPAN_ABORTED || st == SPAN_TOO_LARGE) && resp != NULL) {
        abort_with(op, now, st, resp); /* after its record (rule C11) */
    } else if (st == SPAN_UNKNOWN_OUTCOME) {
        route_send(op->set->router, now, rr);
    } else if (st == SPAN_CLOSED) {
        commit_close(op, now);
    } else {
        resolve(op, now, st);
    }
}

/* ---- planning ---- */

/* The range of key; 0: not known. */
static range_id range_at(const struct commit_op *op, struct slice key)
{
    const struct dir_range *d = directory_lookup(op->set->dir, key);
    return d == NULL ? 0 : d->range;
}

static bool writes_to(const struct commit_op *op, range_id range)
{
    for (size_t i = 0; i < op->c->write_count; i++) {
        if (range_at(op, op->c->writes[i].key) == range) {
            return true;
        }
    }
    return false;
}

/* OK, LOCKS_LOST, or WOULD_WAIT: the map has a hole. */
static span_status plan_locks(struct commit_op *op)
{
    for (size_t i = 0; i < op->x->touched_count; i++) {
        const struct touched *u = &op->x->touched[i];
        if (u->term == 0 || (PLANTED(READERS_TAKE_NO_PART) && !writes_to(op, u->range))) {
            continue;
        }
        range_id now_there = range_at(op, buf_slice(&u->anchor));
        if (now_there == 0) {
            return SPAN_WOULD_WAIT;
        }
        if (now_there != u->range) {
            return SPAN_LOCKS_LOST; /* rule F5: a split drops locks on its right side */
        }
        struct part *p = part_get(op, u->range, buf_slice(&u->anchor));
        p->term = u->term;
        p->node = u->node;
    }
    return SPAN_OK;
}

static span_status plan_writes(struct commit_op *op)
{
    const struct txn_commit *c = op->c;
    for (size_t i = 0; i < c->write_count;) {
        const struct dir_range *d = directory_lookup(op->set->dir, c->writes[i].key);
        if (d == NULL) {
            return SPAN_WOULD_WAIT;
        }
        size_t to = d->end.size == 0 ? c->write_count
                                     : lower_bound(c, i, c->write_count, buf_slice(&d->end));
        struct part *p = part_get(op, d->range, c->writes[i].key);
        p->from = i;
        p->to = to;
        i = to;
    }
    return SPAN_OK;
}

static span_status plan_puts(struct commit_op *op)
{
    const struct txn_commit *c = op->c;
    for (size_t k = 0; k < c->schema_put_count; k++) {
        uint8_t b1[TABLE_PREFIX_BYTES];
        uint8_t b2[TABLE_PREFIX_BYTES];
        struct slice lo = table_prefix(b1, c->schema_puts[k].table_id);
        struct slice end = table_prefix(b2, (uint64_t)c->schema_puts[k].table_id + 1);
        for (;;) {
            const struct dir_range *d = directory_lookup(op->set->dir, lo);
            if (d == NULL) {
                return SPAN_WOULD_WAIT;
            }
            bool last = d->end.size == 0 || slice_cmp(buf_slice(&d->end), end) >= 0;
            struct slice hi = last ? end : buf_slice(&d->end);
            add_put(part_get(op, d->range, lo), k, lo, hi);
            if (last) {
                break;
            }
            lo = buf_slice(&d->end);
        }
    }
    return SPAN_OK;
}

/* Rule E1: the range that the public id names must know how it ended. */
static span_status plan_coordinator(struct commit_op *op)
{
    const struct txn_commit *c = op->c;
    node_id self = router_cfg(op->set->router)->self;
    if (c->anchor.size > 0) {
        range_id id = range_at(op, c->anchor);
        if (id == 0) {
            return SPAN_WOULD_WAIT;
        }
        op->coord = part_get(op, id, c->anchor);
        buf_set(&op->coord->anchor, c->anchor);
        return SPAN_OK;
    }
    for (size_t i = 0; i < op->part_count; i++) {
        struct part *p = op->parts[i];
        bool writes = p->to > p->from || p->put_count > 0;
        bool had =
            op->coord != NULL && (op->coord->to > op->coord->from || op->coord->put_count > 0);
        bool nearer = op->coord != NULL && p->node == self && op->coord->node != self;
        if (op->coord == NULL || (writes && !had) || (writes == had && nearer)) {
            op->coord = p;
        }
    }
    return SPAN_OK;
}

/* A range logs its part as one entry; with several ranges its locks are in there too, at least
 * those on what is written. What cannot fit is refused before anything is sent. */
static span_status check_sizes(struct commit_op *op)
{
    const struct txn_commit *c = op->c;
    if (op->part_count > LIMIT_TXN_RANGES) {
        (void)snprintf(op->why, sizeof op->why,
                       "the transaction touches %zu ranges, the limit is %d", op->part_count,
                       LIMIT_TXN_RANGES);
        return SPAN_TOO_LARGE;
    }
    for (size_t i = 0; i < op->part_count; i++) {
        const struct part *p = op->parts[i];
        uint64_t bytes = 0;
        for (size_t w = p->from; w < p->to; w++) {
            bytes += txn_write_bytes(&c->writes[w]);
            bytes += op->part_count > 1 ? c->writes[w].key.size + 4 : 0;
        }
        if (bytes > LIMIT_TXN_RANGE_BYTES) {
            (void)snprintf(op->why, sizeof op->why,
                           "the transaction writes %llu bytes in range %llu, the limit is %llu",
                           (unsigned long long)bytes, (unsigned long long)p->range,
                           (unsigned long long)LIMIT_TXN_RANGE_BYTES);
            return SPAN_TOO_LARGE;
        }
    }
    return SPAN_OK;
}

static span_status plan_parts(struct commit_op *op)
{
    parts_clear(op);
    span_status st = plan_locks(op);
    if (st == SPAN_OK) {
        st = plan_writes(op);
    }
    if (st == SPAN_OK) {
        st = plan_puts(op);
    }
    if (st == SPAN_OK && op->c->write_count + op->c->schema_put_count > 0) {
        st = plan_coordinator(op);
    }
    return st == SPAN_OK ? check_sizes(op) : st;
}

static void go_validate(struct commit_op *op, const struct tt_now *now)
{
    op->state = COMMIT_VALIDATING;
    op->at = tt_max(now->tt.latest, tt_max(op->c->seen, op->x->seen));
    op->validating = op->part_count;
    for (size_t i = 0; i < op->part_count; i++) {
        part_send(op->parts[i], now, validate_build, validate_done, op->c->deadline_ns, false);
    }
}

static void go_two_phase(struct commit_op *op, const struct tt_now *now)
{
    op->state = COMMIT_TWO_PHASE;
    part_send(op->coord, now, coordinate_build, coordinate_done, op->patience_end_ns, false);
    for (size_t i = 0; i < op->part_count; i++) {
        if (op->parts[i] != op->coord) {
            part_send(op->parts[i], now, prepare_build, prepare_done, op->budget_end_ns, true);
        }
    }
}

static void plan(struct commit_op *op, const struct tt_now *now)
{
    op->state = COMMIT_PLANNING;
    span_status st = plan_parts(op);
    if (st == SPAN_OK && op->plans++ > PLANS_MAX) {
        st = SPAN_STALE_DESCRIPTOR;
    }
    if (st == SPAN_WOULD_WAIT) {
        router_ask_ranges(op->set->router, now);
        if (now->mono_ns < op->budget_end_ns) {
            heap_insert(&op->set->timers, &op->timer, now->mono_ns + PLAN_AGAIN_NS);
            return;
        }
        st = SPAN_UNAVAILABLE;
        (void)snprintf(op->why, sizeof op->why,
                       "no node that answers knows the ranges of all keys of the transaction");
    }
    if (st != SPAN_OK) {
        abort_with(op, now, st, NULL);
    } else if (op->part_count == 0) {
        finish(op, now, SPAN_OK, tt_ts_of(0), NULL);
    } else if (op->c->write_count + op->c->schema_put_count == 0) {
        go_validate(op, now);
    } else if (op->part_count == 1) {
        op->state = COMMIT_ONE;
        part_send(op->coord, now, one_build, one_done, op->patience_end_ns, false);
    } else {
        go_two_phase(op, now);
    }
}

/* ---- events ---- */

void commit_timer(struct txn_clients *t, const struct tt_now *now, struct heap_node *n)
{
    struct commit_op *op = LIST_ENTRY(n, struct commit_op, timer);
    (void)t;
    switch (op->state) {
    case COMMIT_PLANNING:
        plan(op, now);
        break;
    case COMMIT_TWO_PHASE:
        vote_no(op, now);
        break;
    case COMMIT_RESOLVING:
        resolve_send(op, now);
        break;
    case COMMIT_VALIDATING:
    case COMMIT_ONE:
        break;
    }
}

void commit_close(struct commit_op *op, const struct tt_now *now)
{
    bool harmless = !op->sent || op->state == COMMIT_VALIDATING;
    finish(op, now, harmless ? SPAN_CLOSED : SPAN_UNKNOWN_OUTCOME, tt_ts_of(0), NULL);
}

void txn_commit_start(struct txn_clients *t, const struct tt_now *now, const struct txn_ref *ref,
                      struct txn_commit *c)
{
    REQUIRE(!txn_id_is_none(&ref->id));
    struct txn_client *x = client_get(t, now, ref);
    REQUIRE(x->commit == NULL);
    client_end_reads(t, now, x, SPAN_CANCELED);
    struct commit_op *op = SPAN_NEW(struct commit_op);
    op->set = t;
    op->x = x;
    op->c = c;
    x->commit = op;
    uint64_t left = c->deadline_ns > now->mono_ns ? c->deadline_ns - now->mono_ns : 0;
    op->budget_end_ns = now->mono_ns + left / 4 * 3;
    op->patience_end_ns = now->mono_ns + left / 8 * 7;
    if (x->dead != SPAN_OK) {
        finish(op, now, x->dead, tt_ts_of(0), NULL);
    } else if (now->state >= CLOCK_FENCED) {
        finish(op, now, SPAN_CLOCK, tt_ts_of(0), NULL); /* its answer could never leave (rule B9) */
    } else {
        plan(op, now);
    }
}
