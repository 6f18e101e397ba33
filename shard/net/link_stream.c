/* Links between processes (tcp://, ipc://): nng's byte streams with our own framing; the frame
 * header holds the length.
 *
 * Why not nng's pair sockets: in nng 1.5.2 (found by tests/stress/transport_stress and read in its
 * source)
 *   - a connection that is closed between two reads or writes of one message is never finished
 *     (tcptran_pipe_recv_cb submits an aio that is closed already, which is refused without a
 *     callback), its reaper thread waits for it for ever, and from then on no connection of the
 * whole process is ever taken down or made again: one peer killed in the middle of a large frame is
 *     enough;
 *   - a listener whose greeting meets EPIPE takes that for its own close and never accepts again:
 * over ipc, any process that connects and leaves does it;
 *   - a failed dial is reported to nobody, and retried by the timers that must not be used.
 * Streams have none of this, since every aio here is our own and is only ever stopped at the end.
 * They also save the thread hops of the socket layer. But: a read or write that is posted on a
 * stream which another thread has closed just before is never finished (tcp_dowrite and tcp_doread
 * return without a word), so what is still under way on a closing connection is cancelled, again
 * and again until it is over.
 *
 * Reading: one read into a buffer takes whatever is there, often many frames; the rest of a frame
 * that does not fit is read straight into its message, and what follows it again into the buffer. A
 * connection that has not said HELLO may announce small frames only.
 *
 * A connection is freed by the timer thread (or close) when nothing pins it any more; `conns` holds
 * all of them, l->stream.conn is the one that counts. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "shard/net/link.h"

#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#define READ_BYTES        (64 * KIB) /* one read */
#define READ_BYTES_OUT    (4 * KIB)  /* on the dialer's side only ACKs and PONGs come */
#define UNKNOWN_BYTES_MAX (1 * KIB)  /* payload before HELLO */
#define DIAL_TIMEOUT_NS   (1 * SEC_NS)
#define REDIAL_NS         (200 * MS_NS)

struct conn {
    struct list node; /* in l->stream.conns */
    struct link *l;
    uint32_t id;
    nng_stream *stream;
    nng_aio *rx_aio;
    nng_aio *tx_aio;
    bool closing;      /* under the link's lock, as the next two */
    unsigned pins;     /* reasons not to free it: its reading, a frame being sent */
    unsigned droppers; /* threads in stream_drop */

    /* the read callback's */
    uint8_t *buf;
    size_t cap;
    size_t have;
    bool deaf;       /* what comes is not understood and not looked at */
    nng_msg *rx_msg; /* frame under way */
    size_t rx_got;

    /* the baton's */
    nng_msg *tx_msg;
    size_t tx_sent;
    struct timer_node tx_timer;
};

static uint32_t conn_next_id(void)
{
    static atomic_uint next;
    uint32_t id;
    do {
        id = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) + 1;
    } while (id == 0);
    return id;
}

/* Ends the connection; its aios fail soon. Any thread. */
static void conn_down(struct conn *c)
{
    (void)pthread_mutex_lock(&c->l->lock);
    bool first = !c->closing;
    c->closing = true;
    (void)pthread_mutex_unlock(&c->l->lock);
    if (first) {
        link_conn_removed(c->l, c->id); /* first: who sees the end may dial again at once */
        nng_stream_close(c->stream);
    }
}

static void conn_unpin(struct conn *c)
{
    (void)pthread_mutex_lock(&c->l->lock);
    c->pins--;
    (void)pthread_mutex_unlock(&c->l->lock);
}

/* Of a connection whose callbacks are over, or are stopped by this. */
static void conn_free(struct conn *c)
{
    (void)timer_cancel(c->l->t->timer, &c->tx_timer);
    nng_aio_stop(c->rx_aio);
    nng_aio_stop(c->tx_aio);
    nng_stream_free(c->stream);
    nng_aio_free(c->rx_aio);
    nng_aio_free(c->tx_aio);
    if (c->rx_msg != NULL) {
        nng_msg_free(c->rx_msg);
    }
    if (c->tx_msg != NULL) {
        nng_msg_free(c->tx_msg);
    }
    span_free(c->buf);
    span_free(c);
}

/* --- reading ------------------------------------------------------------------------------------
 */

static void rx_post(struct conn *c)
{
    nng_iov iov[2];
    unsigned n = 0;
    if (c->rx_msg != NULL) {
        iov[n].iov_buf = (uint8_t *)nng_msg_body(c->rx_msg) + c->rx_got;
        iov[n++].iov_len = nng_msg_len(c->rx_msg) - c->rx_got;
    }
    iov[n].iov_buf = c->buf + c->have;
    iov[n++].iov_len = c->cap - c->have;
    (void)nng_aio_set_iov(c->rx_aio, n, iov); /* never fails for up to 4 */
    nng_stream_recv(c->stream, c->rx_aio);
}

static nng_msg *msg_new(const uint8_t *data, size_t given, size_t size)
{
    nng_msg *msg;
    INVARIANT(nng_msg_alloc(&msg, size) == 0);
    memcpy(nng_msg_body(msg), data, given);
    return msg;
}

static bool may_send_much(struct conn *c)
{
    (void)pthread_mutex_lock(&c->l->lock);
    bool may = c->l->up && c->l->conn_id == c->id;
    (void)pthread_mutex_unlock(&c->l->lock);
    return may;
}

static uint32_t frame_length(const uint8_t *frame)
{
    return (uint32_t)frame[32] | (uint32_t)frame[33] << 8 | (uint32_t)frame[34] << 16 |
           (uint32_t)frame[35] << 24;
}

/* Bytes of the frame that begins at p; 0: not all of its header is there; SIZE_MAX: not a frame
 * that may come now. */
static size_t frame_size(struct conn *c, const uint8_t *p, size_t n)
{
    if ((n > 0 && p[0] != WIRE_MAGIC) || (n > 1 && p[1] != WIRE_VERSION)) {
        return SIZE_MAX;
    }
    if (n < WIRE_HEADER_BYTES) {
        return 0;
    }
    size_t length = frame_length(p);
    if (length > LIMIT_FRAME_BYTES || (length > UNKNOWN_BYTES_MAX && !may_send_much(c))) {
        return SIZE_MAX;
    }
    return WIRE_HEADER_BYTES + length;
}

/* Hands on the frames in the buffer; what is left at its end is the beginning of one. */
static void rx_parse(struct conn *c)
{
    size_t at = 0;
    while (at < c->have && !c->deaf) {
        size_t left = c->have - at;
        size_t size = frame_size(c, c->buf + at, left);
        if (size == SIZE_MAX) {
            /* The link says what is wrong with it and closes or refuses; nothing behind it makes
             * sense. */
            size_t head = left < WIRE_HEADER_BYTES ? left : WIRE_HEADER_BYTES;
            c->deaf = true;
            link_frame(c->l, c->id, msg_new(c->buf + at, head, head));
            break;
        }
        if (size == 0) {
            break;
        }
        if (size > left) {
            c->rx_msg = msg_new(c->buf + at, left, size);
            c->rx_got = left;
            at = c->have;
            break;
        }
        link_frame(c->l, c->id, msg_new(c->buf + at, size, size));
        at += size;
    }
    if (c->deaf) {
        at = c->have;
    }
    memmove(c->buf, c->buf + at, c->have - at);
    c->have -= at;
}

static void rx_done(void *arg)
{
    struct conn *c = arg;
    struct link *l = c->l;
    if (nng_aio_result(c->rx_aio) != 0) {
        conn_down(c);
        conn_unpin(c);
        return;
    }
    size_t n = nng_aio_count(c->rx_aio);
    if (c->rx_msg != NULL) {
        size_t rest = nng_msg_len(c->rx_msg) - c->rx_got;
        size_t part = n < rest ? n : rest;
        c->rx_got += part;
        n -= part;
        if (part == rest) {
            nng_msg *msg = c->rx_msg;
            c->rx_msg = NULL;
            link_frame(l, c->id, msg);
        }
    }
    c->have += n;
    rx_parse(c);
    rx_post(c);
}

/* --- writing ------------------------------------------------------------------------------------
 */

/* A frame nearly always fits the socket's buffer, and then nng writes it before nng_stream_send
 * returns. An aio with a callback would still cost a hand-off to one of nng's threads to hear of it
 * (some 10 us of CPU a frame), so this one has none: its result is looked at right behind the call,
 * and in the rare case that the buffer was full, again by the timer. */
#define TX_LOOK_AGAIN_NS (MS_NS / 2)

enum tx_state {
    TX_UNDER_WAY,
    TX_SENT,
    TX_LOST,
};

/* Posts what is left of the frame until it is out, under way, or lost. */
static enum tx_state tx_run(struct conn *c, bool posted)
{
    for (;;) {
        if (!posted) {
            nng_iov iov = {.iov_buf = (uint8_t *)nng_msg_body(c->tx_msg) + c->tx_sent,
                           .iov_len = nng_msg_len(c->tx_msg) - c->tx_sent};
            (void)nng_aio_set_iov(c->tx_aio, 1, &iov);
            nng_stream_send(c->stream, c->tx_aio);
        }
        posted = false;
        /* Both are 0 while it is under way (nni_aio_begin); a write of 0 bytes is none. */
        if (nng_aio_count(c->tx_aio) == 0 && nng_aio_result(c->tx_aio) == 0) {
            return TX_UNDER_WAY;
        }
        nng_aio_wait(
            c->tx_aio); /* it is over: only to be ordered behind the thread that ended it */
        if (nng_aio_result(c->tx_aio) != 0) {
            return TX_LOST;
        }
        c->tx_sent += nng_aio_count(c->tx_aio);
        if (c->tx_sent >= nng_msg_len(c->tx_msg)) {
            return TX_SENT;
        }
    }
}

static void tx_end(struct conn *c, enum tx_state state)
{
    nng_msg_free(c->tx_msg);
    c->tx_msg = NULL;
    if (state == TX_LOST) {
        conn_down(c);
    }
    conn_unpin(c); /* from here on it may be freed */
}

static void tx_look(struct timer_node *n)
{
    struct conn *c = (struct conn *)(void *)((char *)n - offsetof(struct conn, tx_timer));
    struct link *l = c->l;
    (void)pthread_mutex_lock(&l->lock);
    bool closing = c->closing;
    (void)pthread_mutex_unlock(&l->lock);
    if (closing) {
        nng_aio_cancel(c->tx_aio);
    }
    enum tx_state state = tx_run(c, true);
    if (state == TX_UNDER_WAY) {
        timer_at(l->t->timer, &c->tx_timer, timer_now_ns() + TX_LOOK_AGAIN_NS, tx_look);
        return;
    }
    tx_end(c, state);
    link_frame_done(l, state == TX_LOST);
}

static bool stream_hand_over(struct link *l, nng_msg *msg, size_t sends)
{
    (void)pthread_mutex_lock(&l->lock);
    struct conn *c = l->stream.conn;
    if (c == NULL || c->closing) {
        l->stats.dropped_lost += sends;
        (void)pthread_mutex_unlock(&l->lock);
        nng_msg_free(msg);
        return true;
    }
    c->pins++;
    (void)pthread_mutex_unlock(&l->lock);
    l->waiting_sends = sends;
    c->tx_msg = msg;
    c->tx_sent = 0;
    enum tx_state state = tx_run(c, false);
    if (state == TX_UNDER_WAY) {
        timer_at(l->t->timer, &c->tx_timer, timer_now_ns() + TX_LOOK_AGAIN_NS, tx_look);
        return false;
    }
    tx_end(c, state);
    if (state == TX_LOST) {
        (void)pthread_mutex_lock(&l->lock);
        l->stats.dropped_lost += sends;
        (void)pthread_mutex_unlock(&l->lock);
    }
    return true;
}

/* --- connections come and go
 * ---------------------------------------------------------------------- */

static void conn_start(struct link *l, nng_stream *stream)
{
    struct conn *c = SPAN_NEW(struct conn);
    c->l = l;
    c->id = conn_next_id();
    c->pins = 1; /* reading */
    c->stream = stream;
    c->cap = l->direction == NET_OUT ? READ_BYTES_OUT : READ_BYTES;
    c->buf = span_malloc(c->cap);
    INVARIANT(nng_aio_alloc(&c->rx_aio, rx_done, c) == 0);
    INVARIANT(nng_aio_alloc(&c->tx_aio, NULL, NULL) == 0);
    nng_aio_set_timeout(c->rx_aio, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(c->tx_aio, NNG_DURATION_INFINITE);
    if (!link_conn_adding(l, c->id, c)) {
        conn_free(c); /* a second one, or we are closing */
        return;
    }
    (void)pthread_mutex_lock(&l->lock);
    list_push_back(&l->stream.conns, &c->node);
    (void)pthread_mutex_unlock(&l->lock);
    link_conn_added(l, c->id);
    rx_post(c);
}

static void dial_done(void *arg)
{
    struct link *l = arg;
    struct link_stream *s = &l->stream;
    int rv = nng_aio_result(s->dial_aio);
    nng_stream *stream = rv == 0 ? nng_aio_get_output(s->dial_aio, 0) : NULL;
    if (stream != NULL) {
        conn_start(l, stream);
    }
    (void)pthread_mutex_lock(&l->lock);
    s->dialing = false;
    if (rv != 0) {
        l->due_ns = timer_now_ns() + REDIAL_NS;
    }
    (void)pthread_mutex_unlock(&l->lock);
}

static void accept_done(void *arg)
{
    struct link *l = arg;
    struct link_stream *s = &l->stream;
    if (nng_aio_result(s->accept_aio) == 0) {
        conn_start(l, nng_aio_get_output(s->accept_aio, 0));
        nng_stream_listener_accept(s->listener, s->accept_aio);
        return;
    }
    /* Out of descriptors, or closing; the tick tries again. */
    (void)pthread_mutex_lock(&l->lock);
    s->accepting = false;
    (void)pthread_mutex_unlock(&l->lock);
}

/* A dialer, bound to the source address. */
static int dialer_new(struct link *l)
{
    int rv = nng_stream_dialer_alloc(&l->stream.dialer, l->url);
    if (rv == 0 && l->scheme == URL_TCP && l->t->has_source) {
        rv = nng_stream_dialer_set_addr(l->stream.dialer, NNG_OPT_LOCADDR, &l->t->source);
    }
    return rv;
}

static void stream_dial(struct link *l)
{
    struct link_stream *s = &l->stream;
    (void)pthread_mutex_lock(&l->lock);
    bool busy = s->dialing;
    bool anew = s->dialer_closed;
    if (!busy) {
        s->dialing = true;
        s->dialer_closed = false;
        s->dial_until_ns = timer_now_ns() + DIAL_TIMEOUT_NS;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (busy) {
        return;
    }
    if (anew) {
        nng_stream_dialer_free(s->dialer);
        int rv = dialer_new(l);
        INVARIANT(rv == 0); /* it worked with the same address before */
    }
    nng_stream_dialer_dial(s->dialer, s->dial_aio);
}

/* Takes what may be freed out of `conns`. */
static struct conn *conn_to_free(struct link *l)
{
    struct conn *found = NULL;
    (void)pthread_mutex_lock(&l->lock);
    LIST_EACH(it, &l->stream.conns)
    {
        struct conn *c = LIST_ENTRY(it, struct conn, node);
        if (c->closing && c->pins == 0 && c->droppers == 0) {
            found = c;
            list_remove(it);
            break;
        }
    }
    (void)pthread_mutex_unlock(&l->lock);
    return found;
}

/* The reads of closing connections; only the tick, which runs this, frees them. */
static void cancel_reads(struct link *l)
{
    struct conn *found[8];
    size_t count = 0;
    (void)pthread_mutex_lock(&l->lock);
    LIST_EACH(it, &l->stream.conns)
    {
        struct conn *c = LIST_ENTRY(it, struct conn, node);
        if (c->closing && count < sizeof found / sizeof found[0]) {
            found[count++] = c;
        }
    }
    (void)pthread_mutex_unlock(&l->lock);
    for (size_t i = 0; i < count; i++) {
        nng_aio_cancel(found[i]->rx_aio);
    }
}

static void stream_tick(struct link *l, uint64_t now_ns)
{
    struct link_stream *s = &l->stream;
    struct conn *c;
    while ((c = conn_to_free(l)) != NULL) {
        conn_free(c);
    }
    cancel_reads(l);
    (void)pthread_mutex_lock(&l->lock);
    bool give_up = s->dialing && !s->dialer_closed && now_ns > s->dial_until_ns;
    if (give_up) {
        s->dialer_closed = true;
    }
    bool accept = s->listener != NULL && !s->accepting;
    if (accept) {
        s->accepting = true;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (give_up) {
        nng_stream_dialer_close(s->dialer); /* its connect may take minutes to fail */
    }
    if (accept) {
        nng_stream_listener_accept(s->listener, s->accept_aio);
    }
}

static void stream_drop(struct link *l, uint32_t id)
{
    (void)pthread_mutex_lock(&l->lock);
    struct conn *c = l->stream.conn;
    bool ours = c != NULL && c->id == id;
    if (ours) {
        c->droppers++;
    }
    (void)pthread_mutex_unlock(&l->lock);
    if (ours) {
        conn_down(c);
        (void)pthread_mutex_lock(&l->lock);
        c->droppers--;
        (void)pthread_mutex_unlock(&l->lock);
    }
}

static int stream_open(struct link *l)
{
    struct link_stream *s = &l->stream;
    int rv;
    if ((rv = nng_aio_alloc(&s->dial_aio, dial_done, l)) != 0 ||
        (rv = nng_aio_alloc(&s->accept_aio, accept_done, l)) != 0) {
        return rv;
    }
    nng_aio_set_timeout(s->dial_aio, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(s->accept_aio, NNG_DURATION_INFINITE);
    if (l->direction == NET_OUT) {
        return dialer_new(l);
    }
    if ((rv = nng_stream_listener_alloc(&s->listener, l->url)) != 0 ||
        (rv = nng_stream_listener_listen(s->listener)) != 0) {
        return rv;
    }
    s->accepting = true;
    nng_stream_listener_accept(s->listener, s->accept_aio);
    return 0;
}

/* Nothing dials, accepts or ticks any more. */
static void conns_close(struct link *l)
{
    while (!list_is_empty(&l->stream.conns)) {
        struct conn *c = LIST_ENTRY(l->stream.conns.next, struct conn, node);
        conn_down(c);
        for (;;) {
            (void)pthread_mutex_lock(&l->lock);
            unsigned droppers = c->droppers;
            (void)pthread_mutex_unlock(&l->lock);
            if (droppers == 0) {
                break;
            }
            (void)sched_yield(); /* a few instructions of another thread */
        }
        list_remove(&c->node);
        conn_free(c);
    }
}

static void stream_close(struct link *l)
{
    struct link_stream *s = &l->stream;
    if (s->dialer != NULL) {
        nng_stream_dialer_close(s->dialer);
    }
    if (s->listener != NULL) {
        nng_stream_listener_close(s->listener);
    }
    if (s->dial_aio != NULL) {
        nng_aio_stop(s->dial_aio);
    }
    if (s->accept_aio != NULL) {
        nng_aio_stop(s->accept_aio);
    }
    conns_close(l);
    if (s->dialer != NULL) {
        nng_stream_dialer_free(s->dialer);
    }
    if (s->listener != NULL) {
        nng_stream_listener_free(s->listener);
    }
    nng_aio_free(s->dial_aio);
    nng_aio_free(s->accept_aio);
}

const struct link_ops link_stream_ops = {
    .open = stream_open,
    .dial = stream_dial,
    .tick = stream_tick,
    .hand_over = stream_hand_over,
    .drop = stream_drop,
    .close = stream_close,
};
