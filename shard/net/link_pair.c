/* Links inside one process (inproc://): an nng pair0 socket per link, which outlives its
 * connections (nng: pipes).
 *
 * nng takes a frame at once when its pipe is idle (try_aio has no callback, which saves a thread
 * hop per frame); else the frame waits on wait_aio, whose callback then holds the baton.
 *
 * Why only inproc: nng 1.5.2's pair sockets have three faults over tcp and ipc that a node cannot
 * live with; link_stream.c tells them. */
#include "base/invariant.h"
#include "shard/net/link.h"

#include <nng/protocol/pair0/pair.h>

/* Frames nng may keep while a callback runs; in practice never full. Not 0, nng's default: a frame
 * that finds no room while its connection closes is left in the pipe, leaks, and makes the next
 * receive follow a null pointer (pair0_pipe_recv_cb against pair0_pipe_stop). */
#define RECV_BUFFER_FRAMES 512

/* nng's own redial must not run (its timers spin): as good as never. Ours closes the dialer first.
 */
#define NNG_NEVER_MS INT32_MAX

static bool pair_hand_over(struct link *l, nng_msg *msg, size_t sends)
{
    struct link_pair *p = &l->pair;
    nng_aio_set_msg(p->try_aio, msg);
    nng_send_aio(p->socket, p->try_aio);
    nng_aio_wait(p->try_aio); /* it never waits: the timeout is 0 */
    if (nng_aio_result(p->try_aio) == 0) {
        return true;
    }
    nng_aio_set_msg(p->try_aio, NULL);
    l->waiting_sends = sends;
    nng_aio_set_msg(p->wait_aio, msg);
    nng_send_aio(p->socket, p->wait_aio);
    return false;
}

/* The waiting frame was taken by the pipe, or given up. */
static void wait_done(void *arg)
{
    struct link *l = arg;
    bool lost = nng_aio_result(l->pair.wait_aio) != 0;
    if (lost) {
        nng_msg_free(nng_aio_get_msg(l->pair.wait_aio));
        nng_aio_set_msg(l->pair.wait_aio, NULL);
    }
    link_frame_done(l, lost);
}

static void pair_received(void *arg)
{
    struct link *l = arg;
    int rv = nng_aio_result(l->pair.recv_aio);
    if (rv == 0) {
        nng_msg *msg = nng_aio_get_msg(l->pair.recv_aio);
        nng_aio_set_msg(l->pair.recv_aio, NULL);
        link_frame(l, nng_msg_get_pipe(msg).id, msg);
    } else if (rv == NNG_ECLOSED || rv == NNG_ECANCELED) {
        return;
    }
    nng_recv_aio(l->pair.socket, l->pair.recv_aio);
}

/* On nng's threads. A frame that waits when connections change was meant for the one before: it
 * must not go before HELLO. */
static void pipe_event(nng_pipe pipe, nng_pipe_ev ev, void *arg)
{
    struct link *l = arg;
    switch (ev) {
    case NNG_PIPE_EV_ADD_PRE:
        if (link_conn_adding(l, pipe.id, NULL)) {
            nng_aio_cancel(l->pair.wait_aio);
        } else {
            (void)nng_pipe_close(pipe);
        }
        break;
    case NNG_PIPE_EV_ADD_POST:
        link_conn_added(l, pipe.id);
        break;
    case NNG_PIPE_EV_REM_POST:
        link_conn_removed(l, pipe.id);
        nng_aio_cancel(l->pair.wait_aio);
        break;
    case NNG_PIPE_EV_NUM:
    default:
        break;
    }
}

static void pair_dial(struct link *l)
{
    struct link_pair *p = &l->pair;
    if (p->dialed) {
        (void)nng_dialer_close(p->dialer);
        p->dialed = false;
    }
    if (nng_dialer_create(&p->dialer, p->socket, l->url) != 0) {
        return;
    }
    if (nng_dialer_set_ms(p->dialer, NNG_OPT_RECONNMINT, NNG_NEVER_MS) != 0 ||
        nng_dialer_set_ms(p->dialer, NNG_OPT_RECONNMAXT, 0) != 0 ||
        nng_dialer_start(p->dialer, NNG_FLAG_NONBLOCK) != 0) {
        (void)nng_dialer_close(p->dialer);
        return;
    }
    p->dialed = true;
}

static void pair_tick(struct link *l, uint64_t now_ns)
{
    (void)l;
    (void)now_ns;
}

static void pair_drop(struct link *l, uint32_t id)
{
    (void)l;
    (void)nng_pipe_close((nng_pipe){.id = id});
}

static int pair_open(struct link *l)
{
    struct link_pair *p = &l->pair;
    int rv = nng_pair0_open(&p->socket);
    if (rv != 0) {
        return rv;
    }
    p->open = true;
    if ((rv = nng_aio_alloc(&p->recv_aio, pair_received, l)) != 0 ||
        (rv = nng_aio_alloc(&p->try_aio, NULL, NULL)) != 0 ||
        (rv = nng_aio_alloc(&p->wait_aio, wait_done, l)) != 0 ||
        (rv = nng_socket_set_int(p->socket, NNG_OPT_RECVBUF, RECV_BUFFER_FRAMES)) != 0) {
        return rv;
    }
    nng_aio_set_timeout(p->recv_aio, NNG_DURATION_INFINITE);
    nng_aio_set_timeout(p->try_aio, NNG_DURATION_ZERO);
    nng_aio_set_timeout(p->wait_aio, NNG_DURATION_INFINITE);
    for (int ev = NNG_PIPE_EV_ADD_PRE; ev < NNG_PIPE_EV_NUM; ev++) {
        if ((rv = nng_pipe_notify(p->socket, (nng_pipe_ev)ev, pipe_event, l)) != 0) {
            return rv;
        }
    }
    if (l->direction == NET_IN && (rv = nng_listen(p->socket, l->url, NULL, 0)) != 0) {
        return rv;
    }
    nng_recv_aio(p->socket, p->recv_aio);
    return 0;
}

static void pair_close(struct link *l)
{
    struct link_pair *p = &l->pair;
    if (!p->open) {
        return;
    }
    /* First the aios: nng can strand one that comes while its socket closes. A stopped aio refuses
     * what comes later, without a callback. Then the socket, which ends the connections and waits
     * for their callbacks. Only then may the aios go. */
    if (p->wait_aio != NULL) {
        nng_aio_stop(p->wait_aio);
    }
    if (p->recv_aio != NULL) {
        nng_aio_stop(p->recv_aio);
    }
    (void)nng_close(p->socket);
    if (p->wait_aio != NULL && nng_aio_get_msg(p->wait_aio) != NULL) {
        nng_msg_free(nng_aio_get_msg(p->wait_aio)); /* refused by the stopped aio */
    }
    nng_aio_free(p->wait_aio);
    nng_aio_free(p->recv_aio);
    nng_aio_free(p->try_aio);
    p->open = false;
}

const struct link_ops link_pair_ops = {
    .open = pair_open,
    .dial = pair_dial,
    .tick = pair_tick,
    .hand_over = pair_hand_over,
    .drop = pair_drop,
    .close = pair_close,
};
