/* The gateway core of a node: what turns a session's reads and commits into requests to ranges, and
 * keeps the locks of this node's transactions alive. Pure: no clock, thread or socket; one owner
 * (the worker thread that owns the node's store, or a simulator) feeds it events that carry the
 * time and gives it a sink for messages.
 *
 *   session thread --post--> mailbox --> worker: gateway_op() ---.
 *   MSG_RESPONSE, MSG_WOUNDED, MSG_NODE_* --> gateway_message() --+--> directory, router,
 * transactions (coordinator/route/) gateway_deadline_ns() --> gateway_tick() --------------------'
 * |--> cfg.out: messages to ranges and nodes
 *                                                                          `--> op->done(op): the
 * session goes on
 *
 * In a worker's turn: entry points in any order, then store_turn_end (requests that the gateway put
 * into store_local are handled in that turn, and their answers come back through the store's
 * to_gateway sink during it: gateway_message may be called from there). gateway_learn whenever
 * store_descriptors_version changed. gateway_deadline_ns bounds the worker's sleep like
 * store_deadline_ns does.
 *
 * `now` in every call was read after the event was taken from its queue (rule A3).
 *
 * System tables (ids below KEY_USER_TABLE_MIN, all in range 1) that are the gateway's own; SQL
 * keeps clear of them: GATEWAY_TABLE_COUNTERS  index 0: key = be32 counter, value = u64
 * little-endian, the next number of kv alloc_ids; index 1: the gateway's own counters, counter 1 =
 * range ids GATEWAY_TABLE_SETTINGS  index 0: key = setting's name, value = its text */
#ifndef SPAN_COORDINATOR_GATEWAY_H
#define SPAN_COORDINATOR_GATEWAY_H

#include "base/metrics.h"
#include "coordinator/node_table.h"
#include "coordinator/route/txn_client.h"
#include "shard/mailbox.h"
#include "sql/kv.h"
#include "txn/txn_codec.h"

#define GATEWAY_TABLE_COUNTERS 1000
#define GATEWAY_TABLE_SETTINGS 1001
#define GATEWAY_TABLE_NODES    1002 /* index 0, key "table": the node table (node_table.h) */

/* An operation without a deadline of its own gets this one: nothing hangs for ever. */
#define GATEWAY_OP_NS_DEFAULT (10 * SEC_NS)
#define GATEWAY_MOVE_NS       (120 * SEC_NS) /* a new replica gets all of the range's data */

struct gateway;

/* What the gateway asks of the server around it. Called on the core's thread; must not block for
 * long. */
struct gateway_host {
    void *ctx;
    /* This node's part of a SHOW: fills *out (kv_table_init, kv_table_add_row); the gateway frees
     * it. Rows of all nodes are put one after the other when their columns agree. RANGES: the first
     * column is the range's id and the gateway keeps one row of each id: the one with the largest
     * number in a column named "applied" among rows whose "leader" cell equals their "node" cell,
     * if the table has these columns; else the first that came. "leader" and "node" are node
     * numbers as text. A column "node" of a node that does not answer is filled by the gateway
     * (NODES, CLOCKS); a column "state" or "status" then says "unreachable". */
    span_status (*show)(void *ctx, const struct tt_now *now, enum kv_show what,
                        struct kv_table *out, struct span_error *err);
    /* Applies a cluster setting on this node. INVALID: no such setting, or a bad value (the text
     * says which). */
    span_status (*set)(void *ctx, const struct tt_now *now, const char *name, const char *value,
                       struct span_error *err);
    /* A node table as range 1 has it; older than what is in force: ignored. An error keeps it from
     * being in force here: it is offered again. */
    span_status (*nodes)(void *ctx, const struct tt_now *now, const struct node_table *t,
                         struct span_error *err);
    /* The table in force; version 0: the nodes this one was started with. */
    void (*nodes_get)(void *ctx, struct node_table *out);
};

struct gateway_config {
    node_id self;
    uint64_t incarnation; /* of this process; not 0 */
    node_id nodes[LIMIT_PEERS];
    size_t node_count;
    uint64_t seed;           /* of request ids and internal transaction ids */
    struct metrics *metrics; /* may be NULL */
    /* Where messages go: the own node's store_local, or a peer's outbox. cls as enum store_class.
     */
    void *out_ctx;
    struct buf *(*out)(void *ctx, node_id to, unsigned cls);
    struct gateway_host host; /* functions may be NULL (tests) */
};

/* ---- operations ---- */

enum gateway_op_kind {
    GATEWAY_READ,     /* op->read */
    GATEWAY_COMMIT,   /* op->commit */
    GATEWAY_ROLLBACK, /* op->txn: its locks go; not answered before it is done, which is at once */
    GATEWAY_CANCEL,   /* op->target, given before, stops with CANCELED (but for a commit) */
    GATEWAY_ALLOC,    /* op->u.alloc */
    GATEWAY_SPLIT,    /* op->u.split */
    GATEWAY_TRANSFER, /* op->u.transfer */
    GATEWAY_SHOW,     /* op->u.show */
    GATEWAY_SET,      /* op->u.set */
    GATEWAY_STATUS,   /* op->u.status */
    GATEWAY_MOVE,     /* op->u.move */
    GATEWAY_MERGE,    /* op->u.merge */
};

/* One operation. The caller owns it and everything it points to, and does not touch it between the
 * post and done(). */
struct gateway_op {
    struct mailbox_item item; /* for the way to the core; the core does not use it */
    unsigned item_kind;       /* the poster's: tells its mailbox items apart */
    enum gateway_op_kind kind;
    uint64_t deadline_ns; /* monotonic; 0: GATEWAY_OP_NS_DEFAULT from its arrival */
    void (*done)(struct gateway_op *
                     op); /* on the core's thread, exactly once, last thing the core does with it */
    void *owner;          /* the caller's */

    struct txn_ref txn; /* the read-write transaction it belongs to; id none: none */
    struct txn_read read;
    struct txn_commit commit;
    struct gateway_op *target;

    union {
        struct {
            uint32_t counter;
            uint64_t count;
            uint64_t seen_max;
            uint64_t first; /* out */
        } alloc;

        struct {
            struct slice key;
        } split;

        struct {
            range_id range;
            node_id node;
        } transfer;

        struct {
            range_id range;
            node_id add; /* either may be 0 */
            node_id remove;
            bool
                wish; /* somebody's words: what makes no sense is refused before anything is done */
        } move;

        struct {
            range_id left; /* neighbours, in either order */
            range_id right;
        } merge;

        struct {
            enum kv_show what;
            struct kv_table table; /* out, the caller's */
        } show;

        struct {
            const char *name;
            const char *value;
        } set;

        struct {
            struct txn_id txn;
            struct slice anchor;
            enum kv_txn_outcome outcome; /* out */
            struct tt_ts ts;             /* out: committed at */
        } status;
    } u;

    span_status status; /* out */
    struct span_error err;

    struct list in_core; /* the core's */
    void *core;
};

/* ---- the core ---- */

struct gateway *gateway_new(const struct gateway_config *cfg);
/* After gateway_close: no operation is under way. */
void gateway_free(struct gateway *g);
/* Ends every operation with CLOSED (commits under way: UNKNOWN_OUTCOME); later ones end so at once.
 */
void gateway_close(struct gateway *g, const struct tt_now *now);

void gateway_op(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
/* MSG_RESPONSE, MSG_WOUNDED, MSG_NODE_REQUEST, MSG_NODE_RESPONSE of a node (also the own).
 * Malformed ones are dropped and counted. */
void gateway_message(struct gateway *g, const struct tt_now *now, node_id from, uint8_t kind,
                     struct slice body);
void gateway_tick(struct gateway *g, const struct tt_now *now);
uint64_t gateway_deadline_ns(const struct gateway *g);
/* The link to a node broke: requests to it are sent elsewhere at once instead of after a time-out.
 */
void gateway_peer_lost(struct gateway *g, const struct tt_now *now, node_id node);
/* The link is up (again). Without this call a lost node is tried again after a second. */
void gateway_peer_up(struct gateway *g, const struct tt_now *now, node_id node);
/* What the own store knows of ranges and their leaders. */
void gateway_learn(struct gateway *g, const struct tt_now *now, const struct range_descriptor *all,
                   size_t count);

/* Other nodes than before: whom questions go to. */
void gateway_set_nodes(struct gateway *g, const node_id *nodes, size_t count);
/* The own store wants a range split at this key (store_split_wanted): done in the background, one
 * at a time; asked again it goes on. */
void gateway_auto_split(struct gateway *g, const struct tt_now *now, struct slice key);
/* There may be a newer node table in range 1: reads it, at most twice a second. */
void gateway_refresh_nodes(struct gateway *g, const struct tt_now *now);

/* For tests and SHOW: open transactions with locks, requests under way, operations under way. */
struct gateway_stats {
    size_t txns;
    size_t requests;
    size_t ops;
};

void gateway_stats_get(const struct gateway *g, struct gateway_stats *out);

#endif
