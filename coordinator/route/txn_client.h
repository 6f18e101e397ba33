/* Client transactions of a gateway, as pure machines: reads over ranges with the locks they take,
 * and commit (one range, two-phase, validation). The router carries the requests; the write buffer
 * stays with the session until commit.
 *
 *   (none) --first locking read or commit--> OPEN --txn_commit_start--> COMMITTING --> gone
 *                                             |  `--txn_rollback--> gone (OP_RELEASE, not waited
 * for)
 *                                             `--wound, lost locks, any retryable refusal--> DEAD:
 * released everywhere at once; whatever is asked next gets that status, until txn_rollback
 *
 * Rules: every range with a lock is a participant and names the term that granted it (C1); the
 * coordinator is the range of the first key locked or written, so that the id is known before
 * COMMIT (E1); 40001 only on a refusal when no send is unanswered, or after an abort record (C11);
 * locks of a dead transaction go without waiting for the client (C5).
 *
 * Lock-free reads need no transaction here: txn.id none. */
#ifndef SPAN_COORDINATOR_ROUTE_TXN_CLIENT_H
#define SPAN_COORDINATOR_ROUTE_TXN_CLIENT_H

#include "coordinator/route/router.h"
#include "sql/kv.h"

struct txn_clients; /* of one gateway */

struct txn_ref {
    struct txn_id id;  /* none: a lock-free read */
    struct txn_id age; /* of the first try (C7) */
};

/* ---- reads ---- */

struct read_row {
    size_t at; /* in page->bytes: key, then value */
    uint32_t key_size;
    uint32_t value_size;
    uint32_t item; /* points: index of the key asked for */
};

/* Rows of one piece of a scan (or of the points of one range), in the order asked for. What follows
 * a piece that is not complete is [rest_start, rest_end) and comes before the next page's rows. */
struct read_page {
    struct buf bytes;
    struct read_row *rows;
    size_t count;
    size_t cap;
    bool complete;
    struct buf rest_start;
    struct buf rest_end;
};

static inline struct slice read_row_key(const struct read_page *p, const struct read_row *r)
{
    return slice_of(p->bytes.data + r->at, r->key_size);
}

static inline struct slice read_row_value(const struct read_page *p, const struct read_row *r)
{
    return slice_of(p->bytes.data + r->at + r->key_size, r->value_size);
}

struct txn_read {
    /* in: what */
    const struct slice *keys; /* points; key_count 0: the span */
    size_t key_count;
    struct slice start;
    struct slice end; /* empty: to the end of the key space */
    bool reverse;
    uint32_t page_rows; /* rows wanted of each range at most; 0: LIMIT_RESULT_PAGE_ROWS */
    size_t parallel; /* ranges of a span asked at once; 0: 1. The rest of the span is in `rest` */
    /* in: how */
    uint8_t lock;           /* enum read_lock; not NONE only with a transaction */
    enum kv_read_mode mode; /* lock NONE and read_ts none: how it is chosen */
    struct tt_ts read_ts;   /* in and out: the timestamp of a lock-free read */
    uint64_t staleness_ns;  /* KV_READ_MAX_STALENESS */
    const struct schema_use *
        schema; /* versions in force that are relied on; those of tables not touched are left out */
    size_t schema_count;
    uint64_t deadline_ns;
    uint64_t lock_wait_ns; /* with a lock: a range may wait for others so long; 0: deadline_ns */

    /* out */
    struct read_page *pages; /* [page_count], in order; owned by the txn_read, reused */
    size_t page_count;
    size_t page_cap;
    bool complete; /* pages reach to the span's end (but for their own rests) */
    struct buf
        rest; /* !complete: first key not asked for (reverse: exclusive end of what is left) */
    struct tt_ts seen; /* newest version examined */
    span_status status;
    struct span_error err;
    void (*done)(struct txn_read *r, const struct tt_now *now);
    void *owner;

    struct read_op *op; /* the machine's */
};

void txn_read_init(struct txn_read *r);
void txn_read_deinit(struct txn_read *r); /* not while under way */

/* ---- commit ---- */

struct txn_commit {
    const struct txn_write *writes; /* in key order, borrowed until done */
    size_t write_count;
    const struct schema_use *schema;
    size_t schema_count;
    const struct schema_use
        *schema_puts; /* DDL: versions that come into force in every range that covers the table */
    size_t schema_put_count;
    struct slice anchor; /* key that the transaction's public id names (E1); empty: the coordinator
                            is free to choose */
    struct tt_ts seen;   /* newest version examined by lock-free reads of the transaction */
    uint64_t deadline_ns;

    /* out */
    struct tt_ts ts;       /* commit timestamp; none when nothing was written */
    struct tt_ts seen_out; /* everything the transaction examined */
    span_status status;
    struct span_error err;
    void (*done)(struct txn_commit *c, const struct tt_now *now);
    void *owner;
};

/* ---- status ---- */

struct txn_status {
    struct txn_id txn;
    struct slice anchor;
    uint64_t deadline_ns;
    uint8_t state; /* out: enum txn_state */
    struct tt_ts ts;
    span_status status;
    struct span_error err;
    void (*done)(struct txn_status *s, const struct tt_now *now);
    void *owner;
    struct route_request rr; /* the machine's */
    struct txn_clients *set;
};

/* ---- the machine ---- */

struct txn_clients *txn_clients_new(struct router *router);
void txn_clients_free(struct txn_clients *t);

/* done may be called before these return. */
void txn_read_start(struct txn_clients *t, const struct tt_now *now, const struct txn_ref *ref,
                    struct txn_read *r);
/* Ends it with `why` now; done is called. */
void txn_read_stop(struct txn_clients *t, const struct tt_now *now, struct txn_read *r,
                   span_status why);
void txn_commit_start(struct txn_clients *t, const struct tt_now *now, const struct txn_ref *ref,
                      struct txn_commit *c);
/* Reads of it that are under way end with CANCELED. Not while it commits. Harmless when it is not
 * known. */
void txn_rollback(struct txn_clients *t, const struct tt_now *now, const struct txn_id *id);
void txn_status_start(struct txn_clients *t, const struct tt_now *now, struct txn_status *s);
void txn_status_stop(struct txn_clients *t, const struct tt_now *now, struct txn_status *s,
                     span_status why);

void txn_on_wounded(struct txn_clients *t, const struct tt_now *now, const struct txn_wounded *m);
void txn_clients_tick(struct txn_clients *t, const struct tt_now *now); /* keep-alives */
/* Reads under way end with CLOSED, commits with UNKNOWN_OUTCOME (CLOSED if nothing was sent). */
void txn_clients_close(struct txn_clients *t, const struct tt_now *now);
uint64_t txn_clients_deadline_ns(const struct txn_clients *t);
size_t txn_clients_count(const struct txn_clients *t);

#endif
