/* One link, receiving side: what a frame must satisfy before anyone else sees it. See link.c for
 * the life of a connection. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "shard/net/link.h"

#define LOG_EVERY_NS      (10 * SEC_NS) /* one line about bad input per link and this long */
#define REFUSED_REDIAL_NS (1 * SEC_NS)

/* What the handler of a frame wants done after the lock is dropped. */
struct todo {
    bool pump;
    bool drop;   /* close this connection */
    bool report; /* up changed */
    bool log;    /* a line is due */
    enum net_refusal refused;
    uint64_t refused_store;
};

static bool log_due(struct link *l, uint64_t now)
{
    if (now < l->log_due_ns) {
        return false;
    }
    l->log_due_ns = now + LOG_EVERY_NS;
    return true;
}

/* --- the peer's identity ------------------------------------------------------------------------
 */

/* The peer speaks as this incarnation, from this store: NOT if it may, and then it is the current
 * one. Incarnations are random numbers without an order, so the ones that were replaced are
 * remembered. */
static enum net_refusal peer_admit(struct peer *p, uint64_t incarnation, uint64_t store_id)
{
    enum net_refusal why = NET_REFUSED_NOT;
    (void)pthread_mutex_lock(&p->lock);
    if (p->store_expected != 0 && store_id != p->store_expected) {
        why = NET_REFUSED_STORE; /* rule F2 */
    } else if (incarnation != p->incarnation) {
        size_t known = p->retired_count < LINK_RETIRED ? p->retired_count : LINK_RETIRED;
        for (size_t i = 0; i < known; i++) {
            if (p->retired[i] == incarnation) {
                why = NET_REFUSED_INCARNATION;
            }
        }
        if (why == NET_REFUSED_NOT) {
            if (p->incarnation != 0) {
                p->retired[p->retired_count++ % LINK_RETIRED] = p->incarnation;
            }
            p->incarnation = incarnation;
        }
    }
    if (why == NET_REFUSED_NOT) {
        p->store_learnt = store_id;
    } else {
        p->last_refusal = why;
    }
    (void)pthread_mutex_unlock(&p->lock);
    return why;
}

static bool peer_is_current(struct peer *p, uint64_t incarnation)
{
    (void)pthread_mutex_lock(&p->lock);
    bool current = p->incarnation == incarnation;
    (void)pthread_mutex_unlock(&p->lock);
    return current;
}

/* --- frames, by type, with the link's lock held
 * --------------------------------------------------- */

static void link_up(struct link *l, uint64_t now, struct todo *todo)
{
    l->alive_ns = now;
    if (!l->up) {
        l->up = true;
        l->up_gen++;
        l->ping_due_ns = now;
        l->stats.connects++;
        todo->report = true;
    }
}

static void refuse(struct link *l, enum net_refusal why, uint64_t store_id, uint64_t now,
                   struct todo *todo)
{
    l->stats.refused++;
    l->wants |= WANT_REFUSE;
    l->refuse = (struct wire_refuse){.why = why, .store_id = l->t->store_id};
    todo->pump = true;
    todo->refused = why;
    todo->refused_store = store_id;
    todo->log = log_due(l, now);
    (void)pthread_mutex_lock(&l->peer->lock);
    l->peer->last_refusal = why;
    (void)pthread_mutex_unlock(&l->peer->lock);
}

static void on_hello(struct link *l, const struct wire_header *h, struct slice payload,
                     uint64_t now, struct todo *todo)
{
    struct wire_hello m;
    if (wire_hello_decode(payload, &m) != SPAN_OK) {
        refuse(l, NET_REFUSED_MALFORMED, 0, now, todo);
        return;
    }
    enum net_refusal why = NET_REFUSED_NOT;
    if (h->cluster_id != l->t->cluster_id) {
        why = NET_REFUSED_CLUSTER;

    } else if (h->from != l->peer->node || m.to != l->t->node || h->class != l->class) {
        why = NET_REFUSED_NODE;
    } else if (m.to_store_id != 0 && m.to_store_id != l->t->store_id) {

        why = NET_REFUSED_STORE;
    } else {
        why = peer_admit(l->peer, h->incarnation, m.store_id);
    }
    if (why != NET_REFUSED_NOT) {
        refuse(l, why, m.store_id, now, todo);
        return;
    }
    if (l->incarnation_in != h->incarnation) {
        l->incarnation_in = h->incarnation;
        l->sequence_in = 0;
    }
    if (h->sequence <= l->sequence_in) {
        l->stats.dropped_stale++;
        return;
    }
    l->sequence_in = h->sequence;
    l->wants |= WANT_ACK;
    l->ack_incarnation = h->incarnation;
    todo->pump = true;
    link_up(l, now, todo);
}

/* The dialer's end of a refusal, whoever refused: it is tried again, but not soon. */
static void hang_up(struct link *l, enum net_refusal why, uint64_t store_id, uint64_t now,
                    struct todo *todo)
{
    l->stats.refused++;
    l->due_ns = now + REFUSED_REDIAL_NS;
    todo->drop = true;
    todo->refused = why;
    todo->refused_store = store_id;
    todo->log = log_due(l, now);
    (void)pthread_mutex_lock(&l->peer->lock);
    l->peer->last_refusal = why;
    (void)pthread_mutex_unlock(&l->peer->lock);
}

static void on_ack(struct link *l, const struct wire_header *h, struct slice payload, uint64_t now,
                   struct todo *todo)
{
    struct wire_ack m;
    enum net_refusal why = NET_REFUSED_NOT;
    m.store_id = 0;
    if (wire_ack_decode(payload, &m) != SPAN_OK) {
        why = NET_REFUSED_MALFORMED;
    } else if (h->cluster_id != l->t->cluster_id) {
        why = NET_REFUSED_CLUSTER;

    } else if (h->from != l->peer->node || h->class != l->class) {
        why = NET_REFUSED_NODE;
    } else if (m.hello_incarnation != l->t->incarnation) {

        l->stats.dropped_stale++;
        return;
    } else {
        why = peer_admit(l->peer, h->incarnation, m.store_id);
    }
    if (why != NET_REFUSED_NOT) {
        hang_up(l, why, m.store_id, now, todo);
        return;
    }
    l->incarnation_in = h->incarnation;
    link_up(l, now, todo);
}

static void on_refuse(struct link *l, struct slice payload, uint64_t now, struct todo *todo)
{
    struct wire_refuse m;
    if (wire_refuse_decode(payload, &m) != SPAN_OK) {
        m = (struct wire_refuse){.why = NET_REFUSED_MALFORMED, .store_id = 0};
    }
    hang_up(l, m.why, m.store_id, now, todo);
}

/* A PING or DATA on a link that is up: of the right sender and later than all before? */
static bool in_sequence(struct link *l, const struct wire_header *h)
{
    if (h->incarnation != l->incarnation_in || h->sequence <= l->sequence_in ||
        !peer_is_current(l->peer, h->incarnation)) {
        l->stats.dropped_stale++;
        return false;
    }
    l->sequence_in = h->sequence;
    return true;
}

/* A frame for the listening side. True: DATA to deliver. */
static bool listener_frame(struct link *l, const struct wire_header *h, struct slice payload,
                           uint64_t now, struct todo *todo)
{
    if (h->type == WIRE_HELLO) {
        on_hello(l, h, payload, now, todo);
        return false;
    }
    if (!l->up || h->cluster_id != l->t->cluster_id || h->from != l->peer->node ||
        h->class != l->class || (h->type != WIRE_DATA && h->type != WIRE_PING)) {
        l->stats.dropped_bad++;
        todo->drop = true;
        todo->log = log_due(l, now);
        return false;
    }
    if (!in_sequence(l, h)) {
        return false;
    }
    l->alive_ns = now;
    if (h->type == WIRE_DATA) {
        l->stats.frames_in++;
        l->stats.bytes_in += payload.size;
        return payload.size > 0;
    }
    if (wire_ping_decode(payload, &l->pong_ns) == SPAN_OK) {
        l->wants |= WANT_PONG;
        todo->pump = true;
    }
    return false;
}

static void dialer_frame(struct link *l, const struct wire_header *h, struct slice payload,
                         uint64_t now, struct todo *todo)
{
    uint64_t sent_ns;
    if (h->type == WIRE_ACK) {
        on_ack(l, h, payload, now, todo);
    } else if (h->type == WIRE_REFUSE) {
        on_refuse(l, payload, now, todo);
    } else if (h->type == WIRE_PONG && l->up && h->incarnation == l->incarnation_in &&
               wire_ping_decode(payload, &sent_ns) == SPAN_OK) {
        l->alive_ns = now;
        l->stats.rtt_ns = now > sent_ns ? now - sent_ns : 0;
    } else {
        l->stats.dropped_bad++;
        todo->drop = true;
        todo->log = log_due(l, now);
    }
}

/* --- from nng to the callee
 * ----------------------------------------------------------------------- */

static void finish(struct link *l, const struct todo *todo, const char *text)
{
    struct transport_callbacks *cb = &l->t->callbacks;
    if (todo->log && todo->refused != NET_REFUSED_NOT) {
        SPAN_LOG(WARN, "link refused", "peer=%u class=%u by=%s reason=\"%s\" url=%s", l->peer->node,
                 (unsigned)l->class, l->direction == NET_IN ? "us" : "peer",
                 net_refusal_text(todo->refused), l->url);
    } else if (todo->log) {
        SPAN_LOG(WARN, "bad frame, link closed", "peer=%u class=%u url=%s reason=\"%s\"",
                 l->peer->node, (unsigned)l->class, l->url, text);
    }
    if (todo->refused != NET_REFUSED_NOT && cb->on_refused != NULL) {
        cb->on_refused(cb->ctx, l->peer->node, l->direction, todo->refused, todo->refused_store);
    }
    if (todo->report) {
        link_report(l);
    }
    if (todo->drop) {
        link_drop(l);
    } else if (todo->pump) {
        link_pump(l);
    }
}

static void deliver(struct link *l, const struct wire_header *h, nng_msg *msg, uint64_t now)
{
    struct net_frame *f = net_frame_new(msg, WIRE_HEADER_BYTES);
    f->from = l->peer->node;
    f->class = l->class;
    f->incarnation = h->incarnation;
    f->heard_ns = now;
    if (l->t->enable_faults) {
        link_fault_deliver(l, f);
    } else {
        l->t->callbacks.on_frame(l->t->callbacks.ctx, f);
    }
}

/* A peer that dialled us is there: dial it without waiting for the next attempt. */
static void dial_now(struct peer *p)
{
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        struct link *out = &p->links[NET_OUT][c];
        (void)pthread_mutex_lock(&out->lock);
        if (out->conn_id == 0) {
            out->due_ns = 0;
        }
        (void)pthread_mutex_unlock(&out->lock);
    }
    transport_kick(p->t);
}

void link_frame(struct link *l, uint32_t id, nng_msg *msg)
{
    struct wire_header h;
    struct slice payload;
    struct span_error err = {.code = SPAN_OK, .text = "not expected here"};
    struct todo todo = {0};
    bool data = false;
    uint64_t now = timer_now_ns();
    span_status st = wire_open(slice_of(nng_msg_body(msg), nng_msg_len(msg)), &h, &payload, &err);
    (void)pthread_mutex_lock(&l->lock);
    if (l->closing || l->conn_id != id) {
        l->stats.dropped_stale++; /* of a connection that does not count (any more) */
    } else if (link_is_cut(&l->peer->links[NET_IN][l->class])) {
        l->stats.dropped_fault++; /* whatever comes from the peer, answers on our own link too */
    } else if (st == SPAN_UNSUPPORTED && l->direction == NET_IN && !l->up) {
        refuse(l, NET_REFUSED_VERSION, 0, now, &todo);
    } else if (st == SPAN_UNSUPPORTED && !l->up) {
        hang_up(l, NET_REFUSED_VERSION, 0, now, &todo);
    } else if (st != SPAN_OK) {
        l->stats.dropped_bad++;
        todo.drop = true;
        todo.log = log_due(l, now);
    } else {
        l->stats.last_heard_ns = now;
        if (l->direction == NET_IN) {
            data = listener_frame(l, &h, payload, now, &todo);
        } else {
            dialer_frame(l, &h, payload, now, &todo);
        }
    }
    (void)pthread_mutex_unlock(&l->lock);
    finish(l, &todo, err.text);
    if (data) {
        deliver(l, &h, msg, now);
    } else {
        nng_msg_free(msg);
    }
    if (todo.report && l->direction == NET_IN) {
        dial_now(l->peer);
    }
}
