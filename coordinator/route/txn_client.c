/* The table of a gateway's transactions: which ranges hold locks for them, wounds, keep-alives,
 * release. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "coordinator/route/txn_impl.h"

#define KEEPALIVE_NS  SEC_NS /* GATEWAY_LOST_NS is five of them */
#define CLASS_CONTROL 0

struct txn_clients *txn_clients_new(struct router *router)
{
    struct txn_clients *t = SPAN_NEW(struct txn_clients);
    t->router = router;
    t->dir = router_directory(router);
    mapb_init(&t->by_id);
    heap_init(&t->timers);
    list_init(&t->open);
    list_init(&t->free_ops);
    list_init(&t->free_pieces);
    return t;
}

void txn_clients_free(struct txn_clients *t)
{
    if (t == NULL) {
        return;
    }
    LIST_EACH_SAFE(it, tmp, &t->open)
    {
        struct txn_client *x = LIST_ENTRY(it, struct txn_client, link);
        INVARIANT(list_is_empty(&x->reads) && x->commit == NULL);
        client_free(t, x);
    }
    read_pools_free(t);
    mapb_deinit(&t->by_id);
    heap_deinit(&t->timers);
    arena_deinit(&t->scratch);
    span_free(t);
}

size_t txn_clients_count(const struct txn_clients *t)
{
    return t->by_id.count;
}

static struct slice id_key(const struct txn_id *id)
{
    return slice_of(id, sizeof *id);
}

struct txn_client *client_find(struct txn_clients *t, const struct txn_id *id)
{
    return mapb_get(&t->by_id, id_key(id));
}

struct txn_client *client_get(struct txn_clients *t, const struct tt_now *now,
                              const struct txn_ref *ref)
{
    struct txn_client *x = client_find(t, &ref->id);
    if (x != NULL) {
        return x;
    }
    x = SPAN_NEW(struct txn_client);
    x->ref = *ref;
    if (txn_id_is_none(&x->ref.age)) {
        x->ref.age = ref->id;
    }
    list_init(&x->reads);
    list_push_back(&t->open, &x->link);
    mapb_put(&t->by_id, id_key(&ref->id), x);
    if (t->keepalive_at_ns == 0) {
        t->keepalive_at_ns = now->mono_ns + KEEPALIVE_NS;
    }
    return x;
}

void client_free(struct txn_clients *t, struct txn_client *x)
{
    REQUIRE(list_is_empty(&x->reads));
    mapb_remove(&t->by_id, id_key(&x->ref.id));
    list_remove(&x->link);
    for (size_t i = 0; i < x->touched_count; i++) {
        buf_deinit(&x->touched[i].anchor);
    }
    span_free(x->touched);
    span_free(x);
}

struct touched *client_touched(struct txn_client *x, range_id range)
{
    for (size_t i = 0; i < x->touched_count; i++) {
        if (x->touched[i].range == range) {
            return &x->touched[i];
        }
    }
    return NULL;
}

struct touched *client_touch(struct txn_client *x, range_id range)
{
    struct touched *u = client_touched(x, range);
    if (u != NULL) {
        return u;
    }
    if (x->touched_count == x->touched_cap) {
        x->touched_cap = x->touched_cap == 0 ? 4 : x->touched_cap * 2;
        x->touched = span_realloc(x->touched, x->touched_cap * sizeof *x->touched);
    }
    u = &x->touched[x->touched_count++];
    *u = (struct touched){.range = range};
    return u;
}

struct slice table_prefix(uint8_t out[TABLE_PREFIX_BYTES], uint64_t table_id)
{
    out[0] = KEY_TABLE_PREFIX;
    for (int i = 0; i < 4; i++) {
        out[1 + i] = (uint8_t)(table_id >> (24 - 8 * i));
    }
    return slice_of(out, TABLE_PREFIX_BYTES);
}

struct slice anchor_of(struct slice key)
{
    static const uint8_t first = KEY_TABLE_PREFIX;
    return key.size == 0 ? slice_of(&first, 1) : key;
}

void fail_text(struct span_error *err, span_status st, const struct range_response *resp)
{
    if (resp != NULL && resp->range == 0) {
        (void)span_fail(err, st, "%s (%.*s)", span_status_text(st), (int)resp->text.size,
                        (const char *)resp->text.data);
    } else if (resp != NULL && resp->text.size > 0) {
        (void)span_fail(err, st, "%s (range %llu: %.*s)", span_status_text(st),
                        (unsigned long long)resp->range, (int)resp->text.size,
                        (const char *)resp->text.data);
    } else if (resp != NULL) {
        (void)span_fail(err, st, "%s (range %llu)", span_status_text(st),
                        (unsigned long long)resp->range);
    } else {
        (void)span_fail(err, st, "%s", span_status_text(st));
    }
}

void refusal_init(struct refusal *f, const struct router *r, const struct route_request *rr,
                  span_status st, const struct range_response *resp)
{
    f->status = st;
    f->resp = resp;
    if (st == SPAN_IN_FUTURE && resp != NULL) {
        f->status = SPAN_CLOCK;
        f->made = *resp;
        f->made.text = slice_str("the clocks of this node and of the range's leader are further "
                                 "apart than their bounds allow");
        f->resp = &f->made;
    } else if (st == SPAN_UNAVAILABLE && resp == NULL) {
        f->made = (struct range_response){.range = route_explain(r, rr, f->text, sizeof f->text)};
        f->made.text = slice_str(f->text);
        f->resp = &f->made;
    }
}

/* ---- release ---- */

void send_release(struct txn_clients *t, const struct txn_client *x, range_id range,
                  struct slice anchor, node_id node)
{
    const struct router_config *cfg = router_cfg(t->router);
    const struct dir_range *d = directory_by_id(t->dir, range);
    struct range_request q = {
        .op = OP_RELEASE,
        .gateway = cfg->self,
        .incarnation = cfg->incarnation,
        .range = range,
        .generation = d == NULL ? 0 : d->generation,
        .txn = x->ref.id,
        .age = x->ref.age,
        .budget_ns = SEC_NS,
        .anchor = anchor,
    };
    msg_encode_request(cfg->out(cfg->out_ctx, node, CLASS_CONTROL), &q);
}

void client_release(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                    bool (*skip)(void *ctx, range_id range), void *ctx)
{
    (void)now;
    for (size_t i = 0; i < x->touched_count; i++) {
        const struct touched *u = &x->touched[i];
        if (u->node != 0 && (skip == NULL || !skip(ctx, u->range))) {
            /* No anchor: a range that was split meanwhile must not refuse it for a key it gave
             * away. */
            send_release(t, x, u->range, slice_of(NULL, 0), u->node);
        }
    }
}

/* Who is told of a read's end may end the transaction in that call: the reads are taken off it
 * first. */
static void take_reads(struct txn_client *x, struct list *out)
{
    list_init(out);
    LIST_EACH_SAFE(it, tmp, &x->reads)
    {
        list_remove(it);
        list_push_back(out, it);
        read_detach(read_of_link(it));
    }
}

static void end_reads(struct txn_clients *t, const struct tt_now *now, struct list *reads,
                      span_status why)
{
    while (!list_is_empty(reads)) {
        read_end(t, now, read_of_link(reads->next), why, NULL);
    }
}

void client_end_reads(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                      span_status why)
{
    struct list ending;
    take_reads(x, &ending);
    end_reads(t, now, &ending, why);
}

struct skip_one {
    range_id range;
};

static bool skip_range(void *ctx, range_id range)
{
    const struct skip_one *s = ctx;
    return s->range == range;
}

void client_kill(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                 span_status why, range_id except)
{
    if (x->dead != SPAN_OK) {
        return;
    }
    x->dead = why;
    struct skip_one s = {except};
    client_release(t, now, x, skip_range, &s);
    client_end_reads(t, now, x, why);
}

/* ---- events ---- */

void txn_rollback(struct txn_clients *t, const struct tt_now *now, const struct txn_id *id)
{
    struct txn_client *x = client_find(t, id);
    if (x == NULL) {
        return;
    }
    REQUIRE(x->commit == NULL);
    if (x->dead == SPAN_OK) {
        client_release(t, now, x, NULL, NULL);
    }
    x->dead = SPAN_ABORTED;
    struct list ending;
    take_reads(x, &ending);
    client_free(t, x);
    end_reads(t, now, &ending, SPAN_CANCELED);
}

/* Rule C5: the locks elsewhere go at once; the client hears of it at its next statement. */
void txn_on_wounded(struct txn_clients *t, const struct tt_now *now, const struct txn_wounded *m)
{
    struct txn_client *x = client_find(t, &m->txn);
    if (x == NULL || m->incarnation != router_cfg(t->router)->incarnation) {
        return;
    }
    span_status why = span_status_from_wire(m->status);
    if (span_status_kind(why) != SPAN_KIND_RETRY) {
        why = SPAN_WOUNDED;
    }
    if (x->commit != NULL) {
        commit_note_wound(x->commit, why); /* the range answers the commit itself */
        return;
    }
    client_kill(t, now, x, why, m->range);
}

static void keepalive_node(struct txn_clients *t, node_id node)
{
    const struct router_config *cfg = router_cfg(t->router);
    arena_clear(&t->scratch);
    struct txn_id *ids = arena_alloc(&t->scratch, (t->by_id.count + 1) * sizeof *ids);
    size_t n = 0;
    LIST_EACH(it, &t->open)
    {
        const struct txn_client *x = LIST_ENTRY(it, struct txn_client, link);
        for (size_t i = 0; x->dead == SPAN_OK && i < x->touched_count; i++) {
            if (x->touched[i].node == node) {
                ids[n++] = x->ref.id;
                break;
            }
        }
    }
    if (n > 0) {
        struct keepalive m = {
            .gateway = cfg->self, .incarnation = cfg->incarnation, .count = n, .txns = ids};
        msg_encode_keepalive(cfg->out(cfg->out_ctx, node, CLASS_CONTROL), &m);
    }
}

void txn_clients_tick(struct txn_clients *t, const struct tt_now *now)
{
    if (t->keepalive_at_ns != 0 && now->mono_ns >= t->keepalive_at_ns) {
        const struct router_config *cfg = router_cfg(t->router);
        for (size_t i = 0; i < cfg->node_count; i++) {
            keepalive_node(t, cfg->nodes[i]);
        }
        t->keepalive_at_ns = list_is_empty(&t->open) ? 0 : now->mono_ns + KEEPALIVE_NS;
    }
    struct heap_node *n;
    while ((n = heap_min(&t->timers)) != NULL && n->key <= now->mono_ns) {
        heap_remove(&t->timers, n);
        commit_timer(t, now, n);
    }
}

uint64_t txn_clients_deadline_ns(const struct txn_clients *t)
{
    uint64_t at = t->keepalive_at_ns == 0 ? UINT64_MAX : t->keepalive_at_ns;
    const struct heap_node *n = heap_min(&t->timers);
    return n != NULL && n->key < at ? n->key : at;
}

/* ---- SHOW TRANSACTION STATUS (rules C3, E1) ---- */

static void status_build(struct route_request *rr, struct range_request *q)
{
    const struct txn_status *s = LIST_ENTRY(rr, struct txn_status, rr);
    q->op = OP_STATUS;
    q->txn = s->txn;
    q->age = s->txn;
    q->anchor = anchor_of(s->anchor);
    q->coordinator = q->anchor;
}

static void status_done(struct route_request *rr, const struct tt_now *now, span_status st,
                        const struct range_response *resp)
{
    struct txn_status *s = LIST_ENTRY(rr, struct txn_status, rr);
    s->status = st;
    if (st == SPAN_OK) {
        s->state = resp->txn_state;
        s->ts = resp->ts;
    } else {
        struct refusal f;
        refusal_init(&f, s->set->router, rr, st, resp);
        s->status = f.status;
        fail_text(&s->err, f.status, f.resp);
    }
    s->done(s, now);
}

void txn_status_start(struct txn_clients *t, const struct tt_now *now, struct txn_status *s)
{
    const struct txn_client *x = client_find(t, &s->txn);
    if (x != NULL && x->dead == SPAN_OK) {
        s->status = SPAN_OK; /* one of ours: a question would abort it before its first record */
        s->state = TXN_STATE_RUNNING;
        s->done(s, now);
        return;
    }
    s->set = t;
    s->rr = (struct route_request){
        .key = anchor_of(s->anchor),
        .deadline_ns = s->deadline_ns,
        .steady = true,
        .build = status_build,
        .done = status_done,
    };
    route_send(t->router, now, &s->rr);
}

void txn_status_stop(struct txn_clients *t, const struct tt_now *now, struct txn_status *s,
                     span_status why)
{
    route_cancel(t->router, &s->rr);
    s->status = why;
    fail_text(&s->err, why, NULL);
    s->done(s, now);
}

void txn_clients_close(struct txn_clients *t, const struct tt_now *now)
{
    struct list all; /* who is told may end transactions: one at a time, from the front */
    list_init(&all);
    LIST_EACH_SAFE(it, tmp, &t->open)
    {
        list_remove(it);
        list_push_back(&all, it);
    }
    while (!list_is_empty(&all)) {
        struct txn_client *x = LIST_ENTRY(all.next, struct txn_client, link);
        list_remove(&x->link);
        list_push_back(&t->open, &x->link);
        if (x->commit != NULL) {
            commit_close(x->commit, now);
        } else {
            client_kill(t, now, x, SPAN_CLOSED, 0);
        }
    }
}
