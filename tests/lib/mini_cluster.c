/* Virtual cluster; see mini_cluster.h. */
#include "tests/lib/mini_cluster.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define START_NS  (1700000000ULL * SEC_NS)
#define DRIFT_PPB 200000

enum event_kind {
    EV_FRAME,
    EV_PERSISTED,
    EV_FLUSHED,
    EV_OP,
    EV_PEER_LOST,
    EV_PEER_UP,
    EV_RUN,  /* the node's next turn */
    EV_CALL, /* the test's */
};

struct event {
    struct heap_node heap;
    struct list inbox;
    enum event_kind kind;
    node_id node;
    uint64_t epoch;
    node_id from;
    struct buf bytes;
    uint64_t turn;
    size_t log_count;
    range_id range;
    struct engine_job *job;
    struct gateway_op *op;
    void (*fn)(void *ctx);
    void *ctx;
};

struct record {
    bool sticky;
    range_id range;
    uint64_t index;
    uint64_t term;
    uint8_t type;
    struct buf payload;
};

struct node {
    struct mini *m;
    node_id id;
    bool alive;
    uint64_t epoch; /* of its life: events for an earlier one are dropped */
    int64_t offset_ns;
    int64_t drift_ppb;
    uint64_t clock_at_ns;
    uint64_t earliest_ns;
    struct store *store;
    struct gateway *gateway;
    uint64_t learned;
    struct record *log; /* synced ones first */
    size_t log_count;
    size_t log_cap;
    size_t synced;
    uint64_t sync_end_ns; /* syncs end in order */
    struct buf out[MINI_NODES + 1][2];
    uint64_t last_arrival_ns[MINI_NODES + 1][2];
    uint64_t last_op_ns;
    struct list inbox;
    uint64_t busy_until_ns;
    uint64_t run_at_ns; /* of the EV_RUN that counts; 0: none */
    char dir[256];
};

struct mini {
    struct mini_options opt;
    struct mini_net net;
    struct rng rng;
    uint64_t now_ns;
    struct heap events;
    struct node nodes[MINI_NODES + 1];
    bool cut[MINI_NODES + 1][MINI_NODES + 1];
    struct arena arena;
    uint64_t trace;
    char dir[200];
};

void mini_options_init(struct mini_options *o, uint64_t seed)
{
    *o = (struct mini_options){
        .seed = seed,
        .nodes = 3,
        .epsilon_ns = EPSILON_NS_DEFAULT,
        .sync_max_ns = 300000,
        .flush_bytes = 64 * KIB,
        .turn_ns = 50000,
        .net = {.delay_min_ns = 20000, .delay_max_ns = 300000, .dup_late_ns = 100 * MS_NS},
    };
}

uint64_t mini_now(const struct mini *m)
{
    return m->now_ns;
}

struct rng *mini_rng(struct mini *m)
{
    return &m->rng;
}

size_t mini_node_count(const struct mini *m)
{
    return m->opt.nodes;
}

uint64_t mini_trace(const struct mini *m)
{
    return m->trace;
}

bool mini_alive(const struct mini *m, node_id node)
{
    return m->nodes[node].alive;
}

uint64_t mini_epoch(const struct mini *m, node_id node)
{
    return m->nodes[node].epoch;
}

struct store *mini_store(struct mini *m, node_id node)
{
    return m->nodes[node].store;
}

struct gateway *mini_gateway(struct mini *m, node_id node)
{
    return m->nodes[node].gateway;
}

struct mini_net *mini_network(struct mini *m)
{
    return &m->net;
}

/* ---- clocks ---- */

static uint64_t mono_of(const struct node *n, uint64_t true_ns)
{
    return true_ns - START_NS + n->id * SEC_NS;
}

static uint64_t true_of(const struct node *n, uint64_t mono_ns)
{
    return mono_ns - n->id * SEC_NS + START_NS;
}

struct tt_now mini_clock(struct mini *m, node_id node)
{
    struct node *n = &m->nodes[node];
    int64_t bound = (int64_t)(m->opt.epsilon_ns - m->opt.epsilon_ns / 16);
    int64_t dt = (int64_t)(m->now_ns - n->clock_at_ns);
    n->clock_at_ns = m->now_ns;
    n->offset_ns += dt / 1000 * n->drift_ppb / 1000000;
    if (n->offset_ns > bound || n->offset_ns < -bound) {
        n->offset_ns = n->offset_ns > 0 ? bound : -bound;
        n->drift_ppb = n->offset_ns > 0 ? -(int64_t)rng_below(&m->rng, DRIFT_PPB)
                                        : (int64_t)rng_below(&m->rng, DRIFT_PPB);
    }
    uint64_t reading = (uint64_t)((int64_t)m->now_ns + n->offset_ns);
    struct tt_now now = {.mono_ns = mono_of(n, m->now_ns), .state = CLOCK_SYNCED};
    now.tt.latest.ns = reading + m->opt.epsilon_ns;
    now.tt.earliest.ns = reading - m->opt.epsilon_ns;
    if (now.tt.earliest.ns < n->earliest_ns) {
        now.tt.earliest.ns = n->earliest_ns;
    }
    n->earliest_ns = now.tt.earliest.ns;
    INVARIANT(now.tt.earliest.ns <= m->now_ns);
    INVARIANT(now.tt.latest.ns >= m->now_ns);
    return now;
}

uint64_t mini_after(struct mini *m, node_id node, struct tt_ts t)
{
    struct tt_now now = mini_clock(m, node);
    return tt_after(&now.tt, t) ? m->now_ns : m->now_ns + (t.ns - now.tt.earliest.ns) + 1;
}

/* ---- events ---- */

static struct event *event_new(struct mini *m, enum event_kind kind, node_id node, uint64_t at)
{
    struct event *e = SPAN_NEW(struct event);
    e->kind = kind;
    e->node = node;
    e->epoch = m->nodes[node].epoch;
    list_init(&e->inbox);
    heap_insert(&m->events, &e->heap, at < m->now_ns ? m->now_ns : at);
    return e;
}

static void event_free(struct event *e)
{
    buf_deinit(&e->bytes);
    span_free(e);
}

void mini_at(struct mini *m, uint64_t at_ns, void (*fn)(void *ctx), void *ctx)
{
    struct event *e = event_new(m, EV_CALL, 0, at_ns);
    e->fn = fn;
    e->ctx = ctx;
}

static void end_op(struct gateway_op *op, span_status st)
{
    op->status = span_fail(&op->err, st, "%s", span_status_text(st));
    op->read.page_count = 0;
    op->done(op);
}

static void schedule_run(struct node *n, uint64_t at)
{
    if (at < n->busy_until_ns) {
        at = n->busy_until_ns;
    }
    if (at < n->m->now_ns) {
        at = n->m->now_ns;
    }
    if (n->run_at_ns == 0 || at < n->run_at_ns) {
        n->run_at_ns = at;
        (void)event_new(n->m, EV_RUN, n->id, at);
    }
}

/* ---- the store's world ---- */

static struct buf *io_send(void *ctx, node_id to, enum store_class cls)
{
    struct node *n = ctx;
    REQUIRE(to >= 1 && to <= n->m->opt.nodes && to != n->id);
    return &n->out[to][cls];
}

static struct buf *gateway_out(void *ctx, node_id to, unsigned cls)
{
    struct node *n = ctx;
    return to == n->id ? store_local(n->store) : io_send(n, to, (enum store_class)cls);
}

static void log_add(struct node *n, struct record r, struct slice payload)
{
    if (n->log_count == n->log_cap) {
        n->log_cap = n->log_cap == 0 ? 256 : n->log_cap * 2;
        n->log = span_realloc(n->log, n->log_cap * sizeof *n->log);
    }
    buf_set(&r.payload, payload);
    n->log[n->log_count++] = r;
}

static void io_entry(void *ctx, range_id range, uint64_t index, uint64_t term, uint8_t type,
                     struct slice payload)
{
    log_add(ctx, (struct record){.range = range, .index = index, .term = term, .type = type},
            payload);
}

static void io_sticky(void *ctx, range_id range, uint8_t kind, struct slice payload)
{
    log_add(ctx, (struct record){.sticky = true, .range = range, .type = kind}, payload);
}

static void io_release(void *ctx, range_id range, uint64_t index)
{
    (void)ctx; /* a real log lets go of whole segments, some time later: keeping all is one way of
                  it */
    (void)range;
    (void)index;
}

static void io_flush(void *ctx, range_id range, struct engine_job *job)
{
    struct node *n = ctx;
    struct event *e =
        event_new(n->m, EV_FLUSHED, n->id, n->m->now_ns + rng_below(&n->m->rng, 5 * MS_NS));
    e->range = range;
    e->job = job;
}

static void io_to_gateway(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                          struct slice body)
{
    struct node *n = ctx;
    gateway_message(n->gateway, now, from, kind, body);
}

/* One row: the node's number. */
static span_status host_show(void *ctx, const struct tt_now *now, enum kv_show what,
                             struct kv_table *out, struct span_error *err)
{
    static const char *const names[] = {"node", "state"};
    const struct node *n = ctx;
    char id[16];
    const char *row[] = {id, "here"};
    (void)now;
    (void)what;
    (void)err;
    (void)snprintf(id, sizeof id, "%u", n->id);
    kv_table_init(out, 2, names, NULL);
    kv_table_add_row(out, row);
    return SPAN_OK;
}

static void make_cores(struct node *n, bool fresh)
{
    struct mini *m = n->m;
    struct store_config sc = {
        .self = n->id,
        .incarnation = rng_u64(&m->rng) | 1,
        .node_count = m->opt.nodes,
        .lease_ns = LEASE_NS_DEFAULT,
        .version_window_ns = VERSION_WINDOW_NS,
        .flush_bytes = m->opt.flush_bytes,
        .dir = n->dir,
        .seed = rng_u64(&m->rng),
        .fresh = fresh,
        .io = {.ctx = n,
               .send = io_send,
               .entry = io_entry,
               .sticky = io_sticky,
               .release = io_release,
               .flush = io_flush,
               .to_gateway = io_to_gateway},
    };
    struct gateway_config gc = {
        .self = n->id,
        .incarnation = sc.incarnation,
        .node_count = m->opt.nodes,
        .seed = rng_u64(&m->rng),
        .out_ctx = n,
        .out = gateway_out,
        .host = {.ctx = n, .show = host_show},
    };
    for (size_t i = 0; i < m->opt.nodes; i++) {
        sc.nodes[i] = (node_id)(i + 1);
        gc.nodes[i] = (node_id)(i + 1);
    }
    n->store = store_new(&sc);
    n->gateway = gateway_new(&gc);
    n->learned = UINT64_MAX;
}

/* ---- turns ---- */

static void frame(struct node *n, struct node *to, int cls, struct slice bytes, uint64_t extra_ns)
{
    struct mini *m = n->m;
    const struct mini_net *net = &m->net;
    uint64_t delay = rng_between(&m->rng, net->delay_min_ns, net->delay_max_ns);
    if (rng_double(&m->rng) < net->slow) {
        delay += rng_below(&m->rng, 50 * MS_NS);
    }
    uint64_t at = m->now_ns + delay + extra_ns;
    if (!net->reorder && extra_ns == 0) {
        if (at <= n->last_arrival_ns[to->id][cls]) {
            at = n->last_arrival_ns[to->id][cls] + 1;
        }
        n->last_arrival_ns[to->id][cls] = at;
    }
    struct event *e = event_new(m, EV_FRAME, to->id, at);
    e->from = n->id;
    buf_set(&e->bytes, bytes);
}

static void send_all(struct node *n)
{
    struct mini *m = n->m;
    for (node_id to = 1; to <= m->opt.nodes; to++) {
        for (int cls = 0; cls < 2; cls++) {
            struct buf *b = &n->out[to][cls];
            if (b->size == 0) {
                continue;
            }
            struct node *dst = &m->nodes[to];
            if (dst->alive && !m->cut[n->id][to] && rng_double(&m->rng) >= m->net.loss) {
                frame(n, dst, cls, buf_slice(b), 0);
                if (rng_double(&m->rng) < m->net.dup) {
                    frame(n, dst, cls, buf_slice(b), 1 + rng_below(&m->rng, m->net.dup_late_ns));
                }
            }
            buf_clear(b);
        }
    }
}

static void learn(struct node *n, const struct tt_now *now)
{
    uint64_t version = store_descriptors_version(n->store);
    if (version != n->learned) {
        n->learned = version;
        struct range_descriptor *all;
        arena_clear(&n->m->arena);
        size_t count = store_descriptors(n->store, &n->m->arena, &all);
        gateway_learn(n->gateway, now, all, count);
    }
}

static void turn_end(struct node *n, const struct tt_now *now)
{
    struct mini *m = n->m;
    uint64_t turn = store_turn_end(n->store, now);
    if (turn != 0) {
        uint64_t at = m->now_ns + 50000 + rng_below(&m->rng, m->opt.sync_max_ns + 1);
        n->sync_end_ns = at > n->sync_end_ns ? at : n->sync_end_ns;
        struct event *e = event_new(m, EV_PERSISTED, n->id, n->sync_end_ns);
        e->turn = turn;
        e->log_count = n->log_count;
    }
    send_all(n);
    n->busy_until_ns = m->now_ns + rng_below(&m->rng, m->opt.turn_ns + 1);
    uint64_t deadline = store_deadline_ns(n->store);
    uint64_t g = gateway_deadline_ns(n->gateway);
    deadline = g < deadline ? g : deadline;
    if (deadline != UINT64_MAX) {
        schedule_run(n, deadline <= mono_of(n, m->now_ns) ? m->now_ns : true_of(n, deadline));
    }
}

static void handle(struct node *n, const struct tt_now *now, struct event *e)
{
    size_t at = 0;
    uint8_t kind;
    struct slice body;
    struct span_error err = {0};
    switch (e->kind) {
    case EV_FRAME:
        while (msg_next(buf_slice(&e->bytes), &at, &kind, &body) == SPAN_OK) {
            store_message(n->store, now, e->from, kind, body);
        }
        break;
    case EV_PERSISTED:
        n->synced = e->log_count > n->synced ? e->log_count : n->synced;
        store_persisted(n->store, now, e->turn);
        break;
    case EV_FLUSHED:
        (void)!engine_flush_run(e->job, &err);
        store_flush_done(n->store, now, e->range, e->job);
        break;
    case EV_OP:
        gateway_op(n->gateway, now, e->op);
        break;
    case EV_PEER_LOST:
        store_peer_lost(n->store, now, e->from);
        gateway_peer_lost(n->gateway, now, e->from);
        break;
    case EV_PEER_UP:
        gateway_peer_up(n->gateway, now, e->from);
        break;
    case EV_RUN:
    case EV_CALL:
        break;
    }
}

static void run_turn(struct node *n)
{
    struct mini *m = n->m;
    struct tt_now now = mini_clock(m, n->id); /* rule A3: after everything was taken */
    while (!list_is_empty(&n->inbox)) {
        struct event *e = LIST_ENTRY(n->inbox.next, struct event, inbox);
        list_remove(&e->inbox);
        handle(n, &now, e);
        event_free(e);
    }
    learn(n, &now);
    if (now.mono_ns >= store_deadline_ns(n->store)) {
        store_tick(n->store, &now);
    }
    if (now.mono_ns >= gateway_deadline_ns(n->gateway)) {
        gateway_tick(n->gateway, &now);
    }
    turn_end(n, &now);
}

static void trace(struct mini *m, const struct event *e)
{
    m->trace = span_mix64(m->trace ^ m->now_ns);
    m->trace = span_mix64(m->trace ^ ((uint64_t)e->kind << 32 | e->node));
    m->trace ^= e->bytes.size == 0 ? 0 : span_hash64(e->bytes.data, e->bytes.size);
}

bool mini_step(struct mini *m)
{
    struct heap_node *h = heap_min(&m->events);
    if (h == NULL) {
        return false;
    }
    struct event *e = LIST_ENTRY(h, struct event, heap);
    uint64_t h_key = h->key;
    heap_remove(&m->events, h);
    m->now_ns = h->key > m->now_ns ? h->key : m->now_ns;
    trace(m, e);
    if (e->kind == EV_CALL) {
        e->fn(e->ctx);
        event_free(e);
        return true;
    }
    struct node *n = &m->nodes[e->node];
    if (!n->alive || n->epoch != e->epoch) {
        if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
        return true;
    }
    if (e->kind != EV_RUN) {
        list_push_back(&n->inbox, &e->inbox);
        schedule_run(n, m->now_ns);
        return true;
    }
    event_free(e);
    if (h_key != n->run_at_ns) {
        return true; /* an earlier one was scheduled after it */
    }
    if (m->now_ns < n->busy_until_ns) { /* paused since it was scheduled */
        n->run_at_ns = 0;
        schedule_run(n, n->busy_until_ns);
        return true;
    }
    n->run_at_ns = 0;
    run_turn(n);
    return true;
}

void mini_run_for(struct mini *m, uint64_t ns)
{
    uint64_t until = m->now_ns + ns;
    struct heap_node *h;
    while ((h = heap_min(&m->events)) != NULL && h->key <= until) {
        (void)mini_step(m);
    }
    m->now_ns = until;
}

bool mini_run_until(struct mini *m, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns)
{
    uint64_t until = m->now_ns + limit_ns;
    while (!cond(ctx)) {
        if (m->now_ns > until || !mini_step(m)) {
            return false;
        }
    }
    return true;
}

void mini_op(struct mini *m, node_id node, struct gateway_op *op)
{
    /* In the order of the posts, as a mailbox gives them: a cancel never overtakes what it is to
     * stop. */
    struct node *n = &m->nodes[node];
    uint64_t at = m->now_ns + rng_below(&m->rng, 20000);
    n->last_op_ns = at > n->last_op_ns ? at : n->last_op_ns;
    event_new(m, EV_OP, node, n->last_op_ns)->op = op;
}

/* ---- faults ---- */

void mini_pause(struct mini *m, node_id node, uint64_t ns)
{
    struct node *n = &m->nodes[node];
    uint64_t until = m->now_ns + ns;
    n->busy_until_ns = until > n->busy_until_ns ? until : n->busy_until_ns;
}

void mini_cut(struct mini *m, node_id from, node_id to, bool on)
{
    m->cut[from][to] = on;
}

void mini_heal(struct mini *m)
{
    memset(m->cut, 0, sizeof m->cut);
    m->net.loss = 0;
    m->net.dup = 0;
    m->net.slow = 0;
    m->net.reorder = false;
}

void mini_want_flush(struct mini *m, node_id node)
{
    struct node *n = &m->nodes[node];
    if (n->alive) {
        struct tt_now now = mini_clock(m, node);
        store_want_flush(n->store, &now, 0);
        schedule_run(n, m->now_ns);
    }
}

static void tell_peers(struct mini *m, node_id node, enum event_kind kind)
{
    for (node_id i = 1; i <= m->opt.nodes; i++) {
        if (i != node && m->nodes[i].alive) {
            event_new(m, kind, i, m->now_ns + rng_between(&m->rng, MS_NS, 5 * MS_NS))->from = node;
        }
    }
}

/* Jobs of the flusher die with the process: given back, never run. Operations end as for a client
 * whose connection broke. */
static void drop_events(struct node *n)
{
    struct mini *m = n->m;
    while (!list_is_empty(&n->inbox)) {
        struct event *e = LIST_ENTRY(n->inbox.next, struct event, inbox);
        list_remove(&e->inbox);
        if (e->kind == EV_FLUSHED) {
            store_flush_abandon(n->store, e->range, e->job);
        } else if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
    }
    for (size_t i = 0; i < m->events.count; i++) {
        struct event *e = LIST_ENTRY(m->events.nodes[i], struct event, heap);
        if (e->kind == EV_FLUSHED && e->node == n->id && e->epoch == n->epoch && e->job != NULL) {
            store_flush_abandon(n->store, e->range, e->job);
            e->job = NULL;
        }
    }
}

void mini_crash(struct mini *m, node_id node)
{
    struct node *n = &m->nodes[node];
    REQUIRE(n->alive);
    n->alive = false;
    struct tt_now now = mini_clock(m, node);
    drop_events(n);
    gateway_close(n->gateway, &now);
    gateway_free(n->gateway);
    store_free(n->store);
    n->gateway = NULL;
    n->store = NULL;
    n->epoch++;
    n->run_at_ns = 0;
    n->busy_until_ns = 0;
    n->sync_end_ns = 0;
    size_t keep = n->synced + (size_t)rng_below(&m->rng, n->log_count - n->synced + 1);
    for (size_t i = keep; i < n->log_count; i++) {
        buf_deinit(&n->log[i].payload);
    }
    n->log_count = keep;
    n->synced = keep;
    for (node_id to = 0; to <= MINI_NODES; to++) {
        buf_clear(&n->out[to][0]);
        buf_clear(&n->out[to][1]);
    }
    tell_peers(m, node, EV_PEER_LOST);
}

static void start(struct node *n, bool fresh)
{
    struct span_error err = {0};
    span_status st = SPAN_OK;
    n->alive = true;
    make_cores(n, fresh);
    struct tt_now now = mini_clock(n->m, n->id);
    for (size_t i = 0; i < n->log_count && st == SPAN_OK; i++) {
        const struct record *r = &n->log[i];
        st = r->sticky
                 ? store_restore_sticky(n->store, r->range, r->type, buf_slice(&r->payload), &err)
                 : store_restore_entry(n->store, r->range, r->index, r->term, r->type,
                                       buf_slice(&r->payload), &err);
    }
    if (st == SPAN_OK) {
        st = store_restore_found(n->store) ? store_restore_end(n->store, &now, &err)
                                           : store_bootstrap(n->store, &now, &err);
    }
    if (st != SPAN_OK) {
        fprintf(stderr, "node %u can not start: %s\n", n->id, err.text);
    }
    INVARIANT(st == SPAN_OK);
    learn(n, &now);
    turn_end(n, &now);
}

void mini_restart(struct mini *m, node_id node)
{
    struct node *n = &m->nodes[node];
    REQUIRE(!n->alive);
    start(n, false);
    tell_peers(m, node, EV_PEER_UP);
}

/* ---- life ---- */

struct mini *mini_new(const struct mini_options *o)
{
    struct mini *m = SPAN_NEW(struct mini);
    m->opt = *o;
    m->net = o->net;
    m->now_ns = START_NS + SEC_NS;
    rng_init(&m->rng, o->seed);
    heap_init(&m->events);
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    (void)snprintf(m->dir, sizeof m->dir, "%s/spanlite-mini-XXXXXX", base);
    char *made = mkdtemp(m->dir);
    INVARIANT(made != NULL);
    for (node_id i = 1; i <= o->nodes; i++) {
        struct node *n = &m->nodes[i];
        n->m = m;
        n->id = i;
        list_init(&n->inbox);
        n->clock_at_ns = m->now_ns;
        int64_t bound = (int64_t)(o->epsilon_ns - o->epsilon_ns / 16);
        uint64_t how =
            rng_below(&m->rng, 3); /* the ends of the interval are the interesting places */
        n->offset_ns = how == 0 ? bound : how == 1 ? -bound : 0;
        n->drift_ppb = (int64_t)rng_below(&m->rng, 2 * DRIFT_PPB) - DRIFT_PPB;
        (void)snprintf(n->dir, sizeof n->dir, "%s/%u", m->dir, i);
        int rc = mkdir(n->dir, 0700);
        INVARIANT(rc == 0);
    }
    for (node_id i = 1; i <= o->nodes; i++) {
        start(&m->nodes[i], true);
    }
    return m;
}

void mini_free(struct mini *m)
{
    for (node_id i = 1; i <= m->opt.nodes; i++) {
        struct node *n = &m->nodes[i];
        if (n->alive) {
            mini_crash(m, i);
        }
        for (size_t k = 0; k < n->log_count; k++) {
            buf_deinit(&n->log[k].payload);
        }
        span_free(n->log);
        for (node_id to = 0; to <= MINI_NODES; to++) {
            buf_deinit(&n->out[to][0]);
            buf_deinit(&n->out[to][1]);
        }
    }
    struct heap_node *h;
    while ((h = heap_min(&m->events)) != NULL) {
        struct event *e = LIST_ENTRY(h, struct event, heap);
        heap_remove(&m->events, h);
        if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
    }
    heap_deinit(&m->events);
    arena_deinit(&m->arena);
    char cmd[300];
    (void)snprintf(cmd, sizeof cmd, "rm -rf '%s'", m->dir);
    if (system(cmd) != 0) {
        fprintf(stderr, "%s was not removed\n", m->dir);
    }
    span_free(m);
}
