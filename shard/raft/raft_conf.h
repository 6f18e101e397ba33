/* Configurations of a range: who votes and who only listens (learners).
 *
 * A change is one log entry of type RAFT_ENTRY_CONF whose payload is the whole new configuration;
 * it is in force from the moment it is appended (Raft dissertation, section 4.1) and differs from
 * the one before it by at most one voter, so that majorities of neighbours intersect. Leases
 * outlive a step: rule B4, see raft_lease.h. A configuration is a value: copy it freely. */
#ifndef SPAN_SHARD_RAFT_RAFT_CONF_H
#define SPAN_SHARD_RAFT_RAFT_CONF_H

#include "base/buf.h"
#include "base/codec.h"
#include "base/limits.h"
#include "base/status.h"

struct raft_member {
    uint32_t node; /* not 0 */
    bool voter;    /* false: learner, gets the log but neither votes nor counts */
};

/* Members in order of insertion, which is the order of rank. Empty: a replica that does not know
 * its configuration yet (born as a learner, before the first snapshot). */
struct raft_conf {
    size_t count;
    struct raft_member members[LIMIT_REPLICAS];
};

void raft_conf_init(struct raft_conf *c);
/* Adds a member, or changes the role of one. TOO_LARGE beyond LIMIT_REPLICAS. INVALID for node 0.
 */
span_status raft_conf_set(struct raft_conf *c, uint32_t node, bool voter) SPAN_CHECKED;
/* Removes a member. NOT_FOUND if it is none. */
span_status raft_conf_remove(struct raft_conf *c, uint32_t node) SPAN_CHECKED;

bool raft_conf_has(const struct raft_conf *c, uint32_t node); /* voter or learner */
bool raft_conf_is_voter(const struct raft_conf *c, uint32_t node);
size_t raft_conf_voters(const struct raft_conf *c);
/* How many voters make a majority; 0 for a configuration without voters (no majority exists). */
size_t raft_conf_quorum(const struct raft_conf *c);
bool raft_conf_eq(const struct raft_conf *a, const struct raft_conf *b);
/* How many voters are in one of them only. A legal step is at most 1. */
size_t raft_conf_distance(const struct raft_conf *a, const struct raft_conf *b);
/* Place of `node` among the voters counted cyclically from the one after `leader` (0: stands
 * first). Counted from the first voter when the leader is not known or no voter. */
size_t raft_conf_rank(const struct raft_conf *c, uint32_t node, uint32_t leader);

/* The greatest value that a majority of the voters reaches (match indexes, promised lease ends,
 * times of the last answer); 0 without voters. */
uint64_t raft_conf_quorum_value(const struct raft_conf *c,
                                uint64_t (*value)(const void *ctx, uint32_t node), const void *ctx);

/* The payload of a RAFT_ENTRY_CONF, versioned. Decoding checks everything (PROTOCOL). */
void raft_conf_encode(struct buf *b, const struct raft_conf *c);
span_status raft_conf_decode(struct slice s, struct raft_conf *out) SPAN_CHECKED;

#endif
