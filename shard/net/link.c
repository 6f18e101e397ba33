/* One link: sending side, connection state, deadlines. What carries the frames is behind struct
 * link_ops; the life of a connection is the same over all of them, seen by the dialer (left) and
 * the listener (right):
 *
 *     dials                                accepts
 *     connected, HELLO   ---------------->  checks it
 *     up, on_peer        <----------------  ACK: up, on_peer      (or REFUSE: the dialer hangs up)
 *     DATA, DATA ...     ---------------->  on_frame
 *     PING every 2 s     ---------------->
 *                        <----------------  PONG
 *     connection lost: queue dropped, on_peer(down), dial again 200 ms later
 *
 * Only one connection counts, conn_id; a second one is closed at once, and frames of any other are
 * dropped by their id. A connection that is silent for 6 s is closed: without that, a listener
 * whose peer lost its power would refuse the peer's next connection for ever as a second one.
 *
 * Sending. `sending` is a baton: whoever sets it takes what is queued, builds one frame, hands it
 * over, and goes on until nothing is left. While a frame is under way the baton is with it, and
 * everything queued meanwhile goes into the next frame: one send in flight, the rest gathers.
 *
 * No lock is held while nng or a user's callback runs. */
#include "shard/net/link.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "shard/net/timer.h"

#include <string.h>

#define REDIAL_NS        (200 * MS_NS)
#define HELLO_REPEAT_NS  (500 * MS_NS)
#define HELLO_TIMEOUT_NS (2 * SEC_NS)
#define PING_NS          (2 * SEC_NS)
#define SILENCE_NS       (6 * SEC_NS)

#ifdef __SANITIZE_ADDRESS__
/* nng 1.5.2's pair sockets (inproc) leak a message that is handed to a pipe that is closing. It is
 * nng's by then and nothing can be done about it here; the leak checker is for our own (received
 * frames are found by their struct frame). */
const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void)
{
    return "leak:libnng.so\n";
}
#endif

#ifdef __SANITIZE_THREAD__
/* nng is not instrumented and orders its own frees by atomics, which ThreadSanitizer does not see.
 */
const char *__tsan_default_suppressions(void);

const char *__tsan_default_suppressions(void)
{
    return "race:libnng.so\n";
}
#endif

static void outbox_push(struct outbox *o, struct buf *bytes)
{
    if (o->count == o->cap) {
        o->cap = o->cap == 0 ? 16 : o->cap * 2;
        o->items = span_realloc(o->items, o->cap * sizeof(struct buf));
    }
    struct buf *b = &o->items[o->count++];
    buf_init(b);
    buf_move(b, bytes);
}

static void outbox_clear(struct outbox *o)
{
    for (size_t i = o->at; i < o->count; i++) {
        buf_deinit(&o->items[i]);
    }
    o->at = 0;
    o->count = 0;
}

static void outbox_free(struct outbox *o)
{
    outbox_clear(o);
    span_free(o->items);
    *o = (struct outbox){0};
}

/* --- frames out ---------------------------------------------------------------------------------
 */

/* A frame's place in nng's own message: header room and `length` bytes behind it, not set yet. */
static nng_msg *frame_new(size_t length)
{
    nng_msg *msg;
    /* Like base/alloc.h: out of memory is a crash, and every crash is survived. */
    INVARIANT(nng_msg_alloc(&msg, WIRE_HEADER_BYTES + length) == 0);
    return msg;
}

static void frame_seal(struct link *l, nng_msg *msg, enum wire_type type, uint64_t sequence)
{
    struct wire_header h = {
        .type = type,
        .class = l->class,
        .from = l->t->node,
        .cluster_id = l->t->cluster_id,
        .incarnation = l->t->incarnation,
        .sequence = sequence,
        .length = (uint32_t)(nng_msg_len(msg) - WIRE_HEADER_BYTES),
    };
    wire_seal(nng_msg_body(msg), &h);
}

/* With the lock held: the link's own next frame, or 0; its payload in `b`. */
static enum wire_type take_want(struct link *l, struct buf *b)
{
    if (l->conn_id == 0) {
        l->wants = 0;
        return 0;
    }
    unsigned want = l->wants & (~l->wants + 1);
    l->wants &= ~want;
    switch (want) {
    case WANT_HELLO: {
        (void)pthread_mutex_lock(&l->peer->lock);
        struct wire_hello m = {.store_id = l->t->store_id,
                               .to = l->peer->node,
                               .to_store_id = l->peer->store_expected};
        (void)pthread_mutex_unlock(&l->peer->lock);
        wire_hello_encode(b, &m);
        return WIRE_HELLO;
    }
    case WANT_ACK:
        wire_ack_encode(b, &(struct wire_ack){.store_id = l->t->store_id,
                                              .hello_incarnation = l->ack_incarnation});
        return WIRE_ACK;
    case WANT_REFUSE:
        wire_refuse_encode(b, &l->refuse);
        return WIRE_REFUSE;
    case WANT_PING:
        wire_ping_encode(b, timer_now_ns());
        return WIRE_PING;
    case WANT_PONG:
        wire_ping_encode(b, l->pong_ns);
        return WIRE_PONG;
    default:
        return 0;
    }
}

/* With the lock and the baton: makes `batch` hold what is to be sent next. False if there is
 * nothing. */
static bool take_batch(struct link *l)
{
    struct outbox *b = &l->batch;
    if (b->at < b->count && (!l->up || l->batch_gen != l->up_gen)) {
        /* Meant for a connection that is gone. */
        for (size_t i = b->at; i < b->count; i++) {
            l->stats.queued_bytes -= b->items[i].size;
            l->stats.dropped_lost++;
        }
        outbox_clear(b);
    }
    if (b->at == b->count) {
        b->at = 0;
        b->count = 0;
        struct outbox empty = *b;
        *b = l->queue;
        l->queue = empty;
        l->batch_gen = l->up_gen;
    }
    return b->at < b->count;
}

/* With the baton, without the lock: the next frame of the batch, its sends copied one after
 * another. */
static nng_msg *frame_of_batch(struct link *l, size_t *sends)
{
    struct outbox *b = &l->batch;
    size_t size = b->items[b->at].size;
    size_t end = b->at + 1;
    while (end < b->count && size + b->items[end].size <= LINK_COALESCE_BYTES) {
        size += b->items[end].size;
        end++;
    }
    nng_msg *msg = frame_new(size);
    uint8_t *p = (uint8_t *)nng_msg_body(msg) + WIRE_HEADER_BYTES;
    *sends = end - b->at;
    for (; b->at < end; b->at++) {
        struct buf *item = &b->items[b->at];
        memcpy(p, item->data, item->size);
        p += item->size;
        buf_deinit(item);
    }
    return msg;
}

/* With the baton and the lock, which it drops: sends until nothing is left or a frame has to wait.
 */
static void pump_locked(struct link *l)
{
    struct buf small;
    buf_init(&small);
    for (;;) {
        enum wire_type type = 0;
        size_t sends = 0;
        if (l->closing) {
            break;
        }
        buf_clear(&small);
        type = take_want(l, &small);
        if (type == 0 && !take_batch(l)) {
            break;
        }
        if (type != 0 && link_is_cut(&l->peer->links[NET_OUT][l->class])) {
            l->stats.dropped_fault++;
            continue;
        }
        uint64_t sequence = ++l->sequence_out;
        (void)pthread_mutex_unlock(&l->lock);

        nng_msg *msg;
        if (type != 0) {
            msg = frame_new(small.size);
            memcpy((uint8_t *)nng_msg_body(msg) + WIRE_HEADER_BYTES, small.data, small.size);
        } else {
            msg = frame_of_batch(l, &sends);
            type = WIRE_DATA;
        }
        size_t size = nng_msg_len(msg) - WIRE_HEADER_BYTES;
        frame_seal(l, msg, type, sequence);

        /* Counted before it is handed over: then it is not ours any more. */
        if (type == WIRE_DATA) {
            (void)pthread_mutex_lock(&l->lock);
            l->stats.queued_bytes -= size;
            l->stats.frames_out++;
            l->stats.bytes_out += size;
            (void)pthread_mutex_unlock(&l->lock);
        }
        if (!l->ops->hand_over(l, msg, sends)) {
            buf_deinit(&small);
            return;
        }
        (void)pthread_mutex_lock(&l->lock);
    }
    l->sending = false;
    (void)pthread_mutex_unlock(&l->lock);
    buf_deinit(&small);
}

void link_pump(struct link *l)
{
    (void)pthread_mutex_lock(&l->lock);
    if (l->sending || l->closing) {
        (void)pthread_mutex_unlock(&l->lock);
        return;
    }
    l->sending = true;
    pump_locked(l);
}

void link_frame_done(struct link *l, bool lost)
{
    (void)pthread_mutex_lock(&l->lock);
    if (lost) {
        l->stats.dropped_lost += l->waiting_sends;
    }
    pump_locked(l);
}

span_status link_send(struct link *l, struct buf *bytes)
{
    size_t size = bytes->size;
    (void)pthread_mutex_lock(&l->lock);
    if (!l->up || l->closing) {
        l->stats.dropped_down++;
        (void)pthread_mutex_unlock(&l->lock);
        buf_deinit(bytes);
        return SPAN_UNAVAILABLE;
    }
    if (l->stats.queued_bytes + size > LIMIT_OUTBOX_BYTES) {
        l->stats.dropped_full++;
        (void)pthread_mutex_unlock(&l->lock);
        buf_deinit(bytes);
        return SPAN_OVERLOADED;
    }
    outbox_push(&l->queue, bytes);
    l->stats.queued_bytes += size;
    l->stats.sends_out++;
    if (l->sending) {
        (void)pthread_mutex_unlock(&l->lock); /* goes with the next frame */
        return SPAN_OK;
    }
    l->sending = true;
    pump_locked(l);
    return SPAN_OK;
}

/* --- connections --------------------------------------------------------------------------------
 */

void link_drop(struct link *l)
{
    (void)pthread_mutex_lock(&l->lock);
    uint32_t id = l->conn_id;
    (void)pthread_mutex_unlock(&l->lock);
    if (id != 0) {
        l->ops->drop(l, id);
    }
}

static void emit(struct link *l, bool up)
{
    struct transport_callbacks *cb = &l->t->callbacks;
    if (cb->on_peer == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&l->peer->lock);
    struct transport_peer_event ev = {
        .node = l->peer->node,
        .class = l->class,
        .direction = l->direction,
        .up = up,
        .incarnation = l->peer->incarnation,
        .store_id = l->peer->store_learnt,
    };
    (void)pthread_mutex_unlock(&l->peer->lock);
    cb->on_peer(cb->ctx, &ev);
}

void link_report(struct link *l)
{
    (void)pthread_mutex_lock(&l->report_lock);
    (void)pthread_mutex_lock(&l->lock);
    bool up = l->up;
    uint64_t gen = l->up_gen;
    bool closing = l->closing;
    (void)pthread_mutex_unlock(&l->lock);
    if (!closing) {
        if (l->reported_up && (!up || gen != l->reported_gen)) {
            l->reported_up = false;
            emit(l, false);
        }
        if (up && !l->reported_up) {
            l->reported_up = true;
            l->reported_gen = gen;
            emit(l, true);
        }
    }
    (void)pthread_mutex_unlock(&l->report_lock);
}

bool link_conn_adding(struct link *l, uint32_t id, struct conn *c)
{
    (void)pthread_mutex_lock(&l->lock);
    bool first = !l->closing && l->conn_id == 0;
    if (first) {
        l->conn_id = id;
        l->stream.conn = c;
        l->conn_since_ns = timer_now_ns();
        l->wants = 0;
    }
    (void)pthread_mutex_unlock(&l->lock);
    return first;
}

void link_conn_added(struct link *l, uint32_t id)
{
    (void)pthread_mutex_lock(&l->lock);
    bool ours = l->conn_id == id && l->direction == NET_OUT;
    if (ours) {
        l->wants |= WANT_HELLO;
        l->hello_due_ns = timer_now_ns() + HELLO_REPEAT_NS;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (ours) {
        link_pump(l);
    }
}

void link_conn_removed(struct link *l, uint32_t id)
{
    (void)pthread_mutex_lock(&l->lock);
    if (l->conn_id != id) {
        (void)pthread_mutex_unlock(&l->lock);
        return;
    }
    l->conn_id = 0;
    l->stream.conn = NULL;
    l->wants = 0;
    l->up = false;
    l->stats.dropped_lost += l->queue.count - l->queue.at;
    for (size_t i = l->queue.at; i < l->queue.count; i++) {
        l->stats.queued_bytes -= l->queue.items[i].size;
    }
    outbox_clear(&l->queue);
    uint64_t due = timer_now_ns() + REDIAL_NS;
    if (l->due_ns < due) {
        l->due_ns = due; /* a refusal has set a later one */
    }
    (void)pthread_mutex_unlock(&l->lock);
    link_report(l);
}

/* --- deadlines ----------------------------------------------------------------------------------
 */

static void tick_out(struct link *l, uint64_t now)
{
    bool redial = false;
    bool drop = false;
    bool pump = false;
    (void)pthread_mutex_lock(&l->lock);
    if (l->conn_id == 0) {
        if (now >= l->due_ns) {
            redial = true;
            l->due_ns = now + REDIAL_NS;
        }
    } else if (!l->up) {
        drop = now > l->conn_since_ns + HELLO_TIMEOUT_NS;
        if (now >= l->hello_due_ns) {
            l->hello_due_ns = now + HELLO_REPEAT_NS;
            l->wants |= WANT_HELLO;
            pump = true;
        }
    } else {
        drop = now > l->alive_ns + SILENCE_NS;
        if (now >= l->ping_due_ns) {
            l->ping_due_ns = now + PING_NS;
            l->wants |= WANT_PING;
            pump = true;
        }
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (redial) {
        l->ops->dial(l);
    }
    if (drop) {
        link_drop(l);
    } else if (pump) {
        link_pump(l);
    }
}

static void tick_in(struct link *l, uint64_t now)
{
    (void)pthread_mutex_lock(&l->lock);
    bool drop = l->conn_id != 0 && (l->up ? now > l->alive_ns + SILENCE_NS
                                          : now > l->conn_since_ns + HELLO_TIMEOUT_NS);
    (void)pthread_mutex_unlock(&l->lock);
    if (drop) {
        link_drop(l);
    }
}

void link_tick(struct link *l, uint64_t now_ns)
{
    if (l->direction == NET_OUT) {
        tick_out(l, now_ns);
    } else {
        tick_in(l, now_ns);
    }
    l->ops->tick(l, now_ns);
}

/* --- opening and closing ------------------------------------------------------------------------
 */

static span_status link_failed(struct link *l, int rv, struct span_error *err)
{
    if (rv == NNG_EADDRINUSE) {
        return span_fail(err, SPAN_UNAVAILABLE,
                         "%s is in use (it is where node %u is listened for: is another process "
                         "running with this address?)",
                         l->url, l->peer->node);
    }
    bool bad = rv == NNG_EADDRINVAL || rv == NNG_EINVAL;
    return span_fail(err, bad ? SPAN_INVALID : SPAN_IO, "cannot %s %s: %s",
                     l->direction == NET_IN ? "listen at" : "prepare a link to", l->url,
                     nng_strerror(rv));
}

span_status link_open(struct link *l, struct span_error *err)
{
    l->ops = l->scheme == URL_INPROC ? &link_pair_ops : &link_stream_ops;
    l->open = true;
    int rv = l->ops->open(l);
    return rv == 0 ? SPAN_OK : link_failed(l, rv, err);
}

void link_close(struct link *l)
{
    if (l->open) {
        (void)pthread_mutex_lock(&l->lock);
        l->closing = true;
        (void)pthread_mutex_unlock(&l->lock);
        l->ops->close(l);
        l->open = false;
    }
    outbox_free(&l->queue);
    outbox_free(&l->batch);
}
