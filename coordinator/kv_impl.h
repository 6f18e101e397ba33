/* Inside of a kv session, shared by kv_session.c and kv_scan.c. */
#ifndef SPAN_COORDINATOR_KV_IMPL_H
#define SPAN_COORDINATOR_KV_IMPL_H

#include "coordinator/kv_session.h"
#include "coordinator/route/write_buffer.h"

#include <pthread.h>
#include <stdatomic.h>

enum kv_op_state {
    KV_OP_PENDING, /* with the core */
    KV_OP_WAITING, /* ... and the session thread sleeps on it */
    KV_OP_DONE,
    KV_OP_ABANDONED, /* ... and nobody wants it: freed when it is done */
};

/* One operation with all it needs, so that it can outlive the call (and, abandoned, the session)
 * that made it. */
struct kv_op {
    struct gateway_op g;
    atomic_uint state; /* enum kv_op_state; futex */
    struct buf start;
    struct buf end;
    struct schema_use *schema;
    size_t schema_cap;
};

enum kv_txn_kind {
    KV_TXN_NONE,
    KV_TXN_READ_WRITE,
    KV_TXN_READ_ONLY,
};

struct kv_ses {
    struct kv kv; /* first */
    struct kv_env *env;
    struct kv_op *op; /* of calls that wait for their own answer */

    pthread_mutex_t lock; /* of waiting, for cancel from other threads */
    struct kv_op *waiting;
    atomic_bool canceled;
    uint64_t deadline_ns;
    uint64_t lock_timeout_ns; /* 0: none */

    enum kv_txn_kind kind;
    struct kv_txn_options opt;
    struct txn_ref ref; /* none until the first lock or write */
    bool in_core;       /* the core may know the transaction: a rollback has to be told */
    span_status failed; /* not OK: nothing but rollback makes sense */
    struct span_error fail_err;
    struct write_buffer writes;
    struct buf anchor; /* first key locked or written (E1) */
    struct buf id_text;
    struct tt_ts seen;    /* of this transaction */
    struct tt_ts read_ts; /* read-only */
    struct schema_use *uses;
    size_t use_count;
    size_t use_cap;
    struct schema_use *puts;
    size_t put_count;
    size_t put_cap;

    struct tt_ts not_before;
    struct txn_id retry_age; /* C7: of the transaction that failed ... */
    uint64_t retry_until_ns; /* ... inherited by one that begins before this */

    struct txn_write *list; /* commit's */
    size_t list_cap;
    struct slice *keys; /* get_many's */
    size_t *key_index;
    size_t key_cap;
    struct read_page spare[4]; /* buffers of consumed scan pages */
    size_t spare_count;
    struct kv_op *pool[4]; /* of scans */
    size_t pool_count;
};

struct kv_op *kv_op_new(void);
void kv_op_free(struct kv_op *op);
/* Gives it to the core. CLOSED: it did not take it (state DONE). */
span_status kv_op_post(struct kv_ses *s, struct kv_op *op);
/* Until it is done; CANCELED soon after cancel (but for a commit). What it says is op->g.status,
 * also when canceled. */
void kv_op_wait(struct kv_ses *s, struct kv_op *op);
bool kv_op_is_done(struct kv_op *op);
/* Nobody wants its answer any more; frees it now or when it is done. */
void kv_op_abandon(struct kv_op *op);

/* May a read begin, and how: fills transaction, lock, timestamp, schema of op's read. */
span_status kv_read_begin(struct kv_ses *s, struct kv_op *op, enum kv_lock lock,
                          struct slice first_key, struct span_error *err);
/* Takes what a finished read says: seen, read timestamp, failure. */
span_status kv_read_end(struct kv_ses *s, struct kv_op *op, struct span_error *err);

span_status kv_scan_open(struct kv *kv, struct slice start, struct slice end, bool reverse,
                         enum kv_lock lock, size_t hint_rows, struct kv_scan **out,
                         struct span_error *err);
span_status kv_scan_next(struct kv_scan *s, struct slice *key, struct slice *value,
                         struct span_error *err);
void kv_scan_close(struct kv_scan *s);
void kv_spares_free(struct kv_ses *s); /* and the pool of operations */

#endif
