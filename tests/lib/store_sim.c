/* Virtual cluster of stores; see store_sim.h. */
#include "tests/lib/store_sim.h"

#include "base/alloc.h"
#include "base/invariant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum event_kind {
    EV_FRAME,
    EV_PERSISTED,
    EV_FLUSHED,
    EV_TICK,
};

struct event {
    struct heap_node heap;
    enum event_kind kind;
    node_id node;
    uint64_t epoch;
    node_id from;
    struct buf bytes;
    uint64_t turn;
    size_t log_count;
    range_id range;
    struct engine_job *job;
};

static struct event *event_new(struct sim_node *n, enum event_kind kind, uint64_t at)
{
    struct event *e = SPAN_NEW(struct event);
    e->kind = kind;
    e->node = n->id;
    e->epoch = n->epoch;
    heap_insert(&n->sim->events, &e->heap, at);
    return e;
}

struct tt_now sim_clock(struct sim_node *n)
{
    struct sim *s = n->sim;
    uint64_t reading = (uint64_t)((int64_t)s->now_ns + n->offset_ns);
    struct tt_now now = {.mono_ns = s->now_ns, .state = n->state};
    now.tt.earliest.ns = reading - s->epsilon_ns;
    if (now.tt.earliest.ns < n->earliest_ns) {
        now.tt.earliest.ns = n->earliest_ns;
    }
    n->earliest_ns = now.tt.earliest.ns;
    now.tt.latest.ns = reading + s->epsilon_ns;
    if (now.tt.latest.ns < now.tt.earliest.ns) { /* a clock that jumped back beyond its bound */
        now.tt.latest = now.tt.earliest;
    }
    return now;
}

static struct buf *io_send(void *ctx, node_id to, enum store_class cls)
{
    struct sim_node *n = ctx;
    return &n->out[to][cls];
}

static void log_add(struct sim_node *n, struct sim_record r, struct slice payload)
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
    log_add(
        ctx,
        (struct sim_record){.kind = 0, .range = range, .index = index, .term = term, .type = type},
        payload);
}

static void io_sticky(void *ctx, range_id range, uint8_t kind, struct slice payload)
{
    log_add(ctx, (struct sim_record){.kind = 1, .range = range, .type = kind}, payload);
}

static void io_tombstone(void *ctx, range_id range)
{
    log_add(ctx, (struct sim_record){.kind = 2, .range = range}, slice_of(NULL, 0));
}

static void io_release(void *ctx, range_id range, uint64_t index)
{
    (void)ctx;
    (void)range;
    (void)index;
}

static void io_flush(void *ctx, range_id range, struct engine_job *job)
{
    struct sim_node *n = ctx;
    struct event *e = event_new(n, EV_FLUSHED, n->sim->now_ns + rng_below(&n->sim->rng, 5 * MS_NS));
    e->range = range;
    e->job = job;
}

static void io_to_gateway(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                          struct slice body)
{
    struct sim_node *n = ctx;
    if (n->sim->on_gateway != NULL) {
        n->sim->on_gateway(n->sim->ctx, n, now, from, kind, body);
    }
}

static bool io_peer_clock(void *ctx, const struct tt_now *now, node_id peer,
                          const struct tt_interval *sent, const struct tt_interval *asked)
{
    struct sim_node *n = ctx;
    const struct sim *s = n->sim;
    return s->peer_clock == NULL || s->peer_clock(s->ctx, n, now, peer, sent, asked);
}

static void make_store(struct sim_node *n, bool fresh)
{
    struct sim *s = n->sim;
    struct store_config cfg = {
        .self = n->id,
        .incarnation = rng_u64(&s->rng) | 1,
        .node_count = s->founders != 0 ? s->founders : s->node_count,
        .lease_ns = LEASE_NS_DEFAULT,
        .version_window_ns = VERSION_WINDOW_NS,
        .flush_bytes = s->flush_bytes,
        .split_now_bytes = s->split_now_bytes,
        .dir = n->dir,
        .seed = rng_u64(&s->rng),
        .fresh = fresh,
        .replicas = n->sim->founders == 0 ? n->sim->replicas : 0,
        .io = {.ctx = n,
               .send = io_send,
               .entry = io_entry,
               .sticky = io_sticky,
               .release = io_release,
               .tombstone = io_tombstone,
               .flush = io_flush,
               .peer_clock = io_peer_clock,
               .to_gateway = io_to_gateway},
    };
    for (size_t i = 0; i < cfg.node_count; i++) {
        cfg.nodes[i] = (node_id)(i + 1);
    }
    n->store = store_new(&cfg);
}

static bool joins(const struct sim_node *n)
{
    return n->sim->founders != 0 && n->id > n->sim->founders;
}

static void give_nodes(struct sim_node *n)
{
    struct sim *s = n->sim;
    if (s->founders == 0) {
        return;
    }
    struct store_nodes t = {.version = s->nodes_version, .replicas = s->replicas};
    for (node_id i = 1; i <= s->node_count; i++) {
        t.nodes[t.count++] = (struct store_node){i, s->states[i]};
    }
    struct tt_now now = sim_clock(n);
    store_set_nodes(n->store, &now, &t);
}

void sim_nodes_changed(struct sim *s)
{
    s->nodes_version++;
    for (node_id i = 1; i <= s->node_count; i++) {
        if (s->nodes[i].alive) {
            give_nodes(&s->nodes[i]);
        }
    }
}

static void arm_tick(struct sim_node *n)
{
    uint64_t at = store_deadline_ns(n->store);
    if (n->sim->gateway_deadline != NULL) {
        uint64_t g = n->sim->gateway_deadline(n->sim->ctx, n);
        at = g < at ? g : at;
    }
    if (at < n->sim->now_ns) {
        at = n->sim->now_ns;
    }
    if (at != n->tick_at && at != UINT64_MAX) {
        n->tick_at = at;
        event_new(n, EV_TICK, at + rng_below(&n->sim->rng, 100000));
    }
}

/* What the filter lets through of a frame. */
static void filter_frame(struct sim_node *n, node_id to, struct buf *b)
{
    struct sim *s = n->sim;
    struct buf kept = {0};
    size_t at = 0;
    size_t from = 0;
    uint8_t kind;
    struct slice body;
    while (msg_next(buf_slice(b), &at, &kind, &body) == SPAN_OK) {
        if (s->filter(s->ctx, n->id, to, kind, body)) {
            buf_append(&kept, b->data + from, at - from);
        }
        from = at;
    }
    buf_set(b, buf_slice(&kept));
    buf_deinit(&kept);
}

static void deliver(struct sim_node *n, struct sim_node *dst, const struct buf *b, uint64_t at)
{
    struct event *e = event_new(dst, EV_FRAME, at);
    e->from = n->id;
    buf_set(&e->bytes, buf_slice(b));
}

static void send_frame(struct sim_node *n, struct sim_node *dst, const struct buf *b)
{
    struct sim *s = n->sim;
    if (s->cut[n->id][dst->id] || !dst->alive || rng_double(&s->rng) < s->loss) {
        return;
    }
    deliver(n, dst, b, s->now_ns + 20000 + rng_below(&s->rng, s->delay_max_ns));
    if (s->dup > 0 && rng_double(&s->rng) < s->dup) {
        deliver(n, dst, b, s->now_ns + 20000 + rng_below(&s->rng, s->dup_delay_ns + 1));
    }
}

void sim_turn_end(struct sim_node *n, const struct tt_now *now)
{
    struct sim *s = n->sim;
    s->turns++;
    uint64_t turn = store_turn_end(n->store, now);
    if (turn != 0) {
        struct event *e =
            event_new(n, EV_PERSISTED, s->now_ns + 50000 + rng_below(&s->rng, s->sync_max_ns));
        e->turn = turn;
        e->log_count = n->log_count;
    }
    for (node_id to = 1; to <= s->node_count; to++) {
        for (int cls = 0; cls < 2; cls++) {
            struct buf *b = &n->out[to][cls];
            if (b->size > 0 && s->filter != NULL) {
                filter_frame(n, to, b);
            }
            if (b->size > 0) {
                send_frame(n, &s->nodes[to], b);
                buf_clear(b);
            }
        }
    }
    arm_tick(n);
}

static void run_event(struct sim_node *n, struct event *e)
{
    struct tt_now now = sim_clock(n);
    size_t at = 0;
    uint8_t kind;
    struct slice body;
    struct span_error err = {0};
    switch (e->kind) {
    case EV_FRAME:
        while (msg_next(buf_slice(&e->bytes), &at, &kind, &body) == SPAN_OK) {
            store_message(n->store, &now, e->from, kind, body);
        }
        break;
    case EV_PERSISTED:
        if (e->log_count > n->durable) {
            n->durable = e->log_count;
        }
        store_persisted(n->store, &now, e->turn);
        break;
    case EV_FLUSHED:
        (void)!engine_flush_run(e->job, &err);
        store_flush_done(n->store, &now, e->range, e->job);
        break;
    case EV_TICK:
        n->tick_at = 0;
        store_tick(n->store, &now);
        break;
    }
    if (n->sim->on_tick != NULL) {
        n->sim->on_tick(n->sim->ctx, n, &now);
    }
    sim_turn_end(n, &now);
}

bool sim_step(struct sim *s)
{
    struct heap_node *h = heap_min(&s->events);
    if (h == NULL) {
        return false;
    }
    struct event *e = (struct event *)(void *)((char *)h - offsetof(struct event, heap));
    heap_remove(&s->events, h);
    if (h->key > s->now_ns) {
        s->now_ns = h->key;
    }
    struct sim_node *n = &s->nodes[e->node];
    if (n->alive && n->epoch == e->epoch) {
        run_event(n, e);
    }
    buf_deinit(&e->bytes);
    span_free(e);
    return true;
}

void sim_run_for(struct sim *s, uint64_t ns)
{
    uint64_t until = s->now_ns + ns;
    struct heap_node *h;
    while ((h = heap_min(&s->events)) != NULL && h->key <= until) {
        sim_step(s);
    }
    s->now_ns = until;
}

bool sim_run_until(struct sim *s, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns)
{
    uint64_t until = s->now_ns + limit_ns;
    while (!cond(ctx)) {
        if (s->now_ns > until || !sim_step(s)) {
            return false;
        }
    }
    return true;
}

void sim_local(struct sim *s, node_id id, struct slice message)
{
    struct sim_node *n = &s->nodes[id];
    struct tt_now now = sim_clock(n);
    buf_append_slice(store_local(n->store), message);
    sim_turn_end(n, &now);
}

void sim_init(struct sim *s, uint64_t seed, size_t nodes)
{
    *s = (struct sim){.node_count = nodes, .now_ns = 1000 * SEC_NS};
    rng_init(&s->rng, seed);
    s->epsilon_ns = 1 * MS_NS;
    s->flush_bytes = 64 * KIB;
    s->delay_max_ns = 300000;
    s->sync_max_ns = 200000;
    heap_init(&s->events);
    /* Nothing here survives the process: in memory, where there is such a place, syncs cost
     * nothing. */
    bool shm = access("/dev/shm", W_OK) == 0;
    (void)snprintf(s->dir, sizeof s->dir, "%s/spanlite-sim-XXXXXX", shm ? "/dev/shm" : "/tmp");
    char *made = mkdtemp(s->dir);
    INVARIANT(made != NULL);
    for (node_id i = 1; i <= nodes; i++) {
        struct sim_node *n = &s->nodes[i];
        n->sim = s;
        n->id = i;
        n->offset_ns = (int64_t)rng_below(&s->rng, 2 * s->epsilon_ns) - (int64_t)s->epsilon_ns;
        (void)snprintf(n->dir, sizeof n->dir, "%s/%u", s->dir, i);
        int rc = mkdir(n->dir, 0700);
        INVARIANT(rc == 0);
    }
}

void sim_boot(struct sim *s)
{
    for (node_id i = 1; i <= s->node_count; i++) {
        struct sim_node *n = &s->nodes[i];
        n->alive = true;
        make_store(n, true);
        struct tt_now now = sim_clock(n);
        struct span_error err = {0};
        span_status st = SPAN_OK;
        if (joins(n)) {
            store_join(n->store);
        } else {
            st = store_bootstrap(n->store, &now, &err);
        }
        if (st != SPAN_OK) {
            fprintf(stderr, "%s\n", err.text);
        }
        INVARIANT(st == SPAN_OK);
        s->nodes_version = s->founders != 0 ? 1 : 0;
        give_nodes(n);
        sim_turn_end(n, &now);
    }
}

/* Jobs of the flusher die with the process: they are given back, never run. */
static void drop_jobs(struct sim *s, struct sim_node *n)
{
    for (size_t i = 0; i < s->events.count; i++) {
        struct event *e =
            (struct event *)(void *)((char *)s->events.nodes[i] - offsetof(struct event, heap));
        if (e->kind == EV_FLUSHED && e->node == n->id && e->epoch == n->epoch && e->job != NULL) {
            store_flush_abandon(n->store, e->range, e->job);
            e->job = NULL;
        }
    }
}

void sim_crash(struct sim *s, node_id id)
{
    struct sim_node *n = &s->nodes[id];
    REQUIRE(n->alive);
    drop_jobs(s, n);
    store_free(n->store);
    n->store = NULL;
    n->alive = false;
    n->epoch++;
    n->tick_at = 0;
    for (size_t i = n->durable; i < n->log_count; i++) {
        buf_deinit(&n->log[i].payload);
    }
    n->log_count = n->durable;
    for (node_id to = 0; to <= SIM_NODES; to++) {
        buf_clear(&n->out[to][0]);
        buf_clear(&n->out[to][1]);
    }
}

void sim_restart(struct sim *s, node_id id)
{
    struct sim_node *n = &s->nodes[id];
    REQUIRE(!n->alive);
    n->alive = true;
    make_store(n, false);
    struct tt_now now = sim_clock(n);
    struct span_error err = {0};
    span_status st = SPAN_OK;
    for (size_t i = 0; i < n->log_count && st == SPAN_OK; i++) {
        struct sim_record *r = &n->log[i];
        if (r->kind == 2) {
            store_restore_tombstone(n->store, r->range);
            continue;
        }
        st = r->kind == 0
                 ? store_restore_entry(n->store, r->range, r->index, r->term, r->type,
                                       buf_slice(&r->payload), &err)
                 : store_restore_sticky(n->store, r->range, r->type, buf_slice(&r->payload), &err);
    }
    if (joins(n)) {
        store_join(n->store);
    }
    if (st == SPAN_OK) {
        st = joins(n) || store_restore_found(n->store) ? store_restore_end(n->store, &now, &err)
                                                       : store_bootstrap(n->store, &now, &err);
    }
    if (st != SPAN_OK) {
        fprintf(stderr, "node %u can not restart: %s\n", id, err.text);
    }
    INVARIANT(st == SPAN_OK);
    give_nodes(n);
    sim_turn_end(n, &now);
}

void sim_wipe(struct sim *s, node_id id)
{
    struct sim_node *n = &s->nodes[id];
    REQUIRE(!n->alive);
    for (size_t k = 0; k < n->log_count; k++) {
        buf_deinit(&n->log[k].payload);
    }
    n->log_count = 0;
    n->durable = 0;
    char cmd[300];
    (void)snprintf(cmd, sizeof cmd, "rm -rf '%s'/*", n->dir);
    INVARIANT(system(cmd) == 0);
}

void sim_deinit(struct sim *s)
{
    for (node_id i = 1; i <= s->node_count; i++) {
        struct sim_node *n = &s->nodes[i];
        if (n->alive) {
            sim_crash(s, i);
        }
        for (size_t k = 0; k < n->log_count; k++) {
            buf_deinit(&n->log[k].payload);
        }
        span_free(n->log);
        for (node_id to = 0; to <= SIM_NODES; to++) {
            buf_deinit(&n->out[to][0]);
            buf_deinit(&n->out[to][1]);
        }
    }
    struct heap_node *h;
    while ((h = heap_min(&s->events)) != NULL) {
        struct event *e = (struct event *)(void *)((char *)h - offsetof(struct event, heap));
        heap_remove(&s->events, h);
        buf_deinit(&e->bytes);
        span_free(e);
    }
    heap_deinit(&s->events);
    char cmd[300];
    (void)snprintf(cmd, sizeof cmd, "rm -rf '%s'", s->dir);
    if (system(cmd) != 0) {
        fprintf(stderr, "%s was not removed\n", s->dir);
    }
}
