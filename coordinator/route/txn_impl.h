/* Inside of txn_client.h's machine, shared by txn_client.c (table, locks, wounds), txn_read.c and
 * txn_commit.c. */
#ifndef SPAN_COORDINATOR_ROUTE_TXN_IMPL_H
#define SPAN_COORDINATOR_ROUTE_TXN_IMPL_H

#include "coordinator/route/txn_client.h"

/* A range where the transaction asked for locks. */
struct touched {
    range_id range;
    uint64_t term;     /* whose leader granted them (C1); 0: no answer yet */
    node_id node;      /* that leader, or the node last asked */
    struct buf anchor; /* a key of the transaction in it */
};

struct txn_client {
    struct list link; /* txn_clients->open */
    struct txn_ref ref;
    struct touched *touched;
    size_t touched_count;
    size_t touched_cap;
    struct tt_ts seen;
    span_status dead;  /* not OK: gone at the ranges, and why */
    struct list reads; /* read_op */
    struct commit_op *commit;
};

struct txn_clients {
    struct router *router;
    struct directory *dir;
    struct mapb by_id;
    struct list open;
    struct heap timers;       /* commit_op */
    uint64_t keepalive_at_ns; /* 0: none due */
    struct arena scratch;     /* of the request being built */
    struct list free_ops;     /* read_op */
    struct list free_pieces;  /* read_piece */
};

/* txn_client.c */
struct txn_client *client_find(struct txn_clients *t, const struct txn_id *id);
struct txn_client *client_get(struct txn_clients *t, const struct tt_now *now,
                              const struct txn_ref *ref);
void client_free(struct txn_clients *t, struct txn_client *x);
struct touched *client_touch(struct txn_client *x, range_id range);
struct touched *client_touched(struct txn_client *x, range_id range); /* NULL: none */
/* It is over at the ranges: reads under way end with `why`, locks go everywhere (but at `except`).
 */
void client_kill(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                 span_status why, range_id except);
/* OP_RELEASE, not waited for, to every range asked for locks for which skip() is false (NULL: all).
 */
void client_release(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                    bool (*skip)(void *ctx, range_id range), void *ctx);
void send_release(struct txn_clients *t, const struct txn_client *x, range_id range,
                  struct slice anchor, node_id node);
/* First key of table id, and first after all of it. */
#define TABLE_PREFIX_BYTES 5
struct slice table_prefix(uint8_t out[TABLE_PREFIX_BYTES], uint64_t table_id);
/* What to call a key that has to be named: the empty one is no anchor. */
struct slice anchor_of(struct slice key);
void fail_text(struct span_error *err, span_status st, const struct range_response *resp);

/* The end of a request as it is to be told: a status and, if there are words for it, a response
 * (the one that came, or a made one). IN_FUTURE: the timestamp was not beyond this node's latest
 * (rule A6 is checked here first), so the two clocks are further apart than they may be: CLOCK. No
 * response: route_explain's words. */
struct refusal {
    span_status status;
    const struct range_response *resp; /* into made, the caller's, or NULL */
    struct range_response made;
    char text[160];
};

void refusal_init(struct refusal *f, const struct router *r, const struct route_request *rr,
                  span_status st, const struct range_response *resp);

/* txn_read.c */
void read_end(struct txn_clients *t, const struct tt_now *now, struct read_op *op, span_status st,
              const struct range_response *resp);
void client_end_reads(struct txn_clients *t, const struct tt_now *now, struct txn_client *x,
                      span_status why);
/* The read goes on without its transaction, only to be ended. */
void read_detach(struct read_op *op);
struct read_op *read_of_link(struct list *link);
void read_pools_free(struct txn_clients *t);

/* txn_commit.c */
void commit_timer(struct txn_clients *t, const struct tt_now *now, struct heap_node *n);
void commit_close(struct commit_op *op, const struct tt_now *now);
void commit_note_wound(struct commit_op *op, span_status why);

#endif
