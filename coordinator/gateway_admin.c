/* Operations that take several steps: numbers from counter rows, splitting a range, handing a
 * leadership over, cluster settings, transaction status. Counters and settings are rows of system
 * tables in range 1, changed by transactions of the gateway's own. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "coordinator/gateway_impl.h"

#include <stdio.h>

#define ID_BLOCK          1000
#define RANGE_ID_BLOCK    8
#define FIRST_RANGE_ID    3            /* 1 and 2 are there from the start */
#define COUNTER_RANGES    (1ULL << 32) /* above every counter of kv alloc_ids */
#define RETRY_MIN_NS      (5 * MS_NS)
#define RETRY_MAX_NS      (100 * MS_NS)
#define SETTINGS_AGAIN_NS SEC_NS
#define SET_PATIENCE_NS   (3 * SEC_NS)
#define AUTO_SPLIT_NS     (5 * SEC_NS) /* longer than the job that does it */

void job_again(struct job *j, const struct tt_now *now,
               void (*wake)(struct job *j, const struct tt_now *now))
{
    j->backoff_ns = j->backoff_ns == 0 ? RETRY_MIN_NS : j->backoff_ns * 2;
    if (j->backoff_ns > RETRY_MAX_NS) {
        j->backoff_ns = RETRY_MAX_NS;
    }
    j->wake = wake;
    heap_insert(&j->g->timers, &j->timer, now->mono_ns + j->backoff_ns);
}

void gateway_system_key(struct buf *out, uint32_t table, uint16_t index)
{
    buf_clear(out);
    enc_u8(out, KEY_TABLE_PREFIX);
    for (int i = 3; i >= 0; i--) {
        enc_u8(out, (uint8_t)(table >> (8 * i)));
    }
    enc_u8(out, (uint8_t)(index >> 8));
    enc_u8(out, (uint8_t)index);
}

static void system_key_u32(struct buf *out, uint32_t v)
{
    for (int i = 3; i >= 0; i--) {
        enc_u8(out, (uint8_t)(v >> (8 * i)));
    }
}

/* ---- a transaction of the gateway's own that changes one row: read it with an X lock, write it,
 * commit ---- */

void job_row_read(struct job *j, const struct tt_now *now,
                  void (*done)(struct txn_read *r, const struct tt_now *now))
{
    j->txn = gateway_txn(j->g, now);
    j->key_slice = buf_slice(&j->key);
    j->read.keys = &j->key_slice;
    j->read.key_count = 1;
    j->read.lock = READ_LOCK_UPDATE;
    j->read.deadline_ns = j->deadline_ns;
    j->read.done = done;
    j->read.owner = j;
    j->reading = true;
    txn_read_start(j->g->clients, now, &j->txn, &j->read);
}

void job_row_commit(struct job *j, const struct tt_now *now,
                    void (*done)(struct txn_commit *c, const struct tt_now *now))
{
    j->write = (struct txn_write){.key = buf_slice(&j->key), .value = buf_slice(&j->value)};
    j->commit = (struct txn_commit){.writes = &j->write,
                                    .write_count = 1,
                                    .deadline_ns = j->deadline_ns,
                                    .done = done,
                                    .owner = j};
    j->committing = true;
    txn_commit_start(j->g->clients, now, &j->txn, &j->commit);
}

/* ---- counters ---- */

static struct counter *counter_get(struct gateway *g, uint64_t id, uint64_t block, uint64_t first)
{
    struct counter *c = map64_get(&g->counters, id);
    if (c == NULL) {
        c = SPAN_NEW(struct counter);
        c->id = id;
        c->block = block;
        c->first = first;
        list_init(&c->waiting);
        map64_put(&g->counters, id, c);
    }
    return c;
}

void counters_free(struct gateway *g)
{
    size_t pos = 0;
    struct counter *c;
    while ((c = map64_next(&g->counters, &pos, NULL)) != NULL) {
        INVARIANT(list_is_empty(&c->waiting));
        span_free(c);
    }
    map64_deinit(&g->counters);
}

static bool counter_take(struct counter *c, uint64_t count, uint64_t seen_max, uint64_t *first)
{
    uint64_t from = c->next > seen_max ? c->next : seen_max + 1;
    if (from < c->next || c->end < from || c->end - from < count) {
        return false;
    }
    *first = from;
    c->next = from + count;
    return true;
}

static void refill_start(struct job *j, const struct tt_now *now);

static void refill_wanted(struct gateway *g, const struct tt_now *now, struct counter *c)
{
    if (c->refill != NULL || list_is_empty(&c->waiting)) {
        return;
    }
    struct job *j = job_new(g, JOB_REFILL, NULL, 0);
    j->counter = c;
    c->refill = j;
    refill_start(j, now);
}

/* Gives what there is to those who wait, fails those whose time is over, and draws more for the
 * rest. */
static void counter_serve(struct gateway *g, const struct tt_now *now, struct counter *c,
                          span_status why)
{
    bool hopeless =
        why != SPAN_OK && why != SPAN_UNKNOWN_OUTCOME && span_status_kind(why) != SPAN_KIND_RETRY;
    LIST_EACH_SAFE(it, tmp, &c->waiting)
    {
        struct id_wait *w = LIST_ENTRY(it, struct id_wait, link);
        uint64_t first = 0;
        bool got = counter_take(c, w->count, w->seen_max, &first);
        bool late = w->deadline_ns <= now->mono_ns || g->closed || hopeless;
        if (got || late) {
            list_remove(it);
            w->got(w, now, got ? SPAN_OK : why == SPAN_OK ? SPAN_UNAVAILABLE : why, first);
        }
    }
    refill_wanted(g, now, c);
}

static void refill_end(struct job *j, const struct tt_now *now, span_status st)
{
    struct gateway *g = j->g;
    struct counter *c = j->counter;
    c->refill = NULL;
    job_end(j, now, st, NULL);
    counter_serve(g, now, c, st);
}

static void refill_failed(struct job *j, const struct tt_now *now, span_status st)
{
    bool hopeful = span_status_kind(st) == SPAN_KIND_RETRY || st == SPAN_UNKNOWN_OUTCOME;
    if (!hopeful || j->g->closed || now->mono_ns >= j->deadline_ns) {
        refill_end(j, now, st);
        return;
    }
    job_again(j, now,
              refill_start); /* numbers lost with an unknown outcome are a gap, which is normal */
}

static void refill_committed(struct txn_commit *k, const struct tt_now *now)
{
    struct job *j = k->owner;
    struct counter *c = j->counter;
    j->committing = false;
    if (k->status != SPAN_OK) {
        refill_failed(j, now, k->status);
        return;
    }
    if (c->end != j->base) { /* not the continuation of what is left */
        c->next = j->base;
    }
    c->end = j->base + j->size;
    refill_end(j, now, SPAN_OK);
}

static void refill_read(struct txn_read *r, const struct tt_now *now)
{
    struct job *j = r->owner;
    struct counter *c = j->counter;
    j->reading = false;
    if (r->status != SPAN_OK) {
        span_status st = r->status;
        txn_rollback(j->g->clients, now, &j->txn.id);
        refill_failed(j, now, st);
        return;
    }
    uint64_t next = c->first;
    if (r->page_count == 1 && r->pages[0].count == 1) {
        struct cursor v = cursor_of(read_row_value(&r->pages[0], &r->pages[0].rows[0]));
        next = dec_u64(&v);
        if (!cursor_done(&v)) {
            txn_rollback(j->g->clients, now, &j->txn.id);
            refill_end(j, now, SPAN_CORRUPT);
            return;
        }
    }
    uint64_t above = 0;
    uint64_t count = c->block;
    LIST_EACH(it, &c->waiting)
    {
        const struct id_wait *w = LIST_ENTRY(it, struct id_wait, link);
        above = w->seen_max > above ? w->seen_max : above;
        count += w->count;
    }
    if (above >= next) {
        next = above + 1;
    }
    if (next > UINT64_MAX / 2 - count) {
        txn_rollback(j->g->clients, now, &j->txn.id);
        refill_end(j, now, SPAN_TOO_LARGE);
        return;
    }
    j->base = next;
    j->size = count;
    buf_clear(&j->value);
    enc_u64(&j->value, next + count);
    job_row_commit(j, now, refill_committed);
}

static void refill_start(struct job *j, const struct tt_now *now)
{
    struct counter *c = j->counter;
    uint64_t latest = 0;
    LIST_EACH(it, &c->waiting)
    {
        const struct id_wait *w = LIST_ENTRY(it, struct id_wait, link);
        latest = w->deadline_ns > latest ? w->deadline_ns : latest;
    }
    j->deadline_ns = latest;
    if (latest <= now->mono_ns) {
        refill_end(j, now, SPAN_UNAVAILABLE);
        return;
    }
    gateway_system_key(&j->key, GATEWAY_TABLE_COUNTERS, c->id >= COUNTER_RANGES ? 1 : 0);
    system_key_u32(&j->key, c->id >= COUNTER_RANGES ? (uint32_t)(c->id - COUNTER_RANGES) + 1
                                                    : (uint32_t)c->id);
    job_row_read(j, now, refill_read);
}

static void want_ids(struct gateway *g, const struct tt_now *now, struct counter *c,
                     struct id_wait *w)
{
    uint64_t first;
    if (list_is_empty(&c->waiting) && counter_take(c, w->count, w->seen_max, &first)) {
        w->got(w, now, SPAN_OK, first);
        return;
    }
    list_push_back(&c->waiting, &w->link);
    refill_wanted(g, now, c);
}

static void alloc_got(struct id_wait *w, const struct tt_now *now, span_status st, uint64_t first)
{
    struct job *j = LIST_ENTRY(w, struct job, ids);
    if (j->op != NULL) {
        j->op->u.alloc.first = first;
    }
    struct span_error err;
    (void)span_fail(&err, st, "no automatic number: %s (range 1)", span_status_text(st));
    job_end(j, now, st, &err);
}

void admin_alloc(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    if (op->u.alloc.count == 0 || op->u.alloc.count > UINT32_MAX ||
        op->u.alloc.seen_max > INT64_MAX) {
        op_complete(g, op, SPAN_INVALID, NULL);
        return;
    }
    struct counter *c = counter_get(g, op->u.alloc.counter, ID_BLOCK, 1);
    uint64_t first;
    if (list_is_empty(&c->waiting) &&
        counter_take(c, op->u.alloc.count, op->u.alloc.seen_max, &first)) {
        op->u.alloc.first = first;
        op_complete(g, op, SPAN_OK, NULL);
        return;
    }
    struct job *j = job_new(g, JOB_ALLOC, op, op->deadline_ns);
    j->ids.count = op->u.alloc.count;
    j->ids.seen_max = op->u.alloc.seen_max;
    j->ids.deadline_ns = op->deadline_ns;
    j->ids.got = alloc_got;
    want_ids(g, now, c, &j->ids);
}

/* What kept the request j->rr from its end. */
static const char *why_of(const struct job *j, span_status st, const struct range_response *resp,
                          char *out, size_t size)
{
    if (resp != NULL && resp->text.size > 0) {
        (void)snprintf(out, size, "%.*s", (int)resp->text.size, (const char *)resp->text.data);
    } else if (resp == NULL && st == SPAN_UNAVAILABLE) {
        (void)route_explain(j->g->router, &j->rr, out, size);
    } else {
        (void)snprintf(out, size, "%s", span_status_text(st));
    }
    return out;
}

/* ---- split ---- */

static void split_ids(struct job *j, const struct tt_now *now);

static void split_build(struct route_request *rr, struct range_request *q)
{
    struct job *j = LIST_ENTRY(rr, struct job, rr);
    j->span.span = (struct span){.start = buf_slice(&j->key), .point = true};
    q->op = OP_SPLIT;
    q->spans = &j->span;
    q->span_count = 1;
    q->new_range = j->id;
}

static void split_send(struct job *j, const struct tt_now *now);

static void split_done(struct route_request *rr, const struct tt_now *now, span_status st,
                       const struct range_response *resp)
{
    struct job *j = LIST_ENTRY(rr, struct job, rr);
    if (st == SPAN_OK) {
        router_learn(j->g->router, now, resp->descriptors, resp->descriptor_count, false);
        job_end(j, now, SPAN_OK, NULL);
        return;
    }
    if (st == SPAN_EXISTS) {
        j->id = 0; /* another range has the number: the next one */
        job_again(j, now, split_ids);
        return;
    }
    bool hopeful = resp != NULL && span_status_kind(st) == SPAN_KIND_RETRY;
    if (hopeful && now->mono_ns < j->deadline_ns) {
        job_again(j, now, split_send); /* transactions in flight, a hand-over */
        return;
    }
    struct span_error err;
    char why[200];
    (void)span_fail(&err, st, "the range was not split: %s", why_of(j, st, resp, why, sizeof why));
    job_end(j, now, st, &err);
}

static void split_send(struct job *j, const struct tt_now *now)
{
    const struct dir_range *d = directory_lookup(&j->g->dir, buf_slice(&j->key));
    if (d != NULL && slice_eq(buf_slice(&d->start), buf_slice(&j->key))) {
        job_end(j, now, SPAN_OK, NULL); /* a boundary already */
        return;
    }
    j->rr = (struct route_request){
        .key = buf_slice(&j->key),
        .deadline_ns = j->deadline_ns,
        .build = split_build,
        .done = split_done,
    };
    route_send(j->g->router, now, &j->rr);
}

static void split_got_id(struct id_wait *w, const struct tt_now *now, span_status st,
                         uint64_t first)
{
    struct job *j = LIST_ENTRY(w, struct job, ids);
    if (st != SPAN_OK) {
        struct span_error err;
        (void)span_fail(&err, st, "no number for the new range: %s", span_status_text(st));
        job_end(j, now, st, &err);
        return;
    }
    j->id = first;
    split_send(j, now);
}

static void split_ids(struct job *j, const struct tt_now *now)
{
    j->ids.count = 1;
    j->ids.deadline_ns = j->deadline_ns;
    j->ids.got = split_got_id;
    want_ids(j->g, now, counter_get(j->g, COUNTER_RANGES, RANGE_ID_BLOCK, FIRST_RANGE_ID), &j->ids);
}

void admin_split(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct slice key = op->u.split.key;
    if (key.size == 0 || key.size > LIMIT_KEY_BYTES || key.data[0] == 0) {
        op_complete(g, op, SPAN_INVALID, NULL);
        return;
    }
    const struct dir_range *d = directory_lookup(&g->dir, key);
    if (d != NULL && slice_eq(buf_slice(&d->start), key)) {
        op_complete(g, op, SPAN_OK, NULL);
        return;
    }
    struct job *j = job_new(g, JOB_SPLIT, op, op->deadline_ns);
    buf_set(&j->key, key);
    split_ids(j, now);
}

void gateway_auto_split(struct gateway *g, const struct tt_now *now, struct slice key)
{
    if (g->closed || now->mono_ns < g->autosplit_ns) {
        return;
    }
    g->autosplit_ns = now->mono_ns + AUTO_SPLIT_NS;
    struct job *j = job_new(g, JOB_SPLIT, NULL, now->mono_ns + AUTO_SPLIT_NS - SEC_NS);
    buf_set(&j->key, key);
    split_ids(j, now);
}

/* ---- transfer ---- */

static void transfer_build(struct route_request *rr, struct range_request *q)
{
    const struct job *j = LIST_ENTRY(rr, struct job, rr);
    q->op = OP_TRANSFER;
    q->new_range = j->op->u.transfer.node;
}

static void transfer_send(struct job *j, const struct tt_now *now);

static void transfer_done(struct route_request *rr, const struct tt_now *now, span_status st,
                          const struct range_response *resp)
{
    struct job *j = LIST_ENTRY(rr, struct job, rr);
    node_id to = j->op->u.transfer.node;
    if (st == SPAN_OK && resp->leader == to) {
        job_end(j, now, SPAN_OK, NULL);
        return;
    }
    bool hopeful = st == SPAN_OK || (resp != NULL && span_status_kind(st) == SPAN_KIND_RETRY);
    if (hopeful && now->mono_ns < j->deadline_ns) {
        job_again(j, now, transfer_send); /* asked until the new leader itself answers */
        return;
    }
    struct span_error err;
    char why[200];
    (void)span_fail(&err, st == SPAN_OK ? SPAN_UNAVAILABLE : st,
                    "range %llu was not handed over to node %u: %s",
                    (unsigned long long)j->op->u.transfer.range, to,
                    st == SPAN_OK ? "it was led by another one until the end"
                                  : why_of(j, st, resp, why, sizeof why));
    job_end(j, now, err.code, &err);
}

static void transfer_send(struct job *j, const struct tt_now *now)
{
    j->rr = (struct route_request){
        .range = j->op->u.transfer.range,
        .deadline_ns = j->deadline_ns,
        .build = transfer_build,
        .done = transfer_done,
    };
    route_send(j->g->router, now, &j->rr);
}

void admin_transfer(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    if (directory_by_id(&g->dir, op->u.transfer.range) == NULL) {
        struct span_error err;
        (void)span_fail(&err, SPAN_NOT_FOUND, "there is no range %llu",
                        (unsigned long long)op->u.transfer.range);
        op_complete(g, op, SPAN_NOT_FOUND, &err);
        return;
    }
    struct job *j = job_new(g, JOB_TRANSFER, op, op->deadline_ns);
    transfer_send(j, now);
}

/* ---- members of one range: the leader is asked if the change makes sense, then to make it. The
 * change itself is lenient: its answer may be lost, and the router sends it again. ---- */

static void move_build(struct route_request *rr, struct range_request *q)
{
    const struct job *j = LIST_ENTRY(rr, struct job, rr);
    q->op = OP_MEMBERS;
    q->new_range = RANGE_MEMBERS(j->op->u.move.add, j->op->u.move.remove) |
                   (j->checked ? 0 : RANGE_MEMBERS_CHECK);
}

static void move_send(struct job *j, const struct tt_now *now);

static void move_done(struct route_request *rr, const struct tt_now *now, span_status st,
                      const struct range_response *resp)
{
    struct job *j = LIST_ENTRY(rr, struct job, rr);
    if (resp != NULL) {
        router_learn(j->g->router, now, resp->descriptors, resp->descriptor_count, false);
    }
    if (st == SPAN_OK && j->checked) {
        job_end(j, now, SPAN_OK, NULL);
        return;
    }
    if (st == SPAN_OK) {
        j->checked = true;
        move_send(j, now);
        return;
    }
    if (resp != NULL && span_status_kind(st) == SPAN_KIND_RETRY && now->mono_ns < j->deadline_ns) {
        job_again(j, now, move_send); /* a hand-over, a split, another change */
        return;
    }
    struct span_error err;
    (void)span_fail(&err, st, "the members of range %llu were not changed: %.*s",
                    (unsigned long long)j->op->u.move.range,
                    resp == NULL || resp->text.size == 0 ? (int)strlen(span_status_text(st))
                                                         : (int)resp->text.size,
                    resp == NULL || resp->text.size == 0 ? span_status_text(st)
                                                         : (const char *)resp->text.data);
    job_end(j, now, st, &err);
}

static void move_send(struct job *j, const struct tt_now *now)
{
    j->rr = (struct route_request){
        .range = j->op->u.move.range,
        .deadline_ns = j->deadline_ns,
        .build = move_build,
        .done = move_done,
        .steady = true,
    };
    route_send(j->g->router, now, &j->rr);
}

static bool is_node(const struct gateway *g, node_id node)
{
    bool found = node == 0;
    for (size_t i = 0; i < g->cfg.node_count; i++) {
        found = found || g->cfg.nodes[i] == node;
    }
    return found;
}

static bool is_member(const struct dir_range *d, node_id node)
{
    bool found = false;
    for (size_t i = 0; i < d->member_count; i++) {
        found = found || d->members[i] == node;
    }
    return found;
}

void admin_move(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct span_error err = {0};
    const struct dir_range *d = directory_by_id(&g->dir, op->u.move.range);
    if (d == NULL) {
        (void)span_fail(&err, SPAN_NOT_FOUND, "there is no range %llu",
                        (unsigned long long)op->u.move.range);
    } else if (!is_node(g, op->u.move.add)) {
        (void)span_fail(&err, SPAN_NOT_FOUND, "there is no node %u", op->u.move.add);
    } else if (op->u.move.wish && !is_node(g, op->u.move.remove) &&
               !is_member(d, op->u.move.remove)) {
        (void)span_fail(&err, SPAN_NOT_FOUND, "there is no node %u", op->u.move.remove);
    }
    if (err.code != SPAN_OK) {
        op_complete(g, op, err.code, &err);
        return;
    }
    struct job *j = job_new(g, JOB_MOVE, op, op->deadline_ns);
    j->checked = !op->u.move.wish;
    move_send(j, now);
}

/* ---- merge ---- */

static void merge_build(struct route_request *rr, struct range_request *q)
{
    const struct job *j = LIST_ENTRY(rr, struct job, rr);
    q->op = OP_MERGE;
    q->new_range = j->op->u.merge.right;
}

static void merge_send(struct job *j, const struct tt_now *now);

static void merge_done(struct route_request *rr, const struct tt_now *now, span_status st,
                       const struct range_response *resp)
{
    struct job *j = LIST_ENTRY(rr, struct job, rr);
    if (st == SPAN_OK) {
        router_learn(j->g->router, now, resp->descriptors, resp->descriptor_count, false);
        job_end(j, now, SPAN_OK, NULL);
        return;
    }
    if (resp != NULL && span_status_kind(st) == SPAN_KIND_RETRY && now->mono_ns < j->deadline_ns) {
        job_again(j, now, merge_send); /* a hand-over, transactions in flight, a slow member */
        return;
    }
    struct span_error err;
    char why[200];
    (void)span_fail(&err, st, "ranges %llu and %llu were not merged: %s",
                    (unsigned long long)j->op->u.merge.left,
                    (unsigned long long)j->op->u.merge.right, why_of(j, st, resp, why, sizeof why));
    job_end(j, now, st, &err);
}

static void merge_send(struct job *j, const struct tt_now *now)
{
    j->rr = (struct route_request){
        .range = j->op->u.merge.left,
        .deadline_ns = j->deadline_ns,
        .build = merge_build,
        .done = merge_done,
    };
    route_send(j->g->router, now, &j->rr);
}

static bool are_neighbours(const struct dir_range *a, const struct dir_range *b)
{
    return a->end.size > 0 && slice_eq(buf_slice(&a->end), buf_slice(&b->start));
}

void admin_merge(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct span_error err = {0};
    const struct dir_range *left = directory_by_id(&g->dir, op->u.merge.left);
    const struct dir_range *right = directory_by_id(&g->dir, op->u.merge.right);
    if (left == NULL || right == NULL) {
        (void)span_fail(&err, SPAN_NOT_FOUND, "there is no range %llu",
                        (unsigned long long)(left == NULL ? op->u.merge.left : op->u.merge.right));
    } else if (are_neighbours(right, left)) {
        op->u.merge.left = right->range;
        op->u.merge.right = left->range;
    } else if (!are_neighbours(left, right)) {
        (void)span_fail(&err, SPAN_INVALID,
                        "ranges %llu and %llu are no neighbours: one must begin where the other "
                        "one ends",
                        (unsigned long long)left->range, (unsigned long long)right->range);
    }
    if (err.code != SPAN_OK) {
        op_complete(g, op, err.code, &err);
        return;
    }
    struct job *j = job_new(g, JOB_MERGE, op, op->deadline_ns);
    merge_send(j, now);
}

/* ---- status ---- */

static void status_done(struct txn_status *s, const struct tt_now *now)
{
    struct job *j = LIST_ENTRY(s, struct job, status);
    struct gateway_op *op = j->op;
    span_status st = s->status;
    if (st == SPAN_OK) {
        op->u.status.ts = s->ts;
        switch (s->state) {
        case TXN_STATE_COMMITTED:
            op->u.status.outcome = KV_TXN_COMMITTED;
            break;
        case TXN_STATE_ABORTED:
            op->u.status.outcome = KV_TXN_ABORTED;
            break;
        case TXN_STATE_EXPIRED:
            op->u.status.outcome = KV_TXN_EXPIRED;
            break;
        default:
            op->u.status.outcome = KV_TXN_RUNNING;
            break;
        }
    }
    struct span_error err = s->err;
    job_end(j, now, st, &err);
}

void admin_status(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct job *j = job_new(g, JOB_STATUS, op, op->deadline_ns);
    j->status.txn = op->u.status.txn;
    j->status.anchor = op->u.status.anchor;
    j->status.deadline_ns = op->deadline_ns;
    j->status.done = status_done;
    txn_status_start(g->clients, now, &j->status);
}

/* ---- settings ---- */

static void set_committed(struct txn_commit *k, const struct tt_now *now)
{
    struct job *j = k->owner;
    j->committing = false;
    struct span_error err = k->err;
    job_end(j, now, k->status, &err);
}

static void set_read(struct txn_read *r, const struct tt_now *now)
{
    struct job *j = r->owner;
    j->reading = false;
    if (r->status != SPAN_OK || j->op == NULL) {
        struct span_error err = r->err;
        span_status st = r->status != SPAN_OK ? r->status : SPAN_CANCELED;
        txn_rollback(j->g->clients, now, &j->txn.id);
        job_end(j, now, st, r->status != SPAN_OK ? &err : NULL);
        return;
    }
    job_row_commit(j, now, set_committed);
}

/* Every node has it in force, or the setting is refused with the name of one that has not (rule
 * B10: a larger bound counts only once all use it). Those that applied it keep it: a bound that is
 * too large is safe. */
static void set_applied(struct job *j, const struct tt_now *now)
{
    questions_drop(j);
    for (size_t i = 0; i < j->g->cfg.node_count && j->err.code == SPAN_OK; i++) {
        node_id n = j->g->cfg.nodes[i];
        if (n != j->g->cfg.self && !j->answered[n]) {
            (void)span_fail(&j->err, SPAN_UNAVAILABLE, "node %u did not acknowledge the setting",
                            n);
        }
    }
    if (j->err.code != SPAN_OK) {
        struct span_error err = j->err;
        job_end(j, now, err.code, &err);
        return;
    }
    gateway_system_key(&j->key, GATEWAY_TABLE_SETTINGS, 0);
    buf_append_str(&j->key, j->op->u.set.name);
    buf_clear(&j->value);
    buf_append_str(&j->value, j->op->u.set.value);
    job_row_read(j, now, set_read);
}

void admin_set(struct gateway *g, const struct tt_now *now, struct gateway_op *op)
{
    struct span_error err = {0};
    const char *name = op->u.set.name;
    span_status st = SPAN_UNSUPPORTED;
    if (node_table_is_change(name)) {
        admin_change_nodes(g, now, op);
        return;
    }
    if (name[0] == '\0' || strchr(name, '=') != NULL || strlen(name) > 255 ||
        strlen(op->u.set.value) > LIMIT_KEY_BYTES) {
        st = span_fail(&err, SPAN_INVALID, "not a setting's name: %.100s", name);
    } else if (g->cfg.host.set != NULL) {
        st = g->cfg.host.set(g->cfg.host.ctx, now, name, op->u.set.value, &err);
    }
    if (st != SPAN_OK) {
        op_complete(g, op, st, err.code != SPAN_OK ? &err : NULL);
        return;
    }
    struct job *j = job_new(g, JOB_SET, op, op->deadline_ns);
    struct buf text = {0};
    buf_printf(&text, "%s=%s", name, op->u.set.value);
    j->wake = set_applied;
    ask_nodes(j, now, NODE_OP_SET, 0, buf_slice(&text), SET_PATIENCE_NS);
    buf_deinit(&text);
}

static void settings_start(struct job *j, const struct tt_now *now);

static void settings_read(struct txn_read *r, const struct tt_now *now)
{
    struct job *j = r->owner;
    struct gateway *g = j->g;
    j->reading = false;
    if (r->status != SPAN_OK) {
        if (g->closed || r->status == SPAN_CLOSED) {
            job_end(j, now, r->status, NULL);
            return;
        }
        j->wake = settings_start; /* range 1 is away: what the node was started with is in force
                                     meanwhile (rule I1) */
        heap_insert(&g->timers, &j->timer, now->mono_ns + SETTINGS_AGAIN_NS);
        return;
    }
    for (size_t p = 0; p < r->page_count; p++) {
        for (size_t i = 0; i < r->pages[p].count; i++) {
            struct slice key = read_row_key(&r->pages[p], &r->pages[p].rows[i]);
            struct slice value = read_row_value(&r->pages[p], &r->pages[p].rows[i]);
            struct buf name = {0};
            struct buf text = {0};
            struct span_error err = {0};
            buf_append(&name, key.data + j->size, key.size - j->size);
            buf_set(&text, value);
            if (g->cfg.host.set(g->cfg.host.ctx, now, buf_cstr(&name), buf_cstr(&text), &err) !=
                SPAN_OK) {
                SPAN_LOG(WARN, "stored cluster setting can not be applied", "error=%s", err.text);
            }
            buf_deinit(&name);
            buf_deinit(&text);
        }
    }
    job_end(j, now, SPAN_OK, NULL);
}

static void settings_start(struct job *j, const struct tt_now *now)
{
    gateway_system_key(&j->key, GATEWAY_TABLE_SETTINGS, 0);
    gateway_system_key(&j->value, GATEWAY_TABLE_SETTINGS, 1);
    j->size = j->key.size;
    j->read.start = buf_slice(&j->key);
    j->read.end = buf_slice(&j->value);
    j->read.key_count = 0;
    j->read.mode = KV_READ_STRONG;
    j->read.read_ts = tt_ts_of(0);
    j->read.parallel = 1;
    j->read.deadline_ns = now->mono_ns + GATEWAY_OP_NS_DEFAULT;
    j->read.done = settings_read;
    j->read.owner = j;
    j->reading = true;
    txn_read_start(j->g->clients, now, &j->txn, &j->read);
}

void admin_load_settings(struct gateway *g, const struct tt_now *now)
{
    struct job *j = job_new(g, JOB_SETTINGS, NULL, UINT64_MAX);
    settings_start(j, now);
}
