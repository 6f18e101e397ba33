/* Nodes, their turns and their lives on virtual time; see sim_cluster.h. */
#include "tests/sim/sim_cluster.h"

#include "base/alloc.h"
#include "base/codec.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/planted.h"
#include "coordinator/answer_gate.h"
#include "shard/wal/wal.h"
#include "tests/sim/sim_vfs.h"

#include <stdarg.h>
#include <stdio.h>

#define START_NS  (1700000000ULL * SEC_NS)
#define NOTICE_NS (500 * MS_NS) /* some heartbeats and their answers */
/* How long what a clock beyond its bound has done may show: promises that it cut short or leases
 * that it took for longer than it had them are over then. */
#define OUT_TAIL_NS    (LEASE_NS_MAX + 100 * MS_NS)
#define SLOW_CHECK_NS  (100 * MS_NS)
#define FIT_AGAIN_NS   (10 * SEC_NS)
#define IDLE_FLUSH_NS  (500 * MS_NS)
#define STORE_ID(node) (1000ULL + (node))

enum event_kind {
    EV_FRAME,
    EV_PERSISTED,
    EV_FLUSHED,
    EV_OP,
    EV_PEER_LOST,
    EV_PEER_UP,
    EV_WAL,  /* a sync of the log ends */
    EV_RUN,  /* the node's next turn */
    EV_CALL, /* the run's */
};

static const char *const kind_names[] = {"frame",   "persisted", "flushed", "op",  "peer-lost",
                                         "peer-up", "wal",       "turn",    "call"};

struct event {
    struct heap_node heap;
    struct list inbox;
    enum event_kind kind;
    node_id node;
    uint64_t epoch;
    node_id from;
    struct buf bytes;
    uint64_t turn;
    range_id range;
    struct engine_job *job;
    struct gateway_op *op;
    void (*fn)(void *ctx);
    void *ctx;
};

struct node {
    struct cluster *c;
    node_id id;
    bool alive;
    bool lost;
    bool damaged; /* a bit of its log was flipped: it may refuse to start */
    bool rotten;  /* bits of its range files were */
    bool fatal;   /* its log died: it stops after what it is doing */
    bool dying;
    /* The process is dead since some point inside the event that is being handled: what it still
     * computes is a ghost's, nothing of it leaves (cluster_arm). */
    bool ghost;
    enum sim_crash death_how;
    uint64_t allocs_left; /* until one fails; 0: none will */
    bool ever;            /* was started before */
    uint64_t epoch;       /* of its life: events for an earlier one are dropped */
    struct sim_clock clock;
    struct tt_interval last_tt; /* of the turn before, for a planted bug */
    enum clock_state clock_state;
    uint64_t out_since_ns; /* its clock is far out, all peers tell it so, and it does not notice */
    struct sim_disk disk;
    struct store *store;
    struct gateway *gateway;
    struct wal *wal;
    struct wal_batch batch;
    uint64_t learned;
    uint64_t wal_at_ns; /* of the EV_WAL that counts; 0: none */
    bool syncing;       /* it is the end of a sync */
    uint64_t slow_check_ns;
    uint64_t slow_since_ns;
    uint64_t idle_flush_ns;
    bool unfit;
    struct buf out[SIM_NODES_MAX + 1][2];
    struct list inbox;
    uint64_t busy_until_ns;
    uint64_t last_op_ns; /* arrival of the last operation */
    uint64_t run_at_ns;  /* of the EV_RUN that counts; 0: none */
    char dir[32];
};

struct cluster {
    struct cluster_options opt;
    struct sim_net net;
    struct cluster_watch watch;
    struct rng rng;
    uint64_t now_ns;
    struct heap events;
    struct node nodes[SIM_NODES_MAX + 1];
    struct arena arena;
    uint64_t trace;
    uint64_t event_count;
    uint64_t tally[TALLY_COUNT];
    uint64_t out_until_ns; /* out of contract; 0: never was */
    bool failed;
    char why[1200];
};

void cluster_options_init(struct cluster_options *o, uint64_t seed)
{
    *o = (struct cluster_options){
        .seed = seed,
        .nodes = 3,
        .epsilon_ns = EPSILON_NS_DEFAULT,
        .sync_max_ns = 300000,
        .flush_bytes = 64 * KIB,
        .split_now_bytes = seed % 4 == 0 ? 1 : UINT64_MAX,
        .segment_bytes = 256 * KIB,
        .turn_ns = 50000,
        .net = {.delay_min_ns = 20000, .delay_max_ns = 300000, .dup_late_ns = 100 * MS_NS},
    };
}

void cluster_watch(struct cluster *c, const struct cluster_watch *w)
{
    c->watch = *w;
}

uint64_t cluster_now(const struct cluster *c)
{
    return c->now_ns;
}

struct rng *cluster_rng(struct cluster *c)
{
    return &c->rng;
}

size_t cluster_node_count(const struct cluster *c)
{
    return c->opt.nodes;
}

uint64_t cluster_trace(const struct cluster *c)
{
    return c->trace;
}

uint64_t cluster_events(const struct cluster *c)
{
    return c->event_count;
}

void cluster_count(struct cluster *c, enum sim_tally what)
{
    c->tally[what]++;
}

static void tally_log(struct wal *w, uint64_t *tally)
{
    struct wal_stats s;
    wal_stats_get(w, &s);
    tally[TALLY_LOG_SEGMENTS] += s.rotations;
}

void cluster_tally(struct cluster *c, uint64_t *out)
{
    memcpy(out, c->tally, sizeof c->tally);
    out[TALLY_FRAMES_CUT] += c->net.cut_frames;
    out[TALLY_FRAMES_LOST] += c->net.lost_frames;
    out[TALLY_FRAMES_SLOW] += c->net.slow_frames;
    out[TALLY_FRAMES_DOUBLED] += c->net.doubled_frames;
    out[TALLY_FRAMES_REORDERED] += c->net.overtaking_frames;
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        const struct sim_disk *d = &c->nodes[i].disk;
        if (c->nodes[i].wal != NULL) {
            tally_log(c->nodes[i].wal, out);
        }
        struct wal_memfs_events log;
        struct wal_memfs_events files;
        wal_memfs_events_get(d->log, &log);
        wal_memfs_events_get(d->files, &files);
        out[TALLY_LOST_SECTORS] += log.sectors_lost + files.sectors_lost;
        out[TALLY_LOST_DIR_OPS] += log.dir_ops_lost + files.dir_ops_lost;
        out[TALLY_TORN_LOGS] += log.torn;
        out[TALLY_TORN_FILES] += files.torn;
        out[TALLY_LOG_SYNCS_FAILED] += log.syncs_failed;
        out[TALLY_FILE_SYNCS_FAILED] += files.syncs_failed;
        out[TALLY_NO_SPACE] += log.no_space + files.no_space;
        out[TALLY_SYNCS_SLOW] += d->slow_syncs;
    }
}

bool cluster_alive(const struct cluster *c, node_id node)
{
    return c->nodes[node].alive;
}

bool cluster_lost(const struct cluster *c, node_id node)
{
    return c->nodes[node].lost;
}

uint64_t cluster_epoch(const struct cluster *c, node_id node)
{
    return c->nodes[node].epoch;
}

struct store *cluster_store(struct cluster *c, node_id node)
{
    return c->nodes[node].store;
}

struct gateway *cluster_gateway(struct cluster *c, node_id node)
{
    return c->nodes[node].gateway;
}

struct sim_net *cluster_net(struct cluster *c)
{
    return &c->net;
}

struct sim_disk *cluster_disk(struct cluster *c, node_id node)
{
    return &c->nodes[node].disk;
}

uint64_t cluster_outbox_bytes(struct cluster *c, node_id node)
{
    uint64_t sum = 0;
    for (node_id to = 1; to <= c->opt.nodes; to++) {
        sum += c->nodes[node].out[to][0].cap + c->nodes[node].out[to][1].cap;
    }
    return sum;
}

uint64_t cluster_log_segments(struct cluster *c, node_id node)
{
    struct wal_stats s;
    wal_stats_get(c->nodes[node].wal, &s);
    return s.segments_live;
}

uint64_t cluster_log_bytes(struct cluster *c, node_id node)
{
    uint64_t sum = 0;
    struct wal_memfs *m = c->nodes[node].disk.log;
    for (size_t i = 0; i < wal_memfs_count(m); i++) {
        sum += wal_memfs_size(m, wal_memfs_name(m, i));
    }
    return sum;
}

/* ---- telling ---- */

static double seconds(const struct cluster *c)
{
    return (double)(c->now_ns - START_NS) / 1e9;
}

void cluster_say(struct cluster *c, const char *fmt, ...)
{
    if (!c->opt.trace) {
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    printf("%.6f ", seconds(c));
    (void)vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
}

void cluster_fail(struct cluster *c, const char *fmt, ...)
{
    if (c->failed) {
        return;
    }
    c->failed = true;
    int n = snprintf(c->why, sizeof c->why, "at %.6f s: ", seconds(c));
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(c->why + n, sizeof c->why - (size_t)n, fmt, ap);
    va_end(ap);
    cluster_say(c, "FAILED %s", c->why);
}

const char *cluster_failure(const struct cluster *c)
{
    return c->failed ? c->why : NULL;
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

static uint64_t wal_clock(void *ctx)
{
    const struct node *n = ctx;
    return mono_of(n, n->c->now_ns);
}

bool cluster_in_contract(const struct cluster *c, uint64_t since_ns)
{
    return c->out_until_ns < since_ns;
}

struct sim_clock *cluster_sim_clock(struct cluster *c, node_id node)
{
    return &c->nodes[node].clock;
}

static bool other_faulted(struct cluster *c, node_id node)
{
    bool found = false;
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        found = found || (i != node && c->nodes[i].clock.faulted);
    }
    return found;
}

/* Every good clock contradicts this one, and every peer could say so: up, running, not cut off. */
static bool must_be_noticed(struct node *n, const struct tt_now *now)
{
    struct cluster *c = n->c;
    uint64_t apart = now->tt.latest.ns < c->now_ns     ? c->now_ns - now->tt.latest.ns
                     : now->tt.earliest.ns > c->now_ns ? now->tt.earliest.ns - c->now_ns
                                                       : 0;
    bool all = apart > 2 * c->opt.epsilon_ns + 10 * MS_NS && c->net.loss <= 0 && c->net.slow <= 0;
    for (node_id i = 1; i <= c->opt.nodes && all; i++) {
        const struct node *p = &c->nodes[i];
        bool cut = false;
        for (node_id j = 1; j <= c->opt.nodes; j++) {
            cut = cut || c->net.cut[i][j];
        }
        all = p->alive && !cut && p->busy_until_ns < c->now_ns + 10 * MS_NS &&
              (p == n || !p->clock.faulted);
    }
    return all;
}

/* Rules B8, B9: what the clock's state says and what it should say. */
static void judge_clock(struct node *n, const struct tt_now *now)
{
    struct cluster *c = n->c;
    bool in = now->tt.earliest.ns <= c->now_ns && now->tt.latest.ns >= c->now_ns;
    if (!in && now->state != CLOCK_FENCED) {
        c->out_until_ns = c->now_ns + OUT_TAIL_NS;
        cluster_count(c, TALLY_CLOCK_OUT);
    }
    bool unnoticed = now->state != CLOCK_FENCED && !PLANTED(STALE_TIME) && must_be_noticed(n, now);
    n->out_since_ns = !unnoticed ? 0 : n->out_since_ns == 0 ? c->now_ns : n->out_since_ns;
    if (unnoticed && c->now_ns - n->out_since_ns > NOTICE_NS) {
        cluster_fail(c, "node %u: its clock is out, all peers tell it so, and it is not fenced",
                     n->id);
    }
    if (now->state != n->clock_state) {
        cluster_say(c, "node %u: clock is %s", n->id, clock_state_name(now->state));
        cluster_count(c, now->state == CLOCK_FENCED ? TALLY_CLOCK_FENCED : TALLY_CLOCK_BACK);
        n->clock_state = now->state;
    }
    /* Others that are out are a minority, but the evidence against one of them that has come back
     * stays until the next word from it: only one is certain to fence nobody else. */
    if (now->state != CLOCK_SYNCED && !n->clock.faulted && !other_faulted(c, n->id)) {
        cluster_fail(c, "node %u: its clock is good, and %s", n->id, clock_state_name(now->state));
    }
}

struct tt_now cluster_clock(struct cluster *c, node_id node)
{
    struct node *n = &c->nodes[node];
    struct tt_now now;
    sim_clock_read(&n->clock, &c->rng, c->now_ns, mono_of(n, c->now_ns), &now);
    if (n->alive) {
        judge_clock(n, &now);
    }
    return now;
}

uint64_t cluster_after(struct cluster *c, node_id node, struct tt_ts t)
{
    struct tt_now now = cluster_clock(c, node);
    uint64_t wait_ns;
    return answer_gate_look(&now, t, &wait_ns) == GATE_OPEN ? c->now_ns : c->now_ns + wait_ns + 1;
}

/* ---- events ---- */

static struct event *event_new(struct cluster *c, enum event_kind kind, node_id node, uint64_t at)
{
    struct event *e = SPAN_NEW(struct event);
    e->kind = kind;
    e->node = node;
    e->epoch = c->nodes[node].epoch;
    list_init(&e->inbox);
    heap_insert(&c->events, &e->heap, at < c->now_ns ? c->now_ns : at);
    return e;
}

static void event_free(struct event *e)
{
    buf_deinit(&e->bytes);
    span_free(e);
}

void cluster_at(struct cluster *c, uint64_t at_ns, void (*fn)(void *ctx), void *ctx)
{
    struct event *e = event_new(c, EV_CALL, 0, at_ns);
    e->fn = fn;
    e->ctx = ctx;
}

/* An operation that a gateway has: what it answers once it is a ghost nobody hears. */
struct given {
    struct node *n;
    void (*done)(struct gateway_op *op);
    void *owner;
};

static void given_done(struct gateway_op *op)
{
    struct given *g = op->owner;
    op->done = g->done;
    op->owner = g->owner;
    if (g->n->ghost && !g->n->dying) {
        span_status st = op->kind == GATEWAY_COMMIT ? SPAN_UNKNOWN_OUTCOME : SPAN_CLOSED;
        op->status = span_fail(&op->err, st, "%s", span_status_text(st));
        op->read.page_count = 0;
    }
    span_free(g);
    op->done(op);
}

static void end_op(struct gateway_op *op, span_status st)
{
    op->status = span_fail(&op->err, st, "%s", span_status_text(st));
    op->read.page_count = 0;
    op->done(op);
}

static void schedule_run(struct node *n, uint64_t at)
{
    at = at < n->busy_until_ns ? n->busy_until_ns : at;
    at = at < n->c->now_ns ? n->c->now_ns : at;
    if (n->run_at_ns == 0 || at < n->run_at_ns) {
        n->run_at_ns = at;
        (void)event_new(n->c, EV_RUN, n->id, at);
    }
}

/* ---- the log ---- */

/* A sync begins when there is something to write and none is under way; what was submitted
 * meanwhile goes with the next. */
static void schedule_wal(struct node *n)
{
    if (n->wal_at_ns != 0 && n->syncing) {
        return;
    }
    uint64_t due = wal_next_run_ns(n->wal);
    uint64_t at;
    if (due == UINT64_MAX) {
        return;
    }
    if (due <= mono_of(n, n->c->now_ns)) {
        n->syncing = true;
        at = n->c->now_ns + sim_disk_sync_ns(&n->disk, &n->c->rng, n->c->now_ns);
    } else {
        n->syncing = false;
        at = true_of(n, due);
        if (n->wal_at_ns != 0 && n->wal_at_ns <= at) {
            return;
        }
    }
    n->wal_at_ns = at;
    (void)event_new(n->c, EV_WAL, n->id, at);
}

static void on_durable(void *ctx, uint64_t turn, span_status st)
{
    struct node *n = ctx;
    if (n->dying) {
        return;
    }
    if (st != SPAN_OK) {
        cluster_say(n->c, "node %u: a log batch failed: %s", n->id, span_status_name(st));
        n->fatal = true;
        return;
    }
    struct event *e = event_new(n->c, EV_PERSISTED, n->id, n->c->now_ns);
    e->turn = turn;
}

static void on_wal_state(void *ctx, enum wal_state state, const char *text)
{
    struct node *n = ctx;
    if (!n->dying) {
        cluster_say(n->c, "node %u: log state %d: %s", n->id, (int)state, text);
        n->fatal = n->fatal || state == WAL_DEAD;
    }
}

/* ---- the store's world ---- */

static struct buf *io_send(void *ctx, node_id to, enum store_class cls)
{
    struct node *n = ctx;
    REQUIRE(to >= 1 && to <= n->c->opt.nodes && to != n->id);
    return &n->out[to][cls];
}

static struct buf *gateway_out(void *ctx, node_id to, unsigned cls)
{
    struct node *n = ctx;
    return to == n->id ? store_local(n->store) : io_send(n, to, (enum store_class)cls);
}

static void watch_entry(struct node *n, range_id range, uint64_t index, uint64_t term, uint8_t type,
                        struct slice payload)
{
    if (n->c->watch.entry != NULL && !n->ghost) {
        n->c->watch.entry(n->c->watch.ctx, n->id, range, index, term, type, payload);
    }
}

static void io_entry(void *ctx, range_id range, uint64_t index, uint64_t term, uint8_t type,
                     struct slice payload)
{
    struct node *n = ctx;
    wal_batch_add_entry(&n->batch, range, index, term, type, payload);
    watch_entry(n, range, index, term, type, payload);
}

static void io_sticky(void *ctx, range_id range, uint8_t kind, struct slice payload)
{
    struct node *n = ctx;
    struct cursor c = cursor_of(payload);
    (void)dec_u8(&c);
    if (kind == STICKY_FILE && dec_u64(&c) > 1 && !n->ghost) {
        cluster_count(n->c, TALLY_SNAPSHOTS);
    }
    wal_batch_add_sticky(&n->batch, range, kind, payload);
}

static void io_tombstone(void *ctx, range_id range)
{
    struct node *n = ctx;
    wal_batch_add_tombstone(&n->batch, range);
}

static void io_release(void *ctx, range_id range, uint64_t index)
{
    struct node *n = ctx;
    wal_release(n->wal, range, index);
}

static void io_flush(void *ctx, range_id range, struct engine_job *job)
{
    struct node *n = ctx;
    struct event *e =
        event_new(n->c, EV_FLUSHED, n->id, n->c->now_ns + rng_below(&n->c->rng, 5 * MS_NS));
    e->range = range;
    e->job = job;
}

static bool io_peer_clock(void *ctx, const struct tt_now *now, node_id peer,
                          const struct tt_interval *sent, const struct tt_interval *asked)
{
    struct node *n = ctx;
    if (PLANTED(STALE_TIME)) {
        return true; /* or the clocks would notice it */
    }
    return sim_clock_peer(&n->clock, now, peer, sent, asked);
}

static void io_to_gateway(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                          struct slice body)
{
    struct node *n = ctx;
    gateway_message(n->gateway, now, from, kind, body);
}

/* One row: the node's number; of the ranges, range 1 and no other. */
static span_status host_show(void *ctx, const struct tt_now *now, enum kv_show what,
                             struct kv_table *out, struct span_error *err)
{
    const char *const names[] = {what == KV_SHOW_RANGES ? "range_id" : "node", "state"};
    const struct node *n = ctx;
    char id[16];
    const char *row[] = {id, "here"};
    (void)now;
    (void)err;
    (void)snprintf(id, sizeof(id), "%u", what == KV_SHOW_RANGES ? 1 : n->id);
    kv_table_init(out, 2, names, NULL);
    kv_table_add_row(out, row);
    return SPAN_OK;
}

static void make_cores(struct node *n, bool fresh)
{
    struct cluster *c = n->c;
    struct store_config sc = {
        .self = n->id,
        .incarnation = rng_u64(&c->rng) | 1,
        .node_count = c->opt.nodes,
        .lease_ns = LEASE_NS_DEFAULT,
        .version_window_ns = VERSION_WINDOW_NS,
        .flush_bytes = c->opt.flush_bytes,
        .split_now_bytes = c->opt.split_now_bytes,
        .log_tail = c->opt.log_tail,
        .append_bytes = c->opt.segment_bytes / 16,
        .dir = n->dir,
        .vfs = SIM_VFS_NAME,
        .fresh = fresh,
        .io = {.ctx = n,
               .send = io_send,
               .entry = io_entry,
               .sticky = io_sticky,
               .tombstone = io_tombstone,
               .release = io_release,
               .flush = io_flush,
               .peer_clock = io_peer_clock,
               .to_gateway = io_to_gateway},
    };
    struct gateway_config gc = {
        .self = n->id,
        .incarnation = sc.incarnation,
        .node_count = c->opt.nodes,
        .out_ctx = n,
        .out = gateway_out,
        .host = {.ctx = n, .show = host_show},
    };
    sc.seed = rng_u64(&c->rng);
    gc.seed = rng_u64(&c->rng);
    for (size_t i = 0; i < c->opt.nodes; i++) {
        sc.nodes[i] = (node_id)(i + 1);
        gc.nodes[i] = (node_id)(i + 1);
    }
    n->store = store_new(&sc);
    n->gateway = gateway_new(&gc);
    n->learned = UINT64_MAX;
}

/* ---- turns ---- */

static void send_all(struct node *n)
{
    struct cluster *c = n->c;
    for (node_id to = 1; to <= c->opt.nodes; to++) {
        for (unsigned cls = 0; cls < 2; cls++) {
            struct buf *b = &n->out[to][cls];
            if (b->size == 0) {
                continue;
            }
            uint64_t at[2];
            size_t copies = c->nodes[to].alive
                                ? sim_net_send(&c->net, &c->rng, c->now_ns, n->id, to, cls, at)
                                : 0;
            for (size_t i = 0; i < copies; i++) {
                struct event *e = event_new(c, EV_FRAME, to, at[i]);
                e->from = n->id;
                buf_set(&e->bytes, buf_slice(b));
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
        arena_clear(&n->c->arena);
        size_t count = store_descriptors(n->store, &n->c->arena, &all);
        gateway_learn(n->gateway, now, all, count);
    }
}

/* Rule H10, as shard/node.c does it. */
static void check_disk(struct node *n, const struct tt_now *now)
{
    if (now->mono_ns < n->slow_check_ns) {
        return;
    }
    n->slow_check_ns = now->mono_ns + SLOW_CHECK_NS;
    bool slow =
        wal_oldest_unsynced_ns(n->wal) > LEASE_NS_DEFAULT || wal_state_get(n->wal) != WAL_RUNNING;
    if (slow) {
        n->slow_since_ns = now->mono_ns;
    }
    bool unfit = slow || (n->unfit && n->slow_since_ns + FIT_AGAIN_NS > now->mono_ns);
    if (unfit != n->unfit) {
        cluster_say(n->c, "node %u: disk is %s", n->id, unfit ? "too slow to lead" : "fit again");
        n->unfit = unfit;
        store_set_unfit(n->store, now, unfit);
    }
}

/* A quiet range must not keep old segments alive (rule H3). */
static void flush_idle(struct node *n, const struct tt_now *now)
{
    if (now->mono_ns < n->idle_flush_ns) {
        return;
    }
    n->idle_flush_ns = now->mono_ns + IDLE_FLUSH_NS;
    struct wal_pin pins[8];
    size_t count = wal_oldest_pinned(n->wal, pins, 8);
    for (size_t i = 0; i < count; i++) {
        store_want_flush(n->store, now, pins[i].range);
    }
}

static void end_submission(struct node *n, const struct tt_now *now)
{
    if (n->ghost) {
        return;
    }
    uint64_t turn = store_turn_end(n->store, now);
    if (turn != 0 && !n->ghost) {
        span_status st = wal_submit(n->wal, &n->batch, on_durable, n, turn);
        if (st != SPAN_OK) {
            cluster_say(n->c, "node %u: the log refuses a batch: %s", n->id, span_status_name(st));
            wal_batch_clear(&n->batch);
            n->fatal = true;
        }
        schedule_wal(n);
    }
    if (!n->ghost) {
        send_all(n);
    }
}

static void turn_end(struct node *n, const struct tt_now *now)
{
    struct cluster *c = n->c;
    end_submission(n, now);
    n->busy_until_ns = c->now_ns + rng_below(&c->rng, c->opt.turn_ns + 1);
    uint64_t deadline = store_deadline_ns(n->store);
    uint64_t g = gateway_deadline_ns(n->gateway);
    deadline = g < deadline ? g : deadline;
    if (deadline != UINT64_MAX) {
        schedule_run(n, deadline <= mono_of(n, c->now_ns) ? c->now_ns : true_of(n, deadline));
    }
    if (c->watch.turn != NULL && !n->ghost) {
        c->watch.turn(c->watch.ctx, n->id, now);
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
            if (wal_batch_bytes(&n->batch) > wal_batch_bytes_max(n->wal) / 2) {
                end_submission(n, now);
            }
        }
        break;
    case EV_PERSISTED:
        store_persisted(n->store, now, e->turn);
        break;
    case EV_FLUSHED:
        if (engine_flush_run(e->job, &err) != SPAN_OK) {
            cluster_say(n->c, "node %u range %llu: a flush failed: %s", n->id,
                        (unsigned long long)e->range, err.text);
        }
        store_flush_done(n->store, now, e->range, e->job);
        e->job = NULL;
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
    case EV_WAL:
    case EV_RUN:
    case EV_CALL:
        break;
    }
}

/* ---- dying in the middle ---- */

static void on_alloc_failed(void *ctx)
{
    struct node *n = ctx;
    n->ghost = true;
    cluster_count(n->c, TALLY_DEATHS_ALLOC);
    wal_memfs_stop_now(n->disk.log);
    wal_memfs_stop_now(n->disk.files);
}

static void on_log_stopped(void *ctx)
{
    struct node *n = ctx;
    if (!n->dying && !n->ghost) {
        n->ghost = true;
        cluster_count(n->c, TALLY_DEATHS_LOG);
        wal_memfs_stop_now(n->disk.files);
    }
}

static void on_files_stopped(void *ctx)
{
    struct node *n = ctx;
    if (!n->dying && !n->ghost) {
        n->ghost = true;
        cluster_count(n->c, TALLY_DEATHS_FILES);
        wal_memfs_stop_now(n->disk.log);
    }
}

static void count_allocs(struct node *n)
{
    if (n->allocs_left != 0) {
        span_alloc_set_failed(on_alloc_failed, n);
        span_alloc_fail_at(n->allocs_left);
    }
}

static void count_no_allocs(struct node *n)
{
    if (n->allocs_left != 0) {
        n->allocs_left = span_alloc_left();
        span_alloc_fail_at(0);
    }
}

void cluster_arm(struct cluster *c, node_id node, enum sim_death where, uint64_t n,
                 enum sim_crash how)
{
    struct node *x = &c->nodes[node];
    static const char *const names[] = {"allocation", "operation on the log",
                                        "operation on the files"};
    cluster_say(c, "node %u dies at its %s number %llu from now (%s)", node, names[where],
                (unsigned long long)n, how == SIM_CRASH_KILL ? "killed" : "power");
    x->death_how = how;
    switch (where) {
    case SIM_DEATH_ALLOC:
        x->allocs_left = n + 1;
        break;
    case SIM_DEATH_LOG:
        wal_memfs_stop_after(x->disk.log, n);
        break;
    case SIM_DEATH_FILES:
        wal_memfs_stop_after(x->disk.files, n);
        break;
    }
}

static void disarm(struct node *n)
{
    n->allocs_left = 0;
    wal_memfs_stop_after(n->disk.log, UINT64_MAX);
    wal_memfs_stop_after(n->disk.files, UINT64_MAX);
}

static void run_turn(struct node *n)
{
    struct cluster *c = n->c;
    sim_vfs_set_time(c->now_ns);
    struct tt_now now = cluster_clock(c, n->id); /* rule A3: after everything was taken */
    if (PLANTED(STALE_TIME)) {
        struct tt_interval fresh = now.tt;
        now.tt = n->last_tt.latest.ns == 0 ? fresh : n->last_tt;
        n->last_tt = fresh;
    }
    while (!list_is_empty(&n->inbox)) {
        struct event *e = LIST_ENTRY(n->inbox.next, struct event, inbox);
        list_remove(&e->inbox);
        handle(n, &now, e);
        event_free(e);
        if (wal_batch_bytes(&n->batch) > wal_batch_bytes_max(n->wal) / 2) {
            end_submission(n, &now);
        }
    }
    learn(n, &now);
    if (now.mono_ns >= store_deadline_ns(n->store)) {
        store_tick(n->store, &now);
        check_disk(n, &now);
        sim_clock_refresh(&n->clock, &now);
        flush_idle(n, &now);
    }
    if (now.mono_ns >= gateway_deadline_ns(n->gateway)) {
        gateway_tick(n->gateway, &now);
    }
    turn_end(n, &now);
}

static void run_wal(struct node *n)
{
    n->wal_at_ns = 0;
    n->syncing = false;
    count_allocs(n);
    (void)wal_run(n->wal);
    count_no_allocs(n);
    schedule_wal(n);
}

static void note(struct cluster *c, const struct event *e)
{
    c->event_count++;
    c->trace = span_mix64(c->trace ^ c->now_ns);
    c->trace = span_mix64(c->trace ^ ((uint64_t)e->kind << 32 | e->node));
    c->trace ^= e->bytes.size == 0 ? 0 : span_hash64(e->bytes.data, e->bytes.size);
    if (c->opt.trace && e->kind != EV_CALL && e->kind != EV_RUN) {
        cluster_say(c, "node %u %s%s%.0u size %zu turn %llu%s", e->node, kind_names[e->kind],
                    e->from == 0 ? "" : " from ", e->from, e->bytes.size,
                    (unsigned long long)e->turn,
                    c->nodes[e->node].epoch == e->epoch ? "" : " (dead)");
    }
}

/* Takes the event to the node it is for. */
static void deliver(struct node *n, struct event *e, uint64_t at_ns)
{
    struct cluster *c = n->c;
    if (e->kind == EV_WAL) {
        bool counts = at_ns == n->wal_at_ns;
        event_free(e);
        if (counts) {
            run_wal(n);
        }
        return;
    }
    if (e->kind != EV_RUN) {
        list_push_back(&n->inbox, &e->inbox);
        schedule_run(n, c->now_ns);
        return;
    }
    event_free(e);
    if (at_ns != n->run_at_ns) {
        return; /* an earlier one was scheduled after it */
    }
    n->run_at_ns = 0;
    if (c->now_ns < n->busy_until_ns) { /* paused since it was scheduled */
        schedule_run(n, n->busy_until_ns);
        return;
    }
    count_allocs(n);
    run_turn(n);
    count_no_allocs(n);
}

bool cluster_step(struct cluster *c)
{
    struct heap_node *h = heap_min(&c->events);
    if (h == NULL) {
        return false;
    }
    struct event *e = LIST_ENTRY(h, struct event, heap);
    uint64_t at_ns = h->key;
    heap_remove(&c->events, h);
    c->now_ns = at_ns > c->now_ns ? at_ns : c->now_ns;
    note(c, e);
    if (e->kind == EV_CALL) {
        e->fn(e->ctx);
        event_free(e);
        return true;
    }
    struct node *n = &c->nodes[e->node];
    if (!n->alive || n->epoch != e->epoch) {
        if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
        return true;
    }
    deliver(n, e, at_ns);
    if (n->ghost) {
        cluster_crash(c, n->id, n->death_how);
    } else if (n->fatal) {
        cluster_say(c, "node %u stops by itself", n->id);
        cluster_count(c, TALLY_STOPPED_BY_ITSELF);
        cluster_crash(c, n->id, SIM_CRASH_KILL);
    }
    return true;
}

void cluster_run_for(struct cluster *c, uint64_t ns)
{
    uint64_t until = c->now_ns + ns;
    struct heap_node *h;
    while (!c->failed && (h = heap_min(&c->events)) != NULL && h->key <= until) {
        (void)cluster_step(c);
    }
    c->now_ns = until > c->now_ns ? until : c->now_ns;
}

bool cluster_run_until(struct cluster *c, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns)
{
    uint64_t until = c->now_ns + limit_ns;
    while (!cond(ctx)) {
        if (c->failed || c->now_ns > until || !cluster_step(c)) {
            return false;
        }
    }
    return true;
}

void cluster_op(struct cluster *c, node_id node, struct gateway_op *op)
{
    /* In the order of the posts, as a mailbox gives them: a cancel never overtakes what it is to
     * stop. */
    struct node *n = &c->nodes[node];
    uint64_t at = c->now_ns + rng_below(&c->rng, 20000);
    n->last_op_ns = at > n->last_op_ns ? at : n->last_op_ns;
    struct given *g = SPAN_NEW(struct given);
    *g = (struct given){n, op->done, op->owner};
    op->done = given_done;
    op->owner = g;
    event_new(c, EV_OP, node, n->last_op_ns)->op = op;
}

/* ---- faults ---- */

void cluster_pause(struct cluster *c, node_id node, uint64_t ns)
{
    struct node *n = &c->nodes[node];
    uint64_t until = c->now_ns + ns;
    n->busy_until_ns = until > n->busy_until_ns ? until : n->busy_until_ns;
    cluster_count(c, TALLY_PAUSES);
}

bool cluster_flip(struct cluster *c, node_id node)
{
    struct node *n = &c->nodes[node];
    REQUIRE(!n->alive);
    bool done = sim_disk_flip_log(&n->disk, &c->rng);
    n->damaged = n->damaged || done;
    c->tally[TALLY_FLIPS] += done ? 1 : 0;
    return done;
}

bool cluster_rot(struct cluster *c, node_id node, struct slice prefix, size_t key_size)
{
    struct node *n = &c->nodes[node];
    bool done = sim_disk_rot(&n->disk, &c->rng, prefix, key_size);
    n->rotten = n->rotten || done;
    return done;
}

bool cluster_is_rotten(const struct cluster *c, node_id node)
{
    return c->nodes[node].rotten;
}

void cluster_heal(struct cluster *c)
{
    sim_net_heal(&c->net);
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        struct sim_disk *d = &c->nodes[i].disk;
        sim_clock_repair(&c->nodes[i].clock);
        disarm(&c->nodes[i]);
        d->stall = 0;
        d->stall_until_ns = 0;
        sim_disk_set_room(d, UINT64_MAX);
        wal_memfs_fail_syncs(d->log, 0, 0);
        wal_memfs_fail_syncs(d->files, 0, 0);
    }
}

void cluster_want_flush(struct cluster *c, node_id node)
{
    struct node *n = &c->nodes[node];
    if (n->alive) {
        struct tt_now now = cluster_clock(c, node);
        store_want_flush(n->store, &now, 0);
        cluster_count(c, TALLY_FLUSHES_WANTED);
        schedule_run(n, c->now_ns);
    }
}

static void tell_peers(struct cluster *c, node_id node, enum event_kind kind)
{
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        if (i != node && c->nodes[i].alive) {
            event_new(c, kind, i, c->now_ns + rng_between(&c->rng, MS_NS, 5 * MS_NS))->from = node;
        }
    }
}

/* The flusher's job was cut off somewhere, or had not begun. */
static void drop_job(struct node *n, struct event *e)
{
    struct span_error err = {0};
    if (!n->ghost && rng_below(&n->c->rng, 2) == 0) {
        wal_memfs_stop_after(n->disk.files, rng_below(&n->c->rng, 40));
        cluster_count(n->c, TALLY_FLUSHES_CUT);
        (void)!engine_flush_run(e->job, &err);
    }
    store_flush_abandon(n->store, e->range, e->job);
    e->job = NULL;
}

static void drop_events(struct node *n)
{
    struct cluster *c = n->c;
    while (!list_is_empty(&n->inbox)) {
        struct event *e = LIST_ENTRY(n->inbox.next, struct event, inbox);
        list_remove(&e->inbox);
        if (e->kind == EV_FLUSHED) {
            drop_job(n, e);
        } else if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
    }
    for (size_t i = 0; i < c->events.count; i++) {
        struct event *e = LIST_ENTRY(c->events.nodes[i], struct event, heap);
        if (e->kind == EV_FLUSHED && e->node == n->id && e->epoch == n->epoch && e->job != NULL) {
            drop_job(n, e);
        }
    }
}

/* The process is gone: what its memory held goes, nothing more reaches the disks. */
static void stop_cores(struct node *n)
{
    n->dying = true;
    n->allocs_left = 0;
    /* A sync that is under way has written already, most likely; the first operation is that. */
    if (n->wal != NULL && !n->ghost && (n->syncing || rng_below(&n->c->rng, 2) == 0)) {
        bool written = n->syncing && rng_below(&n->c->rng, 2) == 0;
        wal_memfs_stop_after(n->disk.log, written ? 1 : rng_below(&n->c->rng, 6));
        cluster_count(n->c, TALLY_LOG_WRITES_CUT);
        (void)wal_run(n->wal);
    }
    drop_events(n);
    sim_disk_stop(&n->disk);
    struct tt_now now = cluster_clock(n->c, n->id);
    gateway_close(n->gateway, &now);
    gateway_free(n->gateway);
    store_free(n->store);
    if (n->wal != NULL) {
        tally_log(n->wal, n->c->tally);
        wal_abandon(n->wal);
    }
    n->gateway = NULL;
    n->store = NULL;
    n->wal = NULL;
    wal_batch_clear(&n->batch);
    sim_clock_stop(&n->clock);
    n->clock_state = CLOCK_SYNCED;
    n->out_since_ns = 0;
    n->alive = false;
    n->dying = false;
    n->ghost = false;
    n->fatal = false;
    n->epoch++;
    n->run_at_ns = 0;
    n->wal_at_ns = 0;
    n->syncing = false;
    n->busy_until_ns = 0;
    for (node_id to = 0; to <= SIM_NODES_MAX; to++) {
        buf_clear(&n->out[to][0]);
        buf_clear(&n->out[to][1]);
    }
    if (n->c->watch.down != NULL) {
        n->c->watch.down(n->c->watch.ctx, n->id);
    }
}

void cluster_crash(struct cluster *c, node_id node, enum sim_crash how)
{
    struct node *n = &c->nodes[node];
    REQUIRE(n->alive);
    cluster_say(c, "node %u crashes (%s)", node, how == SIM_CRASH_KILL ? "killed" : "power");
    cluster_count(c, how == SIM_CRASH_KILL ? TALLY_KILLS : TALLY_POWER_LOSSES);
    wal_memfs_stop_after(n->disk.files, UINT64_MAX); /* an armed death that does not come */
    stop_cores(n);
    sim_disk_crash(&n->disk, &c->rng, how);
    tell_peers(c, node, EV_PEER_LOST);
}

static span_status replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    struct node *n = ctx;
    switch (r->kind) {
    case WAL_ENTRY:
        watch_entry(n, r->range, r->index, r->term, r->type, r->payload);
        return store_restore_entry(n->store, r->range, r->index, r->term, r->type, r->payload, err);
    case WAL_STICKY:
        return store_restore_sticky(n->store, r->range, r->type, r->payload, err);
    case WAL_TOMBSTONE:
        store_restore_tombstone(n->store, r->range);
        return SPAN_OK;
    }
    return span_fail(err, SPAN_CORRUPT, "unknown record kind %d", (int)r->kind);
}

static span_status recover(struct node *n, const struct tt_now *now, struct span_error *err)
{
    struct wal_options wo = {.node = n->id,
                             .segment_bytes = n->c->opt.segment_bytes,
                             .manual = true,
                             .fs = wal_memfs_fs(n->disk.log),
                             .now_ns = wal_clock,
                             .now_ctx = n,
                             .on_state = on_wal_state,
                             .state_ctx = n};
    span_status st = wal_open("log", STORE_ID(n->id), &wo, replay, n, &n->wal, err);
    if (st != SPAN_OK) {
        n->wal = NULL;
        return st;
    }
    return store_restore_found(n->store) ? store_restore_end(n->store, now, err)
                                         : store_bootstrap(n->store, now, err);
}

static bool start(struct node *n)
{
    struct cluster *c = n->c;
    struct span_error err = {0};
    bool fresh = !n->ever;
    n->ever = true;
    n->alive = true;
    n->unfit = false;
    sim_vfs_set_time(c->now_ns);
    sim_clock_start(&n->clock, &c->rng, c->now_ns, mono_of(n, c->now_ns),
                    (unsigned)c->opt.nodes - 1);
    make_cores(n, fresh);
    struct tt_now now = cluster_clock(c, n->id);
    count_allocs(n);
    span_status st = recover(n, &now, &err);
    if (st == SPAN_OK && !n->ghost) {
        cluster_say(c, "node %u started", n->id);
        learn(n, &now);
        turn_end(n, &now);
        schedule_wal(n);
    }
    count_no_allocs(n);
    bool died = n->ghost;
    if (st == SPAN_OK && !died) {
        return true;
    }
    cluster_say(c, "node %u %s: %s: %s", n->id, died ? "dies while it starts" : "refuses to start",
                span_status_name(st), err.text);
    stop_cores(n);
    sim_disk_crash(&n->disk, &c->rng, died ? n->death_how : SIM_CRASH_KILL);
    if (died) {
        cluster_count(c, TALLY_DEATHS_AT_START);
        return false;
    }
    if (st == SPAN_CORRUPT && n->damaged && PLANTED(WIPED_STORE_VOTES)) {
        sim_disk_deinit(&n->disk, n->id);
        sim_disk_init(&n->disk, n->id);
        n->ever = false;
        n->damaged = false;
        return start(n);
    }
    if (st == SPAN_CORRUPT && n->damaged) {
        n->lost = true;
        cluster_count(c, TALLY_FLIPS_NOTICED);
    } else if (st != SPAN_NO_SPACE && st != SPAN_IO) {
        cluster_fail(c, "node %u can not start: %s: %s", n->id, span_status_name(st), err.text);
    }
    return false;
}

bool cluster_restart(struct cluster *c, node_id node)
{
    struct node *n = &c->nodes[node];
    REQUIRE(!n->alive && !n->lost);
    if (!start(n)) {
        return false;
    }
    cluster_count(c, TALLY_RESTARTS);
    tell_peers(c, node, EV_PEER_UP);
    return true;
}

/* ---- life ---- */

struct cluster *cluster_new(const struct cluster_options *o)
{
    struct cluster *c = SPAN_NEW(struct cluster);
    REQUIRE(o->nodes <= SIM_NODES_MAX);
    c->opt = *o;
    c->net = o->net;
    c->now_ns = START_NS + SEC_NS;
    rng_init(&c->rng, o->seed);
    heap_init(&c->events);
    sim_vfs_start(o->seed);
    for (node_id i = 1; i <= o->nodes; i++) {
        struct node *n = &c->nodes[i];
        n->c = c;
        n->id = i;
        list_init(&n->inbox);
        wal_batch_init(&n->batch);
        sim_clock_init(&n->clock, &c->rng, o->epsilon_ns, c->now_ns);
        sim_disk_init(&n->disk, i);
        n->disk.sync_max_ns = o->sync_max_ns;
        n->disk.stall = o->sync_stall;
        n->disk.stall_max_ns = 400 * MS_NS;
        wal_memfs_on_stop(n->disk.log, on_log_stopped, n);
        wal_memfs_on_stop(n->disk.files, on_files_stopped, n);
        (void)snprintf(n->dir, sizeof n->dir, SIM_VFS_ROOT "/%u", i);
    }
    return c;
}

void cluster_boot(struct cluster *c)
{
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        bool ok = start(&c->nodes[i]);
        INVARIANT(ok);
    }
}

void cluster_free(struct cluster *c)
{
    c->watch = (struct cluster_watch){0};
    for (node_id i = 1; i <= c->opt.nodes; i++) {
        struct node *n = &c->nodes[i];
        if (n->alive) {
            stop_cores(n);
        }
        sim_disk_deinit(&n->disk, i);
        wal_batch_deinit(&n->batch);
        for (node_id to = 0; to <= SIM_NODES_MAX; to++) {
            buf_deinit(&n->out[to][0]);
            buf_deinit(&n->out[to][1]);
        }
    }
    struct heap_node *h;
    while ((h = heap_min(&c->events)) != NULL) {
        struct event *e = LIST_ENTRY(h, struct event, heap);
        heap_remove(&c->events, h);
        if (e->kind == EV_OP) {
            end_op(e->op, SPAN_CLOSED);
        }
        event_free(e);
    }
    heap_deinit(&c->events);
    arena_deinit(&c->arena);
    span_free(c);
}
