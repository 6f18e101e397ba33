/* A whole cluster without threads: real store cores, real engine files, real gateway cores, on
 * virtual time, a virtual network, virtual disks and virtual clocks. One seed gives one history,
 * event for event.
 *
 *   node:  inbox --turn--> store + gateway --> frames to peers, log records, flush jobs --> events
 *          a node that is busy or paused collects events and handles them in its next turn (rule
 * A3: the clock is read then) net:   delay, loss, doubles, late copies, reordering, one-way cuts,
 * per ordered pair of nodes disk:  a sync takes time; a crash keeps what was synced and a random
 * part of the rest, in order clock: offset within +-epsilon, drifting
 *
 * The test gives operations to gateways (mini_op) and schedules its own steps (mini_at). A crash
 * ends the gateway's operations with CLOSED or UNKNOWN_OUTCOME, as a client whose connection broke
 * would see it. */
#ifndef SPAN_TESTS_MINI_CLUSTER_H
#define SPAN_TESTS_MINI_CLUSTER_H

#include "base/heap.h"
#include "base/rng.h"
#include "coordinator/gateway.h"
#include "shard/range/store.h"

#define MINI_NODES 5

struct mini_net {
    uint64_t delay_min_ns;
    uint64_t delay_max_ns;
    double slow; /* share of frames that take up to 50 ms */
    double loss;
    double dup; /* share of frames delivered twice, the second up to dup_late_ns later */
    uint64_t dup_late_ns;
    bool reorder; /* else frames of a pair and class arrive in order */
};

struct mini_options {
    uint64_t seed;
    size_t nodes;
    uint64_t epsilon_ns;
    uint64_t sync_max_ns;
    uint64_t flush_bytes;
    uint64_t turn_ns; /* what a turn costs at most */
    struct mini_net net;
    bool verbose; /* prints faults as they happen */
};

struct mini;

void mini_options_init(struct mini_options *o, uint64_t seed);
/* All nodes fresh and started. */
struct mini *mini_new(const struct mini_options *o);
void mini_free(struct mini *m);

uint64_t mini_now(const struct mini *m); /* true time */
struct rng *mini_rng(struct mini *m);
size_t mini_node_count(const struct mini *m);
/* fn(ctx) at a true time (not before now). */
void mini_at(struct mini *m, uint64_t at_ns, void (*fn)(void *ctx), void *ctx);
/* False: nothing is left to happen. */
bool mini_step(struct mini *m);
void mini_run_for(struct mini *m, uint64_t ns);
/* Until cond(ctx), looked at after each event; false after limit_ns of virtual time. */
bool mini_run_until(struct mini *m, bool (*cond)(void *ctx), void *ctx, uint64_t limit_ns);
/* Hash of every event so far: two runs of a seed must agree. */
uint64_t mini_trace(const struct mini *m);

/* Nodes are 1 .. nodes. */
bool mini_alive(const struct mini *m, node_id node);
/* Changes when the node dies: a client's session does not live on in the next life. */
uint64_t mini_epoch(const struct mini *m, node_id node);
void mini_crash(struct mini *m, node_id node);
void mini_restart(struct mini *m, node_id node);
/* Handles nothing for so long (SIGSTOP). */
void mini_pause(struct mini *m, node_id node, uint64_t ns);
void mini_cut(struct mini *m, node_id from, node_id to, bool on);
void mini_heal(struct mini *m); /* no cuts, no loss, doubles, reordering */
struct mini_net *mini_network(struct mini *m);
void mini_want_flush(struct mini *m, node_id node);

/* The clock of a node now. */
struct tt_now mini_clock(struct mini *m, node_id node);
/* True time at which tt_after(t) will hold on the node, if its clock stays as it is. */
uint64_t mini_after(struct mini *m, node_id node, struct tt_ts t);

/* Gives op to the node's gateway, in the order of these calls; op->done is called in a turn of the
 * node, or when it crashes (CLOSED, UNKNOWN_OUTCOME). */
void mini_op(struct mini *m, node_id node, struct gateway_op *op);

struct store *mini_store(struct mini *m, node_id node);     /* NULL while it is down */
struct gateway *mini_gateway(struct mini *m, node_id node); /* NULL while it is down */

#endif
