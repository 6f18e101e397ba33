/* One link, sending side and connection state.
 *
 * A link is one nng pair0 socket that outlives its connections (nng: pipes). Life of a connection,
 * seen by the dialer (left) and the listener (right):
 *
 *     tick dials                           pipe added
 *     pipe added, HELLO  ---------------->  checks it
 *     up, on_peer        <----------------  ACK: up, on_peer      (or REFUSE: the dialer hangs up)
 *     DATA, DATA ...     ---------------->  on_frame
 *     PING every 2 s     ---------------->
 *                        <----------------  PONG
 *     pipe removed: queue dropped, on_peer(down), dial again 200 ms later
 *
 * Only one connection counts, `pipe`; a second one is closed in the ADD_PRE callback, and frames of
 * any other are dropped by their pipe id (nng lets both through: a second dialer's sends succeed
 * and vanish). A connection that is silent for 6 s is closed: without that, a listener whose peer
 * lost its power would refuse the peer's next connection for ever as a second one.
 *
 * Sending. `sending` is a baton: whoever sets it takes what is queued, builds one frame, hands it
 * to nng, and goes on until nothing is left. nng takes a frame at once when its pipe is idle
 * (try_aio has no callback, which saves a thread hop per frame); else the frame waits on wait_aio,
 * whose callback then holds the baton, and everything queued meanwhile goes into the next frame. So
 * there is never more than one frame in nng's pipe and one before it.
 *
 * No lock is held while nng or a user's callback runs. */
#include "shard/net/link.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "shard/net/timer.h"

#include <nng/protocol/pair0/pair.h>
#include <string.h>

#define REDIAL_NS        (200 * MS_NS)
#define REDIAL_LONG_NS   (1 * SEC_NS) /* every fifth attempt, and after REDIAL_FAST_MAX of them */
#define REDIAL_FAST_MAX  50
#define HELLO_REPEAT_NS  (500 * MS_NS)
#define HELLO_TIMEOUT_NS (2 * SEC_NS)
#define PING_NS          (2 * SEC_NS)
#define SILENCE_NS       (6 * SEC_NS)

/* nng's own redial must not run (its timers spin): as good as never. Ours closes the dialer first.
 */
#define NNG_NEVER_MS INT32_MAX

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
    if (l->pipe == 0) {
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

/* Hands a frame to nng. True: taken, the baton is still ours. False: it waits on wait_aio, whose
 * callback has the baton now. */
static bool frame_hand_over(struct link *l, nng_msg *msg, size_t sends)
{
    nng_aio_set_msg(l->try_aio, msg);
    nng_send_aio(l->socket, l->try_aio);
    nng_aio_wait(l->try_aio); /* it never waits: the timeout is 0 */
    if (nng_aio_result(l->try_aio) == 0) {
        return true;
    }
    nng_aio_set_msg(l->try_aio, NULL);
    l->waiting_sends = sends;
    nng_aio_set_msg(l->wait_aio, msg);
    nng_send_aio(l->socket, l->wait_aio);
    return false;
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
        if (!frame_hand_over(l, msg, sends)) {
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

/* The waiting frame was taken by the pipe, or given up. The baton is ours. */
static void wait_done(void *arg)
{
    struct link *l = arg;
    bool lost = nng_aio_result(l->wait_aio) != 0;
    if (lost) {
        nng_msg_free(nng_aio_get_msg(l->wait_aio));
        nng_aio_set_msg(l->wait_aio, NULL);
    }
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

void link_drop_pipe(struct link *l)
{
    (void)pthread_mutex_lock(&l->lock);
    nng_pipe pipe = {.id = l->pipe};
    (void)pthread_mutex_unlock(&l->lock);
    if (pipe.id != 0) {
        (void)nng_pipe_close(pipe);
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

/* nng is about to use a new connection. */
static void pipe_adding(struct link *l, nng_pipe pipe)
{
    uint64_t now = timer_now_ns();
    (void)pthread_mutex_lock(&l->lock);
    bool second = l->closing || l->pipe != 0;
    if (!second) {
        l->pipe = pipe.id;
        l->pipe_since_ns = now;
        l->wants = 0;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (second) {
        (void)nng_pipe_close(pipe);
        return;
    }
    /* A frame that still waits was meant for the connection before; it must not go before HELLO. */
    nng_aio_cancel(l->wait_aio);
}

static void pipe_added(struct link *l, nng_pipe pipe)
{
    (void)pthread_mutex_lock(&l->lock);
    bool ours = l->pipe == pipe.id && l->direction == NET_OUT;
    if (ours) {
        l->wants |= WANT_HELLO;
        l->hello_due_ns = timer_now_ns() + HELLO_REPEAT_NS;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (ours) {
        link_pump(l);
    }
}

static void pipe_removed(struct link *l, nng_pipe pipe)
{
    (void)pthread_mutex_lock(&l->lock);
    if (l->pipe != pipe.id) {
        (void)pthread_mutex_unlock(&l->lock);
        return;
    }
    l->pipe = 0;
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
    nng_aio_cancel(l->wait_aio);
    link_report(l);
}

/* On nng's threads. */
static void pipe_event(nng_pipe pipe, nng_pipe_ev ev, void *arg)
{
    struct link *l = arg;
    switch (ev) {
    case NNG_PIPE_EV_ADD_PRE:
        pipe_adding(l, pipe);
        break;
    case NNG_PIPE_EV_ADD_POST:
        pipe_added(l, pipe);
        break;
    case NNG_PIPE_EV_REM_POST:
        pipe_removed(l, pipe);
        break;
    case NNG_PIPE_EV_NUM:
    default:
        break;
    }
}

/* --- deadlines ----------------------------------------------------------------------------------
 */

static void dial(struct link *l)
{
    if (l->dialing) {
        (void)nng_dialer_close(l->dialer);
        l->dialing = false;
    }
    nng_dialer d;
    int rv = nng_dialer_create(&d, l->socket, l->url);
    if (rv != 0) {
        SPAN_LOG(WARN, "cannot dial peer", "peer=%u url=%s error=\"%s\"", l->peer->node, l->url,
                 nng_strerror(rv));
        return;
    }
    bool ok = nng_dialer_set_ms(d, NNG_OPT_RECONNMINT, NNG_NEVER_MS) == 0 &&
              nng_dialer_set_ms(d, NNG_OPT_RECONNMAXT, 0) == 0 &&
              nng_dialer_set_size(d, NNG_OPT_RECVMAXSZ, WIRE_FRAME_MAX) == 0;
    if (ok && l->scheme == URL_TCP && l->t->has_source) {
        ok = nng_dialer_set_addr(d, NNG_OPT_LOCADDR, &l->t->source) == 0;
    }
    if (!ok || nng_dialer_start(d, NNG_FLAG_NONBLOCK) != 0) {
        SPAN_LOG(WARN, "cannot dial peer", "peer=%u url=%s", l->peer->node, l->url);
        (void)nng_dialer_close(d);
        return;
    }
    l->dialer = d;
    l->dialing = true;
}

/* How long a dial may take before the next one. Long ones in between, for a machine so busy that
 * 200 ms do not do; and only long ones once the peer has been away for a while (when it comes back
 * it dials us, which makes us dial at once). */
static uint64_t dial_interval(unsigned attempts)
{
    return attempts > REDIAL_FAST_MAX || attempts % 5 == 4 ? REDIAL_LONG_NS : REDIAL_NS;
}

static void tick_out(struct link *l, uint64_t now)
{
    bool redial = false;
    bool drop = false;
    bool pump = false;
    (void)pthread_mutex_lock(&l->lock);
    if (l->pipe == 0) {
        if (now >= l->due_ns) {
            redial = true;
            l->due_ns = now + dial_interval(l->attempts++);
        }
    } else if (!l->up) {
        drop = now > l->pipe_since_ns + HELLO_TIMEOUT_NS;
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
        dial(l);
    }
    if (drop) {
        link_drop_pipe(l);
    } else if (pump) {
        link_pump(l);
    }
}

static void tick_in(struct link *l, uint64_t now)
{
    (void)pthread_mutex_lock(&l->lock);
    bool drop = l->pipe != 0 && (l->up ? now > l->alive_ns + SILENCE_NS
                                       : now > l->pipe_since_ns + HELLO_TIMEOUT_NS);
    (void)pthread_mutex_unlock(&l->lock);
    if (drop) {
        link_drop_pipe(l);
    }
}

void link_tick(struct link *l, uint64_t now_ns)
{
    if (l->direction == NET_OUT) {
        tick_out(l, now_ns);
    } else {
        tick_in(l, now_ns);
    }
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

static int link_listen(struct link *l)
{
    nng_listener listener;
    int rv = nng_listener_create(&listener, l->socket, l->url);
    if (rv == 0) {
        rv = nng_listener_set_size(listener, NNG_OPT_RECVMAXSZ, WIRE_FRAME_MAX);
    }
    return rv != 0 ? rv : nng_listener_start(listener, 0);
}

span_status link_open(struct link *l, struct span_error *err)
{
    int rv = nng_pair0_open(&l->socket);
    if (rv != 0) {
        return link_failed(l, rv, err);
    }
    l->open = true;
    if ((rv = nng_aio_alloc(&l->recv_aio, link_received, l)) != 0 ||
        (rv = nng_aio_alloc(&l->try_aio, NULL, NULL)) != 0 ||
        (rv = nng_aio_alloc(&l->wait_aio, wait_done, l)) != 0) {
        return link_failed(l, rv, err);
    }
    nng_aio_set_timeout(l->recv_aio, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(l->try_aio, NNG_DURATION_ZERO);
    nng_aio_set_timeout(l->wait_aio, NNG_DURATION_INFINITE);
    for (int ev = NNG_PIPE_EV_ADD_PRE; ev < NNG_PIPE_EV_NUM; ev++) {
        if ((rv = nng_pipe_notify(l->socket, (nng_pipe_ev)ev, pipe_event, l)) != 0) {
            return link_failed(l, rv, err);
        }
    }
    if (l->direction == NET_IN && (rv = link_listen(l)) != 0) {
        return link_failed(l, rv, err);
    }
    nng_recv_aio(l->socket, l->recv_aio);
    return SPAN_OK;
}

void link_close(struct link *l)
{
    if (l->open) {
        (void)pthread_mutex_lock(&l->lock);
        l->closing = true;
        (void)pthread_mutex_unlock(&l->lock);
        /* First the aios: nng 1.5.2 can strand one that comes while its socket closes. A stopped
         * aio refuses what comes later, without a callback. Then the socket, which ends the
         * connections and waits for their callbacks. Only then may the aios go. */
        if (l->wait_aio != NULL) {
            nng_aio_stop(l->wait_aio);
        }
        if (l->recv_aio != NULL) {
            nng_aio_stop(l->recv_aio);
        }
        (void)nng_close(l->socket);
        if (l->wait_aio != NULL && nng_aio_get_msg(l->wait_aio) != NULL) {
            nng_msg_free(nng_aio_get_msg(l->wait_aio)); /* refused by the stopped aio */
        }
        nng_aio_free(l->wait_aio);
        nng_aio_free(l->recv_aio);
        nng_aio_free(l->try_aio);
        l->open = false;
    }
    outbox_free(&l->queue);
    outbox_free(&l->batch);
}
