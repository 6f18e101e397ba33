/* Where requests go, and what happens when they do not arrive. See router.h for the picture. */
#include "coordinator/route/router.h"

#include "base/alloc.h"
#include "base/invariant.h"

#include <stdio.h>

#define DOWN_NS        SEC_NS /* a lost node is avoided for so long */
#define BACKOFF_MIN_NS (1 * MS_NS)
#define RESEND_MAX_NS  (4 * SEC_NS)
#define ASK_RANGES_NS  (50 * MS_NS) /* between questions for unknown ranges */
#define PATIENCE_NS    (8 * MS_NS)  /* with the own replica's safe time */
#define GONE_NS        (2 * SEC_NS) /* no node knows a range's number for so long */
#define HOPS_MAX       4
#define CLASS_CONTROL  0 /* enum store_class */

struct router {
    struct router_config cfg;
    struct directory *dir;
    struct map64 by_id;
    struct heap timers;
    uint64_t next_id;
    uint64_t down_until_ns[LIMIT_PEERS + 1];
    uint64_t asked_ns; /* when unknown ranges were asked for; 0: never */
    bool closed;
    struct metric *sends;
    struct metric *resends;
    struct metric *redirects;
};

struct router *router_new(const struct router_config *cfg, struct directory *dir)
{
    struct router *r = SPAN_NEW(struct router);
    r->cfg = *cfg;
    r->dir = dir;
    r->next_id = cfg->first_id == 0 ? 1 : cfg->first_id;
    map64_init(&r->by_id);
    heap_init(&r->timers);
    if (cfg->metrics != NULL) {
        r->sends = metrics_counter(cfg->metrics, "spanlite_gateway_requests_total", "",
                                   "Requests of this gateway to ranges, repetitions included.");
        r->resends = metrics_counter(cfg->metrics, "spanlite_gateway_resends_total", "",
                                     "Requests sent again because no answer came.");
        r->redirects =
            metrics_counter(cfg->metrics, "spanlite_gateway_redirects_total", "",
                            "Answers that sent a request elsewhere: not leader, stale descriptor.");
    }
    return r;
}

void router_free(struct router *r)
{
    if (r == NULL) {
        return;
    }
    INVARIANT(r->by_id.count == 0);
    map64_deinit(&r->by_id);
    heap_deinit(&r->timers);
    span_free(r);
}

struct directory *router_directory(struct router *r)
{
    return r->dir;
}

const struct router_config *router_cfg(const struct router *r)
{
    return &r->cfg;
}

void router_set_node_count(struct router *r, size_t count)
{
    r->cfg.node_count = count;
}

size_t router_count(const struct router *r)
{
    return r->by_id.count;
}

static bool is_down(const struct router *r, const struct tt_now *now, node_id node)
{
    return node <= LIMIT_PEERS && r->down_until_ns[node] > now->mono_ns;
}

static bool is_member(const struct dir_range *d, node_id node)
{
    for (size_t i = 0; i < d->member_count; i++) {
        if (d->members[i] == node) {
            return true;
        }
    }
    return false;
}

static struct dir_range *range_of(const struct router *r, const struct route_request *rr)
{
    return rr->range != 0 ? directory_by_id(r->dir, rr->range) : directory_lookup(r->dir, rr->key);
}

node_id router_leader_of(const struct router *r, struct slice key)
{
    const struct dir_range *d = directory_lookup(r->dir, key);
    if (d == NULL) {
        return 0;
    }
    if (d->leader != 0) {
        return d->leader;
    }
    return is_member(d, r->cfg.self) ? r->cfg.self : d->member_count > 0 ? d->members[0] : 0;
}

static node_id pick(const struct router *r, const struct tt_now *now, struct route_request *rr,
                    const struct dir_range *d)
{
    node_id self = r->cfg.self;
    if (rr->follower_ok && !rr->follower_off && is_member(d, self)) {
        return self;
    }
    bool suspect = rr->suspect && d->leader == rr->tried;
    if (d->leader != 0 && !suspect && !is_down(r, now, d->leader)) {
        return d->leader;
    }
    if (rr->turn == 0 && is_member(d, self) && rr->tried != self) {
        return self; /* no way to go, and it knows the leader if anybody does */
    }
    for (size_t i = 0; i < d->member_count; i++) {
        node_id n = d->members[rr->turn++ % d->member_count];
        if (n != rr->tried && !is_down(r, now, n)) {
            return n;
        }
    }
    return d->member_count == 0 ? 0 : d->members[rr->turn++ % d->member_count];
}

static void set_timer(struct router *r, struct route_request *rr, uint64_t at)
{
    heap_insert(&r->timers, &rr->timer, at < rr->deadline_ns ? at : rr->deadline_ns);
}

static void wait_a_little(struct router *r, const struct tt_now *now, struct route_request *rr)
{
    rr->waiting = true;
    rr->hops = 0;
    rr->backoff_ns = rr->backoff_ns == 0 ? BACKOFF_MIN_NS : rr->backoff_ns * 2;
    if (rr->backoff_ns > ROUTE_BACKOFF_MAX_NS) {
        rr->backoff_ns = ROUTE_BACKOFF_MAX_NS;
    }
    set_timer(r, rr, now->mono_ns + rr->backoff_ns);
}

void router_ask_ranges(struct router *r, const struct tt_now *now)
{
    if (r->asked_ns != 0 && now->mono_ns < r->asked_ns + ASK_RANGES_NS) {
        return;
    }
    r->asked_ns = now->mono_ns == 0 ? 1 : now->mono_ns;
    struct node_request m = {.op = NODE_OP_DESCRIPTORS, .gateway = r->cfg.self};
    for (size_t i = 0; i < r->cfg.node_count; i++) {
        if (r->cfg.nodes[i] != r->cfg.self) {
            msg_encode_node_request(r->cfg.out(r->cfg.out_ctx, r->cfg.nodes[i], CLASS_CONTROL), &m);
        }
    }
}

static void send_to(struct router *r, const struct tt_now *now, struct route_request *rr,
                    const struct dir_range *d, node_id node)
{
    uint64_t end = rr->budget_end_ns != 0 ? rr->budget_end_ns : rr->deadline_ns;
    struct range_request q = {
        .request_id = rr->id,
        .gateway = r->cfg.self,
        .incarnation = r->cfg.incarnation,
        .range = d->range,
        .generation = d->generation,
        .budget_ns = end > now->mono_ns ? end - now->mono_ns : 0,
        .may_wait = true,
        .follower_ok = rr->follower_ok,
    };
    if (rr->budget_max_ns != 0 && q.budget_ns > rr->budget_max_ns) {
        q.budget_ns = rr->budget_max_ns;
    }
    rr->target = d->range;
    rr->node = node;
    rr->waiting = false;
    rr->unanswered++;
    rr->build(rr, &q);
    msg_encode_request(r->cfg.out(r->cfg.out_ctx, node, CLASS_CONTROL), &q);
    metric_add(r->sends, 1);
    set_timer(r, rr, now->mono_ns + rr->resend_ns);
    if (!rr->steady && rr->resend_ns < RESEND_MAX_NS) {
        rr->resend_ns *= 2;
    }
}

/* Sends it, or waits. Not OK: it is over. */
static span_status attempt(struct router *r, const struct tt_now *now, struct route_request *rr)
{
    if (now->mono_ns >= rr->deadline_ns) {
        return SPAN_UNAVAILABLE;
    }
    const struct dir_range *d = range_of(r, rr);
    if (d == NULL) {
        /* A number that nobody knows any more is one of a range that became a part of another. */
        rr->unknown_ns = rr->unknown_ns == 0 ? now->mono_ns + 1 : rr->unknown_ns;
        if (rr->range != 0 && rr->unknown_ns + GONE_NS <= now->mono_ns) {
            return SPAN_NOT_FOUND;
        }
        router_ask_ranges(r, now);
        wait_a_little(r, now, rr);
        return SPAN_OK;
    }
    rr->unknown_ns = 0;
    if (rr->box && (!dir_range_covers_span(d, rr->lo, rr->hi) ||
                    (rr->hi_point && !dir_range_covers(d, rr->hi)))) {
        return SPAN_STALE_DESCRIPTOR;
    }
    node_id node = pick(r, now, rr, d);
    if (node == 0) {
        wait_a_little(r, now, rr);
        return SPAN_OK;
    }
    send_to(r, now, rr, d, node);
    return SPAN_OK;
}

static void take_out(struct router *r, struct route_request *rr)
{
    void *was = map64_remove(&r->by_id, rr->id);
    INVARIANT(was == rr);
    heap_remove(&r->timers, &rr->timer);
    rr->in = false;
}

static void finish(struct router *r, const struct tt_now *now, struct route_request *rr,
                   span_status st, const struct range_response *resp)
{
    take_out(r, rr);
    rr->done(rr, now, st, resp);
}

static void go(struct router *r, const struct tt_now *now, struct route_request *rr)
{
    span_status st = attempt(r, now, rr);
    if (st != SPAN_OK) {
        finish(r, now, rr, st, NULL);
    }
}

void route_send(struct router *r, const struct tt_now *now, struct route_request *rr)
{
    REQUIRE(!rr->in);
    rr->in = true;
    rr->id = r->next_id++;
    rr->node = 0;
    rr->unanswered = 0;
    rr->unknown_ns = 0;
    rr->resend_ns = ROUTE_RESEND_NS;
    rr->backoff_ns = 0;
    rr->hops = 0;
    rr->turn = 0;
    rr->tried = 0;
    rr->refused = SPAN_OK;
    rr->follower_until_ns = 0;
    rr->follower_off = false;
    rr->suspect = false;
    rr->waiting = false;
    map64_put(&r->by_id, rr->id, rr);
    rr->failed = r->closed ? SPAN_CLOSED : attempt(r, now, rr);
    if (rr->failed != SPAN_OK) {
        heap_insert(&r->timers, &rr->timer, 0); /* done is not called from in here */
    }
}

void route_cancel(struct router *r, struct route_request *rr)
{
    if (rr->in) {
        take_out(r, rr);
    }
}

range_id route_explain(const struct router *r, const struct route_request *rr, char *out,
                       size_t size)
{
    const struct dir_range *d = range_of(r, rr);
    if (d == NULL) {
        (void)snprintf(out, size, "no node that answers knows the range of the key");
        return 0;
    }
    const char *why = rr->refused == SPAN_CLOCK ? "the clock of its leader is outside its bound"
                      : rr->refused == SPAN_UNAVAILABLE ? "its leader has no quorum"
                                                        : "no leader answers";
    size_t n = (size_t)snprintf(out, size, "%s; its replicas are on nodes", why);
    for (size_t i = 0; i < d->member_count && n < size; i++) {
        n += (size_t)snprintf(out + n, size - n, "%s %u", i == 0 ? "" : ",", d->members[i]);
    }
    return d->range;
}

/* Another node leads it, says a node that does not. */
static void redirect(struct router *r, const struct tt_now *now, struct route_request *rr,
                     node_id from, const struct range_response *resp)
{
    metric_add(r->redirects, 1);
    rr->suspect = false;
    if (rr->follower_ok && !rr->follower_off && from == r->cfg.self) {
        rr->follower_off = true; /* its safe time is too far behind */
        rr->hops = 0;
    } else {
        rr->tried = from;
    }
    bool elsewhere = resp->leader != 0 && resp->leader != from;
    if (elsewhere) {
        directory_hint(r->dir, resp->range, resp->leader, resp->term);
    } else {
        directory_unhint(r->dir, resp->range, from);
    }
    const struct dir_range *d = range_of(r, rr);
    bool hopeful = d != NULL && d->leader != 0 && d->leader != from && !is_down(r, now, d->leader);
    if (hopeful && rr->hops++ < HOPS_MAX) {
        go(r, now, rr);
    } else {
        wait_a_little(r, now, rr);
    }
}

static void learn_all(struct router *r, const struct range_descriptor *all, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        directory_learn(r->dir, &all[i]);
    }
}

static void stale(struct router *r, const struct tt_now *now, struct route_request *rr,
                  node_id from, const struct range_response *resp)
{
    metric_add(r->redirects, 1);
    const struct dir_range *before = directory_by_id(r->dir, rr->target);
    uint64_t generation = before == NULL ? 0 : before->generation;
    learn_all(r, resp->descriptors, resp->descriptor_count);
    const struct dir_range *d = range_of(r, rr);
    if (d != NULL && d->range == rr->target && d->generation == generation) {
        /* Nothing newer is known there: it hosts no replica of it (any more). Not asked again as
         * the replica that is nearest, either. */
        rr->tried = from;
        rr->follower_off = rr->follower_off || from == r->cfg.self;
        directory_unhint(r->dir, rr->target, from);
        wait_a_little(r, now, rr);
    } else if (rr->hops++ < HOPS_MAX) {
        go(r, now, rr);
    } else {
        wait_a_little(r, now, rr);
    }
}

static void would_wait(struct router *r, const struct tt_now *now, struct route_request *rr)
{
    if (rr->follower_until_ns == 0) {
        rr->follower_until_ns = now->mono_ns + PATIENCE_NS;
    }
    if (now->mono_ns < rr->follower_until_ns) {
        rr->waiting = true;
        set_timer(r, rr, now->mono_ns + 2 * MS_NS);
        return;
    }
    rr->follower_off = true;
    go(r, now, rr);
}

void router_response(struct router *r, const struct tt_now *now, node_id from,
                     const struct range_response *resp)
{
    struct route_request *rr = map64_get(&r->by_id, resp->request_id);
    if (rr == NULL || rr->failed != SPAN_OK) {
        return;
    }
    if (rr->unanswered > 0) {
        rr->unanswered--;
    }
    /* The patience grows with silence only: refusals of an election's time must not make the first
     * message that is lost after it cost seconds. */
    rr->resend_ns = ROUTE_RESEND_NS;
    span_status st = span_status_from_wire(resp->status);
    if (st == SPAN_NOT_LEADER) {
        redirect(r, now, rr, from, resp);
        return;
    }
    if (st == SPAN_STALE_DESCRIPTOR) {
        stale(r, now, rr, from, resp);
        return;
    }
    if (st == SPAN_WOULD_WAIT && rr->follower_ok && !rr->follower_off) {
        would_wait(r, now, rr);
        return;
    }
    if (st == SPAN_UNAVAILABLE || st == SPAN_CLOCK) {
        rr->refused = st;
        rr->tried = from;
        wait_a_little(r, now, rr);
        return;
    }
    if (resp->leader != 0) {
        directory_hint(r->dir, resp->range, resp->leader, resp->term);
    }
    finish(r, now, rr, st, resp);
}

void router_tick(struct router *r, const struct tt_now *now)
{
    struct heap_node *n;
    while ((n = heap_min(&r->timers)) != NULL && n->key <= now->mono_ns) {
        struct route_request *rr = LIST_ENTRY(n, struct route_request, timer);
        if (rr->failed != SPAN_OK) {
            finish(r, now, rr, rr->failed, NULL);
            continue;
        }
        if (!rr->waiting && now->mono_ns < rr->deadline_ns) {
            metric_add(r->resends, 1);
            rr->tried = rr->node;
            rr->suspect = true;
        }
        rr->hops = 0;
        go(r, now, rr);
    }
}

uint64_t router_deadline_ns(const struct router *r)
{
    const struct heap_node *n = heap_min(&r->timers);
    return n == NULL ? UINT64_MAX : n->key;
}

/* What waits for news goes now. */
static void wake(struct router *r, const struct tt_now *now)
{
    size_t pos = 0;
    struct route_request *rr;
    while ((rr = map64_next(&r->by_id, &pos, NULL)) != NULL) {
        if (rr->waiting && rr->failed == SPAN_OK) {
            rr->backoff_ns = 0;
            heap_insert(&r->timers, &rr->timer, now->mono_ns);
        }
    }
}

void router_peer_lost(struct router *r, const struct tt_now *now, node_id node)
{
    if (node == 0 || node > LIMIT_PEERS) {
        return;
    }
    r->down_until_ns[node] = now->mono_ns + DOWN_NS;
    directory_unhint_node(r->dir, node);
    size_t pos = 0;
    struct route_request *rr;
    while ((rr = map64_next(&r->by_id, &pos, NULL)) != NULL) {
        if (!rr->waiting && rr->failed == SPAN_OK && rr->node == node) {
            rr->tried = node;
            rr->resend_ns = ROUTE_RESEND_NS;
            wait_a_little(r, now, rr);
        }
    }
}

void router_peer_up(struct router *r, const struct tt_now *now, node_id node)
{
    if (node == 0 || node > LIMIT_PEERS || r->down_until_ns[node] == 0) {
        return;
    }
    r->down_until_ns[node] = 0;
    wake(r, now);
}

void router_learn(struct router *r, const struct tt_now *now, const struct range_descriptor *all,
                  size_t count, bool own)
{
    bool news = false;
    for (size_t i = 0; i < count; i++) {
        const struct range_descriptor *x = &all[i];
        news = directory_learn(r->dir, x) || news;
        struct dir_range *d = own ? directory_by_id(r->dir, x->range) : NULL;
        if (d != NULL && d->generation == x->generation && d->store_leader != x->leader) {
            d->store_leader = x->leader;
            if (x->leader != 0) {
                d->leader = x->leader;
                news = true;
            }
        }
    }
    if (news) {
        wake(r, now);
    }
}

void router_close(struct router *r, const struct tt_now *now)
{
    r->closed = true;
    size_t pos = 0;
    struct route_request *rr;
    while ((rr = map64_next(&r->by_id, &pos, NULL)) != NULL) {
        rr->failed = SPAN_CLOSED;
        heap_insert(&r->timers, &rr->timer, 0);
    }
    router_tick(r, now);
}
