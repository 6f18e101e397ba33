/* sql/kv.h for session threads: a struct kv whose calls block the calling thread until the gateway
 * core, in its worker, has done the operation.
 *
 * What needs no answer from a range is done in the calling thread: begin (lazy), put, del, marks,
 * reads of own writes. A read is one hop to the worker and back, a commit with anything to commit
 * one, a rollback a post that is not waited for. Scans ask for their next page while the caller
 * consumes the one before.
 *
 * One struct kv_env per node, one struct kv per client session. */
#ifndef SPAN_COORDINATOR_KV_SESSION_H
#define SPAN_COORDINATOR_KV_SESSION_H

#include "coordinator/gateway.h"

/* What all sessions of a node share. The functions are called from any session thread, at the same
 * time. */
struct kv_env_options {
    node_id node;
    uint64_t seed; /* where transaction sequence numbers start: random */
    /* This node's clock, read now (clock_now). */
    void (*now)(void *ctx, struct tt_now *out);
    void *now_ctx;
    /* Why this node's clock is not trusted, for people; "" if it is. NULL: no reason is told. */
    void (*clock_reason)(void *now_ctx, char *out, size_t size);
    /* Gives the op to the worker that owns the gateway core, which calls gateway_op with it, in the
     * order of the posts of one thread: a cancel comes after what it is to stop. Never blocks. May
     * set op->item_kind and op->item.bytes. Not OK (CLOSED): the op stays the caller's.
     */
    span_status (*post)(void *ctx, struct gateway_op *op);
    void *post_ctx;
};

struct kv_env;

struct kv_env *kv_env_new(const struct kv_env_options *opt);
void kv_env_free(
    struct kv_env *e); /* every session of it is freed, the core has ended every operation */

/* A session; ->ops->free frees it, rolling back what is open. */
struct kv *kv_session_new(struct kv_env *env);

#endif
