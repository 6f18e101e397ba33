/* Received frames: nng's message with a reference count, so that its bytes go to the workers
 * without a copy. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/list.h"
#include "shard/net/link.h"

#include <stdatomic.h>

struct frame {
    struct net_frame pub;
    atomic_uint refs;
    nng_msg *msg;
};

struct net_frame *net_frame_new(nng_msg *msg, size_t payload_at)
{
    struct frame *f = SPAN_NEW(struct frame);
    atomic_init(&f->refs, 1);
    f->msg = msg;
    f->pub.payload =
        slice_of((const uint8_t *)nng_msg_body(msg) + payload_at, nng_msg_len(msg) - payload_at);
    return &f->pub;
}

struct net_frame *net_frame_copy(const struct net_frame *f)
{
    nng_msg *msg;
    INVARIANT(nng_msg_alloc(&msg, f->payload.size) == 0);
    memcpy(nng_msg_body(msg), f->payload.data, f->payload.size);
    struct net_frame *copy = net_frame_new(msg, 0);
    copy->from = f->from;
    copy->class = f->class;
    copy->incarnation = f->incarnation;
    copy->heard_ns = f->heard_ns;
    return copy;
}

void net_frame_ref(struct net_frame *pub)
{
    struct frame *f = LIST_ENTRY(pub, struct frame, pub);
    (void)atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
}

void net_frame_unref(struct net_frame *pub)
{
    struct frame *f = LIST_ENTRY(pub, struct frame, pub);
    if (atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1) {
        nng_msg_free(f->msg);
        span_free(f);
    }
}
