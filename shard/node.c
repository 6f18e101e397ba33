/* Threads of a node and what passes between them; see node.h for the picture. */
#include "shard/node.h"

#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/node_points.h"
#include "shard/wal/wal.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* What came while a turn was handled goes into the same turn: a turn's frames and its sync cost
 * more than handling a few messages, and under load there is always something more. */
#define TURN_ROUNDS      4
#define SLOW_CHECK_NS    (100 * MS_NS)
#define FIT_AGAIN_NS     (10 * SEC_NS)
#define CLOCK_REFRESH_NS (1000 * MS_NS)
#define FLUSH_IDLE_NS    (30 * SEC_NS)
#define FLUSH_BAD_NS     (3 * SEC_NS) /* a flush that failed is tried again every second */
#define FLUSH_SAID_NS    (10 * SEC_NS)

enum item_kind {
    ITEM_PERSISTED,
    ITEM_FLUSHED,
    ITEM_PEER_LOST,
    ITEM_PEER_STORE,
    ITEM_CALL,
};

/* Items of our own. Frames carry theirs in net_frame.user, the guest's are its own; `kind` tells by
 * the item's tag. */
enum item_tag {
    TAG_OWN = 1,
    TAG_FRAME,
    TAG_GUEST,
};

/* Records of the node itself in the WAL: sticky kind = peer's node id, payload = its store id. */
#define NODE_RANGE UINT64_MAX

struct own_item {
    struct mailbox_item item;
    enum item_kind kind;
    uint64_t number; /* turn, peer */
    range_id range;
    struct engine_job *job;
    struct call *call;
    enum net_direction direction; /* of a peer's link */
};

struct call {
    void (*fn)(void *ctx, struct node *n, const struct tt_now *now);
    void *ctx;
    pthread_mutex_t lock;
    pthread_cond_t done_cond;
    bool done;
};

struct flush_item {
    struct mailbox_item item;
    range_id range;
    struct engine_job *job;
};

struct peer_out {
    node_id node;
    struct buf out[2];
};

struct node {
    struct node_config cfg;
    struct node_guest guest;
    uint64_t incarnation;
    struct store *store;
    struct wal *wal;
    struct wal_fs *fs;
    struct wal_fs *faulty;
    struct wal_faults faults;
    struct wal_batch batch;
    struct transport *transport;
    struct mailbox *frames; /* one mailbox for all three kinds; items are told apart by their weight
                               field's tag */
    struct mailbox *flusher_box;
    struct mailbox_item *abandoned; /* flush jobs that came when the flusher had stopped */
    pthread_t worker;
    pthread_t flusher;
    bool worker_runs;
    bool flusher_runs;
    _Atomic unsigned refusals[LIMIT_PEERS + 1]; /* last reason logged, by node id */
    uint64_t peer_stores[LIMIT_PEERS + 1];      /* by node id; 0: never met */
    bool peer_up[LIMIT_PEERS + 1][2];           /* control links, by node id and net_direction */
    bool own_records;            /* the batch holds records that no turn of the store counts */
    struct node_peer *peer_list; /* cfg.peers, ours */
    struct peer_out peers[LIMIT_PEERS];
    size_t peer_count;
    char *range_dir;
    uint64_t slow_check_ns;
    uint64_t slow_since_ns;
    uint64_t clock_refresh_ns;
    uint64_t idle_flush_ns;
    uint64_t turns;
    uint64_t point_records;                /* failpoints: kinds of records in the batch */
    _Atomic uint64_t point_turns[1U << 8]; /* and of those under way, by turn */
    size_t turn_wal_bytes;                 /* a turn ends early when it has this much to persist */
    bool unfit;
    pthread_mutex_t flush_lock;
    char flush_error[NODE_FLUSH_ERROR_BYTES]; /* under it: the last one */
    _Atomic uint64_t flush_bad_until_ns;
    uint64_t flush_said_ns; /* the flusher's */
    _Atomic uint64_t status_broken;
    _Atomic uint64_t status_damaged;
    char damage[NODE_DAMAGE_BYTES]; /* under flush_lock */
    _Atomic uint64_t status_short;
    atomic_bool draining;
    atomic_bool fatal;
    _Atomic uint64_t status_ranges;
    _Atomic uint64_t status_leads;
    _Atomic uint64_t status_turns;
    atomic_bool status_ready;
    atomic_bool status_unfit;
};

/* The tag lives in the upper byte of mailbox_item.bytes, which only the bound reads: no bound is
 * used here. */
#define TAG_SHIFT 56

static void tag_set(struct mailbox_item *i, enum item_tag tag)
{
    i->bytes = (size_t)tag << TAG_SHIFT;
}

static enum item_tag tag_of(const struct mailbox_item *i)
{
    return (enum item_tag)(i->bytes >> TAG_SHIFT);
}

static void fatal(struct node *n, const char *what)
{
    if (!atomic_exchange(&n->fatal, true)) {
        SPAN_LOG(ERROR, "node stops", "why=%s", what);
        if (n->cfg.on_fatal != NULL) {
            n->cfg.on_fatal(n->cfg.fatal_ctx, what);
        }
    }
}

/* ---- into the mailbox ---- */

static void post_own(struct node *n, struct own_item *i)
{
    tag_set(&i->item, TAG_OWN);
    if (mailbox_post(n->frames, &i->item) != SPAN_OK) {
        span_free(i);
    }
}

static _Atomic uint64_t *point_turn(struct node *n, uint64_t turn)
{
    return &n->point_turns[turn % (sizeof n->point_turns / sizeof n->point_turns[0])];
}

static void on_durable(void *ctx, uint64_t turn, span_status st)
{
    struct node *n = ctx;
    if (st != SPAN_OK) {
        fatal(n,
              st == SPAN_NO_SPACE ? "the disk of the log is full" : "the log can not be written");
        return;
    }
    if (FAILPOINT_IS_ACTIVE()) {
        node_points_durable(atomic_exchange(point_turn(n, turn), 0));
    }
    struct own_item *i = SPAN_NEW(struct own_item);
    i->kind = ITEM_PERSISTED;
    i->number = turn;
    post_own(n, i);
}

static_assert(sizeof(((struct net_frame *)0)->user) >= sizeof(struct mailbox_item),
              "a frame has room for its mailbox item");

static struct mailbox_item *frame_item(struct net_frame *f)
{
    return (struct mailbox_item *)(void *)f->user;
}

static void on_frame(void *ctx, struct net_frame *f)
{
    struct node *n = ctx;
    tag_set(frame_item(f), TAG_FRAME);
    if (mailbox_post(n->frames, frame_item(f)) != SPAN_OK) {
        net_frame_unref(f);
    }
}

static void on_peer(void *ctx, const struct transport_peer_event *ev)
{
    struct node *n = ctx;
    if (ev->class != NET_CONTROL) {
        return;
    }
    struct own_item *i = SPAN_NEW(struct own_item);
    i->kind = ev->up ? ITEM_PEER_STORE : ITEM_PEER_LOST;
    i->number = ev->node;
    i->range = ev->store_id;
    i->direction = ev->direction;
    post_own(n, i);
}

/* Repeats at every reconnect: said once until the reason changes. */
static void on_refused(void *ctx, uint32_t peer, enum net_direction direction, enum net_refusal why,
                       uint64_t store_id)
{
    struct node *n = ctx;
    unsigned said = (unsigned)why * 2 + (direction == NET_IN ? 1 : 0);
    if (peer <= LIMIT_PEERS && atomic_exchange(&n->refusals[peer], said) != said) {
        SPAN_LOG(ERROR, "peer link refused", "peer=%u by=%s why=%s store=%016llx", peer,
                 direction == NET_IN ? "this node" : "the peer", net_refusal_text(why),
                 (unsigned long long)store_id);
    }
}

span_status node_post(struct node *n, struct mailbox_item *item)
{
    tag_set(item, TAG_GUEST);
    return mailbox_post(n->frames, item);
}

span_status node_call(struct node *n,
                      void (*fn)(void *ctx, struct node *n, const struct tt_now *now), void *ctx)
{
    struct call c = {.fn = fn,
                     .ctx = ctx,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .done_cond = PTHREAD_COND_INITIALIZER};
    struct own_item *i = SPAN_NEW(struct own_item);
    i->kind = ITEM_CALL;
    i->call = &c;
    tag_set(&i->item, TAG_OWN);
    if (mailbox_post(n->frames, &i->item) != SPAN_OK) {
        span_free(i);
        return SPAN_CLOSED;
    }
    pthread_mutex_lock(&c.lock);
    while (!c.done) {
        pthread_cond_wait(&c.done_cond, &c.lock);
    }
    pthread_mutex_unlock(&c.lock);
    pthread_mutex_destroy(&c.lock);
    pthread_cond_destroy(&c.done_cond);
    return SPAN_OK;
}

static void call_done(struct call *c)
{
    pthread_mutex_lock(&c->lock);
    c->done = true;
    pthread_cond_signal(&c->done_cond);
    pthread_mutex_unlock(&c->lock);
}

/* ---- sinks of the store ---- */

struct buf *node_out(struct node *n, node_id to, enum store_class cls)
{
    if (to == n->cfg.self) {
        return store_local(n->store);
    }
    for (size_t i = 0; i < n->peer_count; i++) {
        if (n->peers[i].node == to) {
            return &n->peers[i].out[cls];
        }
    }
    /* No such node: the bytes go nowhere, like to a dead one. */
    struct buf *sink = &n->peers[LIMIT_PEERS - 1].out[0];
    buf_clear(sink);
    return sink;
}

static struct buf *io_send(void *ctx, node_id to, enum store_class cls)
{
    return node_out(ctx, to, cls);
}

static void io_entry(void *ctx, range_id range, uint64_t index, uint64_t term, uint8_t type,
                     struct slice payload)
{
    struct node *n = ctx;
    if (FAILPOINT_IS_ACTIVE()) {
        n->point_records |= node_points_entry(type);
    }
    wal_batch_add_entry(&n->batch, range, index, term, type, payload);
}

static void io_sticky(void *ctx, range_id range, uint8_t kind, struct slice payload)
{
    struct node *n = ctx;
    if (FAILPOINT_IS_ACTIVE()) {
        n->point_records |= node_points_sticky(kind);
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
    struct flush_item *f = SPAN_NEW(struct flush_item);
    f->range = range;
    f->job = job;
    if (mailbox_post(n->flusher_box, &f->item) != SPAN_OK) {
        f->item.next = n->abandoned; /* stopping: given back to its engine by node_close */
        n->abandoned = &f->item;
    }
}

static bool io_peer_clock(void *ctx, const struct tt_now *now, node_id peer,
                          const struct tt_interval *sent, const struct tt_interval *asked)
{
    struct node *n = ctx;
    return asked == NULL ? clock_note_message(n->cfg.clock, peer, sent, now)
                         : clock_note_round_trip(n->cfg.clock, peer, asked, sent, now);
}

static void io_to_gateway(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                          struct slice body)
{
    struct node *n = ctx;
    if (n->guest.message != NULL) {
        n->guest.message(n->guest.ctx, now, from, kind, body);
    }
}

/* ---- worker ---- */

static void turn_end(struct node *n, const struct tt_now *now);

/* The log takes a bounded batch, and one frame may hold many messages full of entries. */
static void turn_end_if_full(struct node *n, const struct tt_now *now)
{
    if (wal_batch_bytes(&n->batch) > n->turn_wal_bytes) {
        turn_end(n, now);
    }
}

static void handle_frame(struct node *n, const struct tt_now *now, struct net_frame *f)
{
    size_t at = 0;
    uint8_t kind;
    struct slice body;
    span_status st;
    while ((st = msg_next(f->payload, &at, &kind, &body)) == SPAN_OK) {
        if (FAILPOINT_IS_ACTIVE()) {
            node_points_got(kind, body);
        }
        store_message(n->store, now, f->from, kind, body);
        turn_end_if_full(n, now);
    }
    if (st != SPAN_NOT_FOUND) {
        SPAN_LOG(WARN, "rest of a frame dropped: malformed", "from=%u at=%zu size=%zu", f->from, at,
                 f->payload.size);
    }
    net_frame_unref(f);
}

/* Rule F2: the store that a node number was first met with is remembered for ever; a wiped disk
 * that comes back under the old number is refused at HELLO, because it forgot its votes and
 * promises. */
static void note_peer_store(struct node *n, node_id peer, uint64_t store_id)
{
    if (store_id == 0 || peer == 0 || peer > LIMIT_PEERS || n->peer_stores[peer] != 0) {
        return;
    }
    n->peer_stores[peer] = store_id;
    struct buf b = {0};
    enc_u64(&b, store_id);
    wal_batch_add_sticky(&n->batch, NODE_RANGE, (uint8_t)peer, buf_slice(&b));
    buf_deinit(&b);
    n->own_records = true;
    if (FAILPOINT_IS_ACTIVE()) {
        n->point_records |= node_points_peer_store();
    }
    (void)!transport_peer_store_set(n->transport, peer, store_id);
}

/* A peer that starts again dials us at once, while we dial it when REDIAL is over: what is sent to
 * it before, or what it answers the other way round, is lost without a word. So it is up when both
 * directions are. */
static bool link_is_whole(struct node *n, const struct own_item *i, bool up)
{
    if (i->number > LIMIT_PEERS) {
        return false;
    }
    bool *links = n->peer_up[i->number];
    links[i->direction] = up;
    return links[NET_OUT] && links[NET_IN];
}

static void handle_own(struct node *n, const struct tt_now *now, struct own_item *i)
{
    switch (i->kind) {
    case ITEM_PERSISTED:
        store_persisted(n->store, now, i->number);
        break;
    case ITEM_FLUSHED:
        store_flush_done(n->store, now, i->range, i->job);
        break;
    case ITEM_PEER_LOST:
        (void)link_is_whole(n, i, false);
        store_peer_lost(n->store, now, (node_id)i->number);
        if (n->guest.peer_lost != NULL) {
            n->guest.peer_lost(n->guest.ctx, now, (node_id)i->number);
        }
        break;
    case ITEM_PEER_STORE:
        note_peer_store(n, (node_id)i->number, i->range);
        if (link_is_whole(n, i, true) && n->guest.peer_up != NULL) {
            n->guest.peer_up(n->guest.ctx, now, (node_id)i->number);
        }
        break;
    case ITEM_CALL:
        i->call->fn(i->call->ctx, n, now);
        call_done(i->call);
        break;
    }
    span_free(i);
}

static void handle(struct node *n, const struct tt_now *now, struct mailbox_item *item)
{
    switch (tag_of(item)) {
    case TAG_FRAME:
        handle_frame(n, now,
                     (struct net_frame *)(void *)((char *)item - offsetof(struct net_frame, user)));
        break;
    case TAG_OWN:
        handle_own(n, now, MAILBOX_ENTRY(item, struct own_item, item));
        break;
    case TAG_GUEST:
        n->guest.op(n->guest.ctx, now, item);
        break;
    }
}

static void send_all(struct node *n)
{
    for (size_t i = 0; i < n->peer_count; i++) {
        for (int cls = 0; cls < 2; cls++) {
            struct buf *b = &n->peers[i].out[cls];
            if (b->size > 0) {
                uint64_t kinds = FAILPOINT_IS_ACTIVE() ? node_points_messages(buf_slice(b)) : 0;
                node_points_send(kinds);
                /* Refused: the link is down or full; Raft and every request repeat what matters. */
                (void)!transport_send(n->transport, n->peers[i].node, (enum net_class)cls, b);
                node_points_sent(kinds);
            }
        }
    }
}

static void turn_end(struct node *n, const struct tt_now *now)
{
    uint64_t turn = store_turn_end(n->store, now);
    if (turn != 0 || n->own_records) {
        n->own_records = false;
        if (n->point_records != 0) {
            node_points_submit(n->point_records);
            atomic_store(point_turn(n, turn), n->point_records);
            n->point_records = 0;
        }
        span_status st = wal_submit(n->wal, &n->batch, on_durable, n, turn);
        while (st == SPAN_OVERLOADED && !atomic_load(&n->fatal)) {
            struct timespec ms = {0, 1000000};
            nanosleep(&ms, NULL); /* the disk is far behind: everything here waits for it anyway */
            st = wal_submit(n->wal, &n->batch, on_durable, n, turn);
        }
        if (st != SPAN_OK) {
            wal_batch_clear(&n->batch);
            fatal(n, "the log refuses a batch");
        }
    }
    send_all(n);
    n->turns++;
}

static void publish_damage(struct node *n)
{
    char text[NODE_DAMAGE_BYTES];
    size_t count = store_damaged(n->store, text, sizeof text);
    if (count == 0 && atomic_load_explicit(&n->status_damaged, memory_order_relaxed) == 0) {
        return;
    }
    (void)pthread_mutex_lock(&n->flush_lock);
    memcpy(n->damage, text, sizeof text);
    (void)pthread_mutex_unlock(&n->flush_lock);
    atomic_store(&n->status_damaged, count);
}

/* Rule H10: a leader whose disk does not answer within a lease hands over, and stands again after
 * 10 s of good syncs. */
static void check_disk(struct node *n, const struct tt_now *now)
{
    if (now->mono_ns < n->slow_check_ns) {
        return;
    }
    n->slow_check_ns = now->mono_ns + SLOW_CHECK_NS;
    atomic_store_explicit(&n->status_broken, store_broken_count(n->store), memory_order_relaxed);
    publish_damage(n);
    atomic_store_explicit(&n->status_short, store_short_count(n->store, now), memory_order_relaxed);
    bool slow =
        wal_oldest_unsynced_ns(n->wal) > n->cfg.lease_ns || wal_state_get(n->wal) != WAL_RUNNING;
    if (slow) {
        n->slow_since_ns = now->mono_ns;
    }
    bool unfit = slow || (n->unfit && n->slow_since_ns + FIT_AGAIN_NS > now->mono_ns);
    if (unfit != n->unfit) {
        SPAN_LOG(WARN, unfit ? "disk is too slow to lead" : "disk is fit to lead again", "state=%d",
                 (int)wal_state_get(n->wal));
        n->unfit = unfit;
        store_set_unfit(n->store, now, unfit);
    }
}

static void housekeeping(struct node *n, const struct tt_now *now)
{
    check_disk(n, now);
    if (now->mono_ns >= n->clock_refresh_ns) {
        n->clock_refresh_ns = now->mono_ns + CLOCK_REFRESH_NS;
        (void)clock_refresh(n->cfg.clock);
    }
    if (now->mono_ns >= n->idle_flush_ns) {
        /* A quiet range must not keep old segments alive (rule H3). */
        n->idle_flush_ns = now->mono_ns + SEC_NS;
        struct wal_pin pins[8];
        size_t count = wal_oldest_pinned(n->wal, pins, 8);
        for (size_t i = 0; i < count; i++) {
            store_want_flush(n->store, now, pins[i].range);
        }
    }
}

static void publish(struct node *n, const struct tt_now *now)
{
    atomic_store_explicit(&n->status_ranges, store_range_count(n->store), memory_order_relaxed);
    atomic_store_explicit(&n->status_leads, store_leader_count(n->store), memory_order_relaxed);
    atomic_store_explicit(&n->status_turns, n->turns, memory_order_relaxed);
    atomic_store_explicit(&n->status_unfit, n->unfit, memory_order_relaxed);
    atomic_store_explicit(&n->status_ready, now->state < CLOCK_FENCED && store_is_ready(n->store),
                          memory_order_relaxed);
}

static uint64_t next_deadline(struct node *n)
{
    uint64_t at = store_deadline_ns(n->store);
    if (n->guest.deadline_ns != NULL) {
        uint64_t g = n->guest.deadline_ns(n->guest.ctx);
        at = g < at ? g : at;
    }
    return at;
}

static void handle_all(struct node *n, const struct tt_now *now, struct mailbox_item *items)
{
    while (items != NULL) {
        struct mailbox_item *next = items->next;
        handle(n, now, items);
        items = next;
        turn_end_if_full(n, now);
    }
}

static void *worker_main(void *arg)
{
    struct node *n = arg;
    (void)prctl(PR_SET_NAME, "worker");
    (void)prctl(PR_SET_TIMERSLACK, 1UL);
    log_set_node(n->cfg.self);
    bool drained = false;
    uint64_t published_ns = 0;
    for (;;) {
        struct mailbox_item *items = mailbox_take_all(n->frames, next_deadline(n));
        if (items == NULL && mailbox_is_closed(n->frames)) {
            break;
        }
        struct tt_now now;
        clock_now(n->cfg.clock, &now); /* rule A3: after the events were taken */
        if (n->guest.turn_begin != NULL) {
            n->guest.turn_begin(n->guest.ctx, &now);
        }
        handle_all(n, &now, items);
        for (int round = 1; round < TURN_ROUNDS; round++) {
            items = mailbox_take_all(n->frames, 0);
            if (items == NULL) {
                break;
            }
            clock_now(n->cfg.clock, &now);
            handle_all(n, &now, items);
        }
        if (now.mono_ns >= store_deadline_ns(n->store)) {
            store_tick(n->store, &now);
            housekeeping(n, &now);
        }
        if (n->guest.deadline_ns != NULL && now.mono_ns >= n->guest.deadline_ns(n->guest.ctx)) {
            n->guest.tick(n->guest.ctx, &now);
        }
        if (atomic_load_explicit(&n->draining, memory_order_relaxed) && !drained) {
            drained = true;
            store_drain(n->store, &now);
        }
        turn_end(n, &now);
        if (now.mono_ns - published_ns > 10 * MS_NS) {
            published_ns = now.mono_ns;
            publish(n, &now);
        }
    }
    return NULL;
}

/* ---- flusher ---- */

/* It is tried again every second, for every range: said now and then, and on /healthz meanwhile. */
static void note_flush_failure(struct node *n, range_id range, const struct span_error *err)
{
    uint64_t now = clock_os_mono_ns();
    (void)pthread_mutex_lock(&n->flush_lock);
    (void)snprintf(n->flush_error, sizeof n->flush_error, "%.255s", err->text);
    (void)pthread_mutex_unlock(&n->flush_lock);
    atomic_store(&n->flush_bad_until_ns, now + FLUSH_BAD_NS);
    if (n->flush_said_ns == 0 || n->flush_said_ns + FLUSH_SAID_NS <= now) {
        n->flush_said_ns = now;
        SPAN_LOG(WARN, "flush step failed, tried again", "range=%llu error=\"%s\"",
                 (unsigned long long)range, err->text);
    }
}

static void *flusher_main(void *arg)
{
    struct node *n = arg;
    (void)prctl(PR_SET_NAME, "flusher");
    log_set_node(n->cfg.self);
    for (;;) {
        struct mailbox_item *items = mailbox_take_all(n->flusher_box, MAILBOX_FOREVER);
        if (items == NULL && mailbox_is_closed(n->flusher_box)) {
            return NULL;
        }
        while (items != NULL) {
            struct mailbox_item *next = items->next;
            struct flush_item *f = MAILBOX_ENTRY(items, struct flush_item, item);
            struct span_error err = {0};
            if (engine_flush_run(f->job, &err) != SPAN_OK) {
                note_flush_failure(n, f->range, &err);
            }
            struct own_item *i = SPAN_NEW(struct own_item);
            i->kind = ITEM_FLUSHED;
            i->range = f->range;
            i->job = f->job;
            tag_set(&i->item, TAG_OWN);
            span_free(f);
            span_status st = mailbox_post(n->frames, &i->item);
            INVARIANT(st == SPAN_OK); /* the flusher stops before the mailbox closes */
            items = next;
        }
    }
}

/* ---- open ---- */

static span_status replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    struct node *n = ctx;
    if (r->range == NODE_RANGE) {
        struct cursor c = cursor_of(r->payload);
        if (r->kind == WAL_STICKY && r->type <= LIMIT_PEERS) {
            n->peer_stores[r->type] = dec_u64(&c);
        }
        return cursor_ok(&c) ? SPAN_OK
                             : span_fail(err, SPAN_CORRUPT, "malformed record of a peer's store");
    }
    switch (r->kind) {
    case WAL_ENTRY:
        return store_restore_entry(n->store, r->range, r->index, r->term, r->type, r->payload, err);
    case WAL_STICKY:
        return store_restore_sticky(n->store, r->range, r->type, r->payload, err);
    case WAL_TOMBSTONE:
        store_restore_tombstone(n->store, r->range);
        return SPAN_OK;
    }
    return span_fail(err, SPAN_CORRUPT, "unknown record kind %d", (int)r->kind);
}

static void on_wal_state(void *ctx, enum wal_state state, const char *text)
{
    struct node *n = ctx;
    if (state == WAL_DEAD) {
        fatal(n, text);
    }
}

static span_status make_dir(const char *path, struct span_error *err)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        return span_fail(err, SPAN_IO, "%s: can not be made: %s", path, strerror(errno));
    }
    return SPAN_OK;
}

static struct store *make_store(struct node *n)
{
    struct store_config sc = {
        .self = n->cfg.self,
        .incarnation = n->incarnation,
        .node_count = n->cfg.peer_count,
        .lease_ns = n->cfg.lease_ns,
        .version_window_ns = n->cfg.version_window_ns,
        .flush_bytes = n->cfg.flush_bytes,
        .cache_bytes = n->cfg.cache_bytes,
        .dir = n->range_dir,
        .seed = rng_os_u64(),
        .fresh = n->cfg.created,
        .metrics = n->cfg.metrics,
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
    if (!n->cfg.join) { /* who joins knows when it has the table */
        sc.replicas = n->cfg.peer_count < LIMIT_REPLICAS ? n->cfg.peer_count : LIMIT_REPLICAS;
    }
    for (size_t i = 0; i < n->cfg.peer_count; i++) {
        sc.nodes[i] = n->cfg.peers[i].node;
        if (n->cfg.peers[i].node != n->cfg.self) {
            n->peers[n->peer_count++].node = n->cfg.peers[i].node;
        }
    }
    return store_new(&sc);
}

static void count_record(void *ctx, uint64_t range, uint64_t generation)
{
    (void)range;
    (void)generation;
    (*(size_t *)ctx)++;
}

/* A log that was there leaves its identity before the first range file is made. Range files without
 * it mean that the log was taken away, and with it what this node promised. */
static span_status check_log_is_there(const struct node *n, const char *wal_dir,
                                      struct span_error *err)
{
    char *identity = span_asprintf("%s/identity", wal_dir);
    size_t files = 0;
    span_status st = engine_list_files(n->range_dir, count_record, &files, err);
    if (st == SPAN_OK && files > 0 && access(identity, F_OK) != 0) {
        st = span_fail(err, SPAN_CORRUPT,
                       "%s is missing though there are range files: the log was lost, and with it "
                       "what this node promised to others; replace the node",
                       identity);
    }
    span_free(identity);
    return st;
}

static span_status recover(struct node *n, struct span_error *err)
{
    char *wal_dir = span_asprintf("%s/wal", n->cfg.dir);
    span_status st = make_dir(n->range_dir, err);
    if (st == SPAN_OK) {
        st = check_log_is_there(n, wal_dir, err);
    }
    if (st == SPAN_OK) {
        st = wal_fs_posix_new(wal_dir, &n->fs, err);
    }
    if (st == SPAN_OK) {
        n->faulty = wal_fs_faulty_new(n->fs, &n->faults);
        struct wal_options wo = {.node = n->cfg.self,
                                 .segment_bytes = n->cfg.wal_segment_bytes,
                                 .fs = n->faulty,
                                 .metrics = n->cfg.metrics,
                                 .on_state = on_wal_state,
                                 .state_ctx = n};
        st = wal_open(wal_dir, n->cfg.store_id, &wo, replay, n, &n->wal, err);
    }
    if (st == SPAN_OK) {
        n->turn_wal_bytes = wal_batch_bytes_max(n->wal) / 2;
    }
    struct tt_now now;
    clock_now(n->cfg.clock, &now);
    if (n->cfg.join) {
        store_join(n->store);
    }
    if (st == SPAN_OK && !n->cfg.join && !store_restore_found(n->store)) {
        /* An empty log: a new store, or one whose very first record was never written. Files
         * without a log are another thing: the log was taken away, and with it what this node
         * promised. */
        size_t files = 0;
        st = engine_list_files(n->range_dir, count_record, &files, err);
        if (st == SPAN_OK && files > 2) {
            st = span_fail(
                err, SPAN_CORRUPT,
                "%s: there are range files but no log: the log was lost, and with it what this "
                "node promised to others; replace the node",
                n->cfg.dir);
        }
        if (st == SPAN_OK) {
            st = store_bootstrap(n->store, &now, err);
        }
    } else if (st == SPAN_OK) {
        st = store_restore_end(n->store, &now, err);
    }
    span_free(wal_dir);
    return st;
}

static span_status open_transport(struct node *n, struct span_error *err)
{
    struct transport_peer_config peers[LIMIT_PEERS];
    size_t count = 0;
    for (size_t i = 0; i < n->cfg.peer_count; i++) {
        if (n->cfg.peers[i].node != n->cfg.self) {
            /* Rule F2: also what an earlier process met counts. */
            peers[count++] =
                (struct transport_peer_config){.node = n->cfg.peers[i].node,
                                               .url = n->cfg.peers[i].url,
                                               .store_id = n->peer_stores[n->cfg.peers[i].node]};
        }
    }
    struct transport_config tc = {
        .cluster_id = n->cfg.cluster_id,
        .node = n->cfg.self,
        .store_id = n->cfg.store_id,
        .incarnation = n->incarnation,
        .listen_url = n->cfg.listen_url,
        .source = n->cfg.source,
        .timer = n->cfg.timer,
        .peers = peers,
        .peer_count = count,
        .callbacks = {.ctx = n, .on_frame = on_frame, .on_peer = on_peer, .on_refused = on_refused},
        .enable_faults = n->cfg.enable_faults,
        .fault_seed = rng_os_u64(),
    };
    return transport_open(&tc, &n->transport, err);
}

static void drop_items(struct node *n)
{
    struct mailbox_item *items = mailbox_take_all(n->frames, 0);
    while (items != NULL) {
        struct mailbox_item *next = items->next;
        if (tag_of(items) == TAG_FRAME) {
            net_frame_unref(
                (struct net_frame *)(void *)((char *)items - offsetof(struct net_frame, user)));
        } else if (tag_of(items) == TAG_OWN) {
            struct own_item *i = MAILBOX_ENTRY(items, struct own_item, item);
            if (i->kind == ITEM_CALL) {
                call_done(i->call);
            } else if (i->kind == ITEM_FLUSHED) {
                store_flush_abandon(n->store, i->range, i->job);
            }
            span_free(i);
        }
        items = next;
    }
    while (n->abandoned != NULL) {
        struct flush_item *f = MAILBOX_ENTRY(n->abandoned, struct flush_item, item);
        n->abandoned = f->item.next;
        store_flush_abandon(n->store, f->range, f->job);
        span_free(f);
    }
}

span_status node_add_peer(struct node *n, node_id id, const char *url, struct span_error *err)
{
    for (size_t i = 0; i < n->peer_count; i++) {
        if (n->peers[i].node == id) {
            return SPAN_OK;
        }
    }
    if (id == n->cfg.self) {
        return SPAN_OK;
    }
    if (n->peer_count + 1 >= LIMIT_PEERS) {
        return span_fail(err, SPAN_TOO_LARGE, "at most %d nodes", LIMIT_PEERS);
    }
    if (n->transport != NULL) {
        struct transport_peer_config pc = {
            .node = id, .url = url, .store_id = id <= LIMIT_PEERS ? n->peer_stores[id] : 0};
        span_status st = transport_peer_add(n->transport, &pc, err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    n->peers[n->peer_count++].node = id;
    return SPAN_OK;
}

/* The caller's list is gone when the transport is opened, in node_start. */
static void copy_peers(struct node *n)
{
    struct node_peer *copy = span_calloc(n->cfg.peer_count, sizeof(copy[0]));
    for (size_t i = 0; i < n->cfg.peer_count; i++) {
        copy[i] = (struct node_peer){.node = n->cfg.peers[i].node,
                                     .url = span_strdup(n->cfg.peers[i].url)};
    }
    n->cfg.peers = n->peer_list = copy;
}

static void free_peers(struct node *n)
{
    for (size_t i = 0; i < n->cfg.peer_count; i++) {
        span_free((char *)(uintptr_t)n->peer_list[i].url);
    }
    span_free(n->peer_list);
}

static void node_free(struct node *n)
{
    store_free(n->store);
    wal_batch_deinit(&n->batch);
    if (n->faulty != NULL) {
        n->faulty->ops->free(n->faulty);
    }
    if (n->fs != NULL) {
        n->fs->ops->free(n->fs);
    }
    mailbox_free(n->frames);
    mailbox_free(n->flusher_box);
    (void)pthread_mutex_destroy(&n->flush_lock);
    for (size_t i = 0; i < LIMIT_PEERS; i++) {
        buf_deinit(&n->peers[i].out[0]);
        buf_deinit(&n->peers[i].out[1]);
    }
    free_peers(n);
    span_free(n->range_dir);
    span_free(n);
}

span_status node_open(const struct node_config *cfg, struct node **out, struct span_error *err)
{
    struct node *n = SPAN_NEW(struct node);
    n->cfg = *cfg;
    copy_peers(n);
    do {
        n->incarnation = rng_os_u64();
    } while (n->incarnation == 0);
    n->range_dir = span_asprintf("%s/ranges", cfg->dir);
    n->frames = mailbox_new(0);
    n->flusher_box = mailbox_new(0);
    (void)pthread_mutex_init(&n->flush_lock, NULL);
    wal_batch_init(&n->batch);
    n->store = make_store(n);
    span_status st = recover(n, err);
    if (st != SPAN_OK) {
        if (n->wal != NULL) {
            wal_abandon(n->wal);
        }
        node_free(n);
        return st;
    }
    *out = n;
    return SPAN_OK;
}

span_status node_start(struct node *n, const struct node_guest *guest, struct span_error *err)
{
    n->guest = *guest;
    span_status st = open_transport(n, err);
    if (st != SPAN_OK) {
        return st;
    }
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 1024UL * 1024);
    n->flusher_runs = pthread_create(&n->flusher, &attr, flusher_main, n) == 0;
    n->worker_runs = n->flusher_runs && pthread_create(&n->worker, &attr, worker_main, n) == 0;
    pthread_attr_destroy(&attr);
    return n->worker_runs ? SPAN_OK : span_fail(err, SPAN_NOMEM, "threads can not be started");
}

struct store *node_store(struct node *n)
{
    return n->store;
}

uint64_t node_incarnation(const struct node *n)
{
    return n->incarnation;
}

struct transport *node_transport(struct node *n)
{
    return n->transport;
}

struct wal_faults *node_wal_faults(struct node *n)
{
    return &n->faults;
}

void node_status_get(struct node *n, struct node_status *out)
{
    static const char *const states[] = {[WAL_RUNNING] = "running",
                                         [WAL_LOW_SPACE] = "low-space",
                                         [WAL_STALLED] = "stalled",
                                         [WAL_DEAD] = "dead"};
    struct wal_stats ws;
    struct mailbox_stats ms;
    wal_stats_get(n->wal, &ws);
    mailbox_stats_get(n->frames, &ms);
    *out = (struct node_status){
        .ranges = atomic_load_explicit(&n->status_ranges, memory_order_relaxed),
        .leads = atomic_load_explicit(&n->status_leads, memory_order_relaxed),
        .ready = atomic_load_explicit(&n->status_ready, memory_order_relaxed),
        .turns = atomic_load_explicit(&n->status_turns, memory_order_relaxed),
        .wal_syncs = ws.syncs,
        .wal_units = ws.units,
        .wal_bytes = ws.bytes,
        .sync_ns_total = ws.sync_ns_total,
        .mailbox_posts = ms.posts,
        .mailbox_wakeups = ms.wakeups,
        .wal_state = states[wal_state_get(n->wal)],
        .unfit = atomic_load_explicit(&n->status_unfit, memory_order_relaxed),
        .broken = atomic_load_explicit(&n->status_broken, memory_order_relaxed),
        .short_of_replicas = atomic_load_explicit(&n->status_short, memory_order_relaxed),
    };
    out->damaged = atomic_load(&n->status_damaged);
    if (out->damaged != 0) {
        (void)pthread_mutex_lock(&n->flush_lock);
        memcpy(out->damage, n->damage, sizeof out->damage);
        (void)pthread_mutex_unlock(&n->flush_lock);
    }
    if (clock_os_mono_ns() < atomic_load(&n->flush_bad_until_ns)) {
        (void)pthread_mutex_lock(&n->flush_lock);
        memcpy(out->flush_error, n->flush_error, sizeof out->flush_error);
        (void)pthread_mutex_unlock(&n->flush_lock);
    }
}

void node_close(struct node *n, uint64_t patience_ns)
{
    if (n == NULL) {
        return;
    }
    if (n->worker_runs) {
        atomic_store(&n->draining, true);
        uint64_t until = clock_os_mono_ns() + patience_ns;
        while (!atomic_load(&n->fatal) && clock_os_mono_ns() < until &&
               atomic_load_explicit(&n->status_leads, memory_order_relaxed) > 0) {
            struct timespec ms = {0, 2000000};
            nanosleep(&ms, NULL);
        }
    }
    if (n->flusher_runs) {
        mailbox_close(n->flusher_box);
        pthread_join(n->flusher, NULL);
    }
    /* The worker sends until it has ended; what peers still say is refused by the mailbox. */
    mailbox_close(n->frames);
    if (n->worker_runs) {
        pthread_join(n->worker, NULL);
    }
    transport_close(n->transport);
    drop_items(n);
    if (atomic_load(&n->fatal)) {
        wal_abandon(n->wal);
    } else if (wal_close(n->wal) != SPAN_OK) {
        SPAN_LOG_MSG(WARN, "the log was not closed cleanly");
    }
    drop_items(n);
    node_free(n);
}
