/* A whole cluster in one thread on virtual time: production store, gateway, Raft, log and engine of
 * every node over a simulated network (sim_net.h), disks (sim_disk.h, sim_vfs.h) and clocks
 * (sim_clock.h). One seed gives one history, event for event. What is written here is only what
 * shard/node.c and the gateway loop do with threads: queue, turn, persist -> send, flush.
 *
 *   node: inbox --turn--> store + gateway --> frames to peers, a log batch, flush jobs --> events
 *         a node that is busy or paused collects events and handles them in its next turn (rule
 *         A3: the clock is read then)
 *   log:  wal_submit in the turn; wal_run when the sync ends, which posts PERSISTED
 *
 * The run gives operations to gateways (cluster_op) and schedules its own steps (cluster_at). A
 * crash ends the gateway's operations with CLOSED or UNKNOWN_OUTCOME, as a client whose connection
 * broke would see it. */
#ifndef SPAN_TESTS_SIM_SIM_CLUSTER_H
#define SPAN_TESTS_SIM_SIM_CLUSTER_H

#include "base/heap.h"
#include "base/rng.h"
#include "coordinator/gateway.h"
#include "shard/range/store.h"
#include "tests/sim/sim_clock.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/sim_net.h"
#include "tests/sim/sim_tally.h"

struct cluster_options {
    uint64_t seed;
    size_t nodes; /* up to SIM_NODES_MAX */
    uint64_t epsilon_ns;
    uint64_t sync_max_ns;
    double sync_stall; /* share of syncs that stall */
    uint64_t flush_bytes;
    uint64_t split_now_bytes; /* 1: the right side of every split is built ahead */
    uint64_t segment_bytes;   /* of the log */
    uint64_t log_tail;        /* entries kept for members that are behind; others get a snapshot */
    uint64_t turn_ns;         /* what a turn costs at most */
    struct sim_net net;
    bool trace; /* prints every event */
};

struct cluster;
struct sim_check;

/* What the checks of a run (sim_check.h) get to see. Functions may be NULL. */
struct cluster_watch {
    void *ctx;
    /* An entry went to the log, or came out of it at a start (replay). */
    void (*entry)(void *ctx, node_id node, range_id range, uint64_t index, uint64_t term,
                  uint8_t type, struct slice payload);
    void (*turn)(void *ctx, node_id node, const struct tt_now *now);
    void (*down)(void *ctx, node_id node);
};

void cluster_options_init(struct cluster_options *o, uint64_t seed);
struct cluster *cluster_new(const struct cluster_options *o);
/* All nodes, fresh. Separate, so that a watch can be set before. */
void cluster_boot(struct cluster *c);
void cluster_free(struct cluster *c);
void cluster_watch(struct cluster *c, const struct cluster_watch *w);

uint64_t cluster_now(const struct cluster *c); /* true time */
struct rng *cluster_rng(struct cluster *c);
size_t cluster_node_count(const struct cluster *c);
/* fn(ctx) at a true time (not before now). */
void cluster_at(struct cluster *c, uint64_t at_ns, void (*fn)(void *ctx), void *ctx);
/* False: nothing is left to happen. */
bool cluster_step(struct cluster *c);
void cluster_run_for(struct cluster *c, uint64_t ns);
/* Until cond(ctx), looked at after each event; false after limit_ns of virtual time. */
bool cluster_run_until(struct cluster *c, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns);
/* Hash of every event so far: two runs of a seed must agree. */
uint64_t cluster_trace(const struct cluster *c);
uint64_t cluster_events(const struct cluster *c);
/* One more of these. */
void cluster_count(struct cluster *c, enum sim_tally what);
/* Everything counted so far, also by network and disks: TALLY_COUNT numbers. */
void cluster_tally(struct cluster *c, uint64_t *out);
/* A line of the event log, if there is one. */
void cluster_say(struct cluster *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The run found a violation: the first one is kept. */
void cluster_fail(struct cluster *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *cluster_failure(const struct cluster *c); /* NULL: none */

/* Nodes are 1 .. nodes. */
bool cluster_alive(const struct cluster *c, node_id node);
/* Out for good: its log was damaged and it refused to start. */
bool cluster_lost(const struct cluster *c, node_id node);
/* Changes when the node dies: a client's session does not live on in the next life. */
uint64_t cluster_epoch(const struct cluster *c, node_id node);
void cluster_crash(struct cluster *c, node_id node, enum sim_crash how);

/* Where a node dies of itself. */
enum sim_death {
    SIM_DEATH_ALLOC, /* an allocation in a turn or in the log's thread fails: the process aborts */
    SIM_DEATH_LOG,   /* an operation that changes the log's disk is its last */
    SIM_DEATH_FILES, /* one that changes the range files' disk */
};

/* The node dies at the n-th (0: the next) of these from now on, in the middle of whatever it does;
 * the last arming of a place counts. A crash and cluster_heal disarm. */
void cluster_arm(struct cluster *c, node_id node, enum sim_death where, uint64_t n,
                 enum sim_crash how);
/* False: it refused to start (no space; or it is lost now), or died meanwhile (cluster_arm). */
bool cluster_restart(struct cluster *c, node_id node);
/* Handles nothing for so long (SIGSTOP). */
void cluster_pause(struct cluster *c, node_id node, uint64_t ns);
/* Flips a bit in the log of a node that is down; false: nowhere to. */
bool cluster_flip(struct cluster *c, node_id node);
/* Flips a bit of a row in a range file of a node, up or down; false: there is none. */
bool cluster_rot(struct cluster *c, node_id node, struct slice prefix, size_t key_size);
/* It was done to this node: damaged files are no finding there. */
bool cluster_is_rotten(const struct cluster *c, node_id node);
struct sim_net *cluster_net(struct cluster *c);
struct sim_disk *cluster_disk(struct cluster *c, node_id node);
/* No cuts, loss, doubles, reordering; disks have room and work. */
void cluster_heal(struct cluster *c);
void cluster_want_flush(struct cluster *c, node_id node);

/* Clocks beyond their bound (sim_clock.h). A node whose clock is out and that has not noticed
 * breaks the contract of external consistency for all (rule B8): from its first such reading until
 * a lease after its last. */
bool cluster_in_contract(const struct cluster *c, uint64_t since_ns); /* all the time since then */
struct sim_clock *cluster_sim_clock(struct cluster *c, node_id node);
/* The clock of a node now. */
struct tt_now cluster_clock(struct cluster *c, node_id node);
/* True time at which tt_after(t) will hold on the node, if its clock stays as it is. */
uint64_t cluster_after(struct cluster *c, node_id node, struct tt_ts t);

/* Gives op to the node's gateway; op->done is called in a turn of the node, or when it crashes
 * (CLOSED, UNKNOWN_OUTCOME). */
void cluster_op(struct cluster *c, node_id node, struct gateway_op *op);

struct store *cluster_store(struct cluster *c, node_id node);     /* NULL while it is down */
struct gateway *cluster_gateway(struct cluster *c, node_id node); /* NULL while it is down */
/* What waits to be sent to peers. */
uint64_t cluster_outbox_bytes(struct cluster *c, node_id node);
uint64_t cluster_log_bytes(struct cluster *c, node_id node);
/* Segments of the log that are still needed. */
uint64_t cluster_log_segments(struct cluster *c, node_id node);

#endif
