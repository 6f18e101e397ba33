/* Stores of several nodes in one thread on virtual time: a network with delays and loss, logs that
 * take time to sync and lose what was not synced in a crash, clocks off by up to epsilon. Engine
 * files are real, in a temporary folder. Deterministic for a seed. */
#ifndef SPAN_TESTS_STORE_SIM_H
#define SPAN_TESTS_STORE_SIM_H

#include "base/heap.h"
#include "base/rng.h"
#include "shard/range/store.h"

#define SIM_NODES 5

struct sim_record {
    uint8_t kind; /* 0 entry, 1 sticky, 2 tombstone */
    range_id range;
    uint64_t index;
    uint64_t term;
    uint8_t type;
    struct buf payload;
};

struct sim_node {
    struct sim *sim;
    node_id id;
    bool alive;
    uint64_t epoch;    /* counts restarts: events of an earlier life are dropped */
    int64_t offset_ns; /* of its clock */
    uint64_t earliest_ns;
    enum clock_state state; /* of its clock, as the test has it */
    struct store *store;
    struct sim_record *log; /* durable ones first */
    size_t log_count;
    size_t log_cap;
    size_t durable;
    struct buf out[SIM_NODES + 1][2];
    char dir[256];
    uint64_t tick_at;
};

struct sim {
    struct rng rng;
    uint64_t now_ns; /* true time */
    uint64_t epsilon_ns;
    double loss;
    double dup; /* share of frames that arrive a second time, up to dup_delay_ns later */
    uint64_t dup_delay_ns;
    uint64_t flush_bytes; /* of stores made from now on */
    uint64_t split_now_bytes;
    uint64_t delay_max_ns;
    uint64_t sync_max_ns;
    bool cut[SIM_NODES + 1][SIM_NODES + 1];
    struct sim_node nodes[SIM_NODES + 1]; /* 1-based */
    size_t node_count;
    size_t founders;   /* 0: all nodes; else these begin the cluster and the others join it */
    uint32_t replicas; /* of the node table, with founders; else of the stores made from now on */
    enum store_node_state states[SIM_NODES + 1]; /* of the node table, with founders */
    uint64_t nodes_version;
    struct heap events;
    char dir[200];
    /* messages for the gateway of a node */
    void (*on_gateway)(void *ctx, struct sim_node *n, const struct tt_now *now, node_id from,
                       uint8_t kind, struct slice body);
    void (*on_tick)(void *ctx, struct sim_node *n,
                    const struct tt_now *now); /* each time a node runs; may be NULL */
    uint64_t (*gateway_deadline)(void *ctx, struct sim_node *n); /* may be NULL */
    /* A message about to leave `from`; false: it is lost. May be NULL. */
    bool (*filter)(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body);
    /* What the clock of n says to a peer's (store_io.peer_clock). NULL: nothing contradicts it. */
    bool (*peer_clock)(void *ctx, struct sim_node *n, const struct tt_now *now, node_id peer,
                       const struct tt_interval *sent, const struct tt_interval *asked);
    void *ctx;
    uint64_t turns;
};

void sim_init(struct sim *s, uint64_t seed, size_t nodes);
void sim_deinit(struct sim *s);
void sim_boot(struct sim *s); /* all nodes, fresh */
/* Gives every living node the node table as it is in states and replicas (founders only). */
void sim_nodes_changed(struct sim *s);
/* The node's disk is gone (it must not be alive); its number comes back as a node that joins. */
void sim_wipe(struct sim *s, node_id id);
void sim_crash(struct sim *s, node_id id);
void sim_restart(struct sim *s, node_id id);
struct tt_now sim_clock(struct sim_node *n);
/* Runs one event; false: none is left. */
bool sim_step(struct sim *s);
void sim_run_for(struct sim *s, uint64_t ns);
/* Runs until the condition holds; false after limit_ns of virtual time. */
bool sim_run_until(struct sim *s, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns);
/* Gives a message to a node as its own gateway would, in a turn of its own. */
void sim_local(struct sim *s, node_id id, struct slice message);
/* Ends a turn that the caller ran itself on n->store. */
void sim_turn_end(struct sim_node *n, const struct tt_now *now);

#endif
