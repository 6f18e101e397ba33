/* Inside of the gateway core, shared by gateway.c (operations, messages), gateway_admin.c (ids,
 * split, transfer, settings) and gateway_show.c (SHOW, questions between nodes). */
#ifndef SPAN_COORDINATOR_GATEWAY_IMPL_H
#define SPAN_COORDINATOR_GATEWAY_IMPL_H

#include "coordinator/gateway.h"

struct job;

/* Numbers drawn from a counter row, and who waits for more. */
struct counter {
    uint64_t id;
    uint64_t next; /* [next, end) is ours to give */
    uint64_t end;
    uint64_t block;
    uint64_t first;      /* of a counter whose row does not exist */
    struct list waiting; /* id_wait */
    struct job *refill;
};

struct id_wait {
    struct list link;
    uint64_t count;
    uint64_t seen_max;
    uint64_t deadline_ns;
    void (*got)(struct id_wait *w, const struct tt_now *now, span_status st, uint64_t first);
};

enum job_kind {
    JOB_ALLOC,  /* waits for ids */
    JOB_REFILL, /* draws a block of a counter, by a transaction of its own */
    JOB_SPLIT,
    JOB_TRANSFER,
    JOB_SHOW,
    JOB_SET,
    JOB_SETTINGS, /* start: stored settings are applied on this node */
    JOB_STATUS,
    JOB_MOVE,
    JOB_MERGE,
    JOB_NODES, /* reads the node table, or changes it */
};

/* One operation that takes more than one step. */
struct job {
    struct list link; /* gateway->jobs */
    struct heap_node timer;
    struct gateway *g;
    enum job_kind kind;
    struct gateway_op *op; /* NULL: the gateway's own */
    uint64_t deadline_ns;
    void (*wake)(struct job *j, const struct tt_now *now); /* at its timer */

    struct id_wait ids;
    struct counter *counter;
    uint64_t id;   /* split: the new range's */
    bool checked;  /* move: the leader has nothing against it */
    uint64_t base; /* refill: the block on its way */
    uint64_t size;
    uint64_t backoff_ns;
    bool reading; /* read under way */
    bool committing;
    struct txn_ref txn;
    struct txn_read read;
    struct txn_commit commit;
    struct txn_write write;
    struct buf key;
    struct slice key_slice;
    struct buf value;
    struct route_request rr;
    struct read_span span;
    struct txn_status status;

    /* questions to nodes */
    size_t asked; /* answers missing */
    bool answered[LIMIT_PEERS + 1];
    struct kv_table table;
    bool has_table;
    struct span_error err; /* first refusal */
    uint64_t question;     /* node_request.request_id */
};

struct gateway {
    struct gateway_config cfg;
    bool closed;
    struct buf nowhere; /* where messages go once closed */
    struct directory dir;
    struct router *router;
    struct txn_clients *clients;
    struct list ops; /* gateway_op under way */
    size_t op_count;
    struct list jobs;
    struct heap timers; /* jobs */
    struct map64 counters;
    struct map64 questions; /* node_request.request_id -> job */
    struct arena arena;     /* of the message being handled */
    uint64_t next_question;
    uint32_t next_seq; /* of internal transactions */
    bool settings_asked;
    struct job *nodes_read; /* the node table is being read; NULL: not */
    uint64_t nodes_read_ns;
    uint64_t autosplit_ns; /* no further one before */
    uint64_t bad_messages;
};

/* gateway.c */
void op_complete(struct gateway *g, struct gateway_op *op, span_status st,
                 const struct span_error *err);
struct buf *gateway_send(struct gateway *g, node_id to);
struct txn_ref gateway_txn(struct gateway *g, const struct tt_now *now);
struct job *job_new(struct gateway *g, enum job_kind kind, struct gateway_op *op,
                    uint64_t deadline_ns);
/* Answers its operation, if it has one, and frees it. */
void job_end(struct job *j, const struct tt_now *now, span_status st, const struct span_error *err);
/* Stops whatever it has under way, then job_end. */
void job_stop(struct job *j, const struct tt_now *now, span_status st);

/* gateway_admin.c */
void admin_alloc(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_split(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_transfer(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_status(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_set(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_load_settings(struct gateway *g, const struct tt_now *now);
void admin_move(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void admin_merge(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void counters_free(struct gateway *g);
void job_again(struct job *j, const struct tt_now *now,
               void (*wake)(struct job *j, const struct tt_now *now));
/* The key of row 0 bytes long in a system table; more is appended. */
void gateway_system_key(struct buf *out, uint32_t table, uint16_t index);
/* A transaction of the gateway's own that changes the row j->key: read with an X lock, then commit
 * of j->value. */
void job_row_read(struct job *j, const struct tt_now *now,
                  void (*done)(struct txn_read *r, const struct tt_now *now));
void job_row_commit(struct job *j, const struct tt_now *now,
                    void (*done)(struct txn_commit *c, const struct tt_now *now));

/* gateway_nodes.c */
void admin_change_nodes(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
void nodes_job_gone(struct job *j); /* before a job of JOB_NODES is freed */

/* gateway_show.c */
void show_start(struct gateway *g, const struct tt_now *now, struct gateway_op *op);
/* Asks every other node; `wake` runs when all have answered, were lost, or at the job's timer. */
void ask_nodes(struct job *j, const struct tt_now *now, uint8_t node_op, uint32_t arg,
               struct slice text, uint64_t patience_ns);
void show_on_request(struct gateway *g, const struct tt_now *now, node_id from,
                     const struct node_request *m);
void show_on_response(struct gateway *g, const struct tt_now *now, node_id from,
                      const struct node_response *m);
void show_peer_lost(struct gateway *g, const struct tt_now *now, node_id node);
void questions_drop(struct job *j);

#endif
