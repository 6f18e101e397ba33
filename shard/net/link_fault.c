/* The fault hooks at work: messages that are dropped, doubled or held back on their way out (whole
 * transport_send calls) or in (whole frames). Without enable_faults nothing here runs. */
#include "base/alloc.h"
#include "shard/net/link.h"

/* One message held back; in transport.delayed until its callback has taken it out. */
struct delayed {
    struct list node;
    struct timer_node timer;
    struct link *link;
    struct buf bytes;        /* out */
    struct net_frame *frame; /* in */
};

static void delayed_free(struct delayed *d)
{
    buf_deinit(&d->bytes);
    if (d->frame != NULL) {
        net_frame_unref(d->frame);
    }
    span_free(d);
}

static void deliver_now(struct link *l, struct net_frame *f)
{
    (void)pthread_mutex_lock(&l->deliver_lock);
    l->t->callbacks.on_frame(l->t->callbacks.ctx, f);
    (void)pthread_mutex_unlock(&l->deliver_lock);
}

/* Timer thread. */
static void delayed_due(struct timer_node *n)
{
    struct delayed *d = LIST_ENTRY(n, struct delayed, timer);
    struct link *l = d->link;
    struct transport *t = l->t;
    if (d->frame == NULL) {
        (void)(link_send(l, &d->bytes) == SPAN_OK); /* a refusal is counted */
    } else {
        (void)pthread_mutex_lock(&l->peer->lock);
        bool current = d->frame->incarnation == l->peer->incarnation;
        (void)pthread_mutex_unlock(&l->peer->lock);
        if (current && !atomic_load(&t->closing)) {
            deliver_now(l, d->frame);
            d->frame = NULL;
        }
    }
    (void)pthread_mutex_lock(&t->fault_lock);
    l->fault.held--;
    bool cleared = list_is_empty(&d->node); /* delayed_clear has it, and waits for us */
    list_remove(&d->node);
    (void)pthread_mutex_unlock(&t->fault_lock);
    if (!cleared) {
        delayed_free(d);
    }
}

static void hold_back(struct link *l, uint64_t due_ns, struct buf *bytes, struct net_frame *f)
{
    struct transport *t = l->t;
    struct delayed *d = SPAN_NEW(struct delayed);
    d->link = l;
    d->frame = f;
    if (bytes != NULL) {
        buf_move(&d->bytes, bytes);
    }
    (void)pthread_mutex_lock(&t->fault_lock);
    bool closing = atomic_load(&t->closing); /* then delayed_clear may not come again */
    if (!closing) {
        list_push_back(&t->delayed, &d->node);
        l->fault.held++;
        /* Inside the lock, so that delayed_clear finds it armed. */
        timer_at(t->timer, &d->timer, due_ns, delayed_due);
    }
    (void)pthread_mutex_unlock(&t->fault_lock);
    if (closing) {
        delayed_free(d);
    }
}

void delayed_clear(struct transport *t)
{
    for (;;) {
        (void)pthread_mutex_lock(&t->fault_lock);
        struct list *first = t->delayed.next;
        bool none = first == &t->delayed;
        list_remove(first);
        (void)pthread_mutex_unlock(&t->fault_lock);
        if (none) {
            return;
        }
        struct delayed *d = LIST_ENTRY(first, struct delayed, node);
        (void)timer_cancel(t->timer, &d->timer);
        delayed_free(d);
    }
}

bool link_is_cut(struct link *l)
{
    if (!l->t->enable_faults) {
        return false;
    }
    (void)pthread_mutex_lock(&l->t->fault_lock);
    bool cut = l->fault.set.cut;
    (void)pthread_mutex_unlock(&l->t->fault_lock);
    return cut;
}

/* What happens to one message now; counts what is dropped. */
static struct fault_verdict decide(struct link *l, uint64_t now)
{
    struct transport *t = l->t;
    (void)pthread_mutex_lock(&t->fault_lock);
    struct fault_verdict v = fault_decide(&l->fault, &t->fault_rng, now);
    (void)pthread_mutex_unlock(&t->fault_lock);
    if (v.copies == 0) {
        (void)pthread_mutex_lock(&l->lock);
        l->stats.dropped_fault++;
        (void)pthread_mutex_unlock(&l->lock);
    }
    return v;
}

span_status link_fault_send(struct link *l, struct buf *bytes)
{
    uint64_t now = timer_now_ns();
    (void)pthread_mutex_lock(&l->lock);
    bool up = l->up;
    (void)pthread_mutex_unlock(&l->lock);
    if (!up) {
        return link_send(l, bytes); /* refuses, and counts it */
    }
    struct fault_verdict v = decide(l, now);
    span_status st = SPAN_OK;
    struct buf copy;
    buf_init(&copy);
    if (v.copies == 2) {
        buf_set(&copy, buf_slice(bytes));
    }
    for (unsigned i = 0; i < v.copies; i++) {
        struct buf *b = i == 0 ? bytes : &copy;
        if (v.due_ns[i] > now) {
            hold_back(l, v.due_ns[i], b, NULL);
        } else {
            st = link_send(l, b);
        }
    }
    buf_deinit(&copy);
    buf_deinit(bytes);
    return st;
}

void link_fault_deliver(struct link *l, struct net_frame *f)
{
    uint64_t now = timer_now_ns();
    struct fault_verdict v = decide(l, now);
    struct net_frame *copy = v.copies == 2 ? net_frame_copy(f) : NULL;
    if (v.copies == 0) {
        net_frame_unref(f);
    }
    for (unsigned i = 0; i < v.copies; i++) {
        struct net_frame *one = i == 0 ? f : copy;
        if (v.due_ns[i] > now) {
            hold_back(l, v.due_ns[i], NULL, one);
        } else {
            deliver_now(l, one);
        }
    }
}
