/* Inside of the store, shared by store.c, store_restore.c and liveness.c. */
#ifndef SPAN_SHARD_RANGE_STORE_IMPL_H
#define SPAN_SHARD_RANGE_STORE_IMPL_H

#include "shard/range/replica.h"

struct pending_persist {
    uint64_t turn;
    range_id range;
    uint64_t seq; /* raft's persist_seq; 0: the birth of a right side (store_note_birth) */
};

struct pending_removal {
    uint64_t turn;
    char *dir;
    range_id range;
    uint64_t generation;
    bool aside; /* damaged: kept under another name */
};

/* What the WAL holds of a range: while recovering, and of one that no file or split has brought to
 * life yet (F1). */
struct orphan {
    struct raft_hard_state hard_state;
    bool has_hard_state;
    bool gone;           /* a replica was here and was removed from its range */
    uint64_t generation; /* 0: no file record */
    struct raft_entry *entries;
    size_t entry_count;
    size_t entry_cap;
    /* store_rebuild.c. Generation of a file found damaged; while it is `generation`, the replica
     * that was here waits for a snapshot. */
    uint64_t damaged;
    uint64_t number; /* of the question to the leader, which its answer carries */
    uint64_t asked_ns;
    uint64_t heard_ns;
    uint64_t probe;
    char cause[REPLICA_DAMAGE_BYTES];
};

/* What is known of another node from its heartbeats. */
struct peer {
    node_id node;
    uint64_t heard_ns;       /* last message of it, monotonic */
    uint64_t heard_since_ns; /* heard without a gap since */
    size_t leads;            /* ranges it leads, as its last heartbeat said */
    bool clock_conflict;     /* its interval contradicts ours (B8) */
    bool unfit;              /* its disk is too slow to lead (H10) */
    uint32_t replicas;       /* it holds */
    uint64_t nodes_version;
};

struct store {
    struct store_config cfg;
    const struct tt_now *now;
    struct map64 replicas;
    struct replica **by_key; /* by start key */
    size_t by_key_count;
    struct map64 orphans;
    struct map64 embryos;  /* replicas that a snapshot on its way will make (F1) */
    struct map64 absorbed; /* taken in by a merge; they go when that is durable */
    struct heap wakes;
    struct list dirty;
    struct list touched;
    struct raft_update update;
    struct arena request_arena; /* of the request being handled */
    struct arena apply_arena;   /* of the entry being applied */
    struct arena message_arena; /* of the heartbeat being handled */
    struct buf scratch;
    struct buf row_bytes;
    struct buf local; /* messages to the own node, handled in the same turn */
    struct buf local_running;
    struct range_descriptor *descriptors;
    uint64_t descriptors_version;
    uint64_t turn;
    bool turn_persists;
    uint64_t lazy_until_ns; /* records that can wait are submitted by then; 0: none wait */
    bool wants_tick;
    bool balance;
    bool unfit;
    uint64_t unfit_since_ns;
    bool draining;
    bool hands_over; /* as applied to the replicas */
    struct pending_persist *pending;
    size_t pending_count;
    size_t pending_cap;
    struct pending_removal *removals;
    size_t removal_count;
    uint64_t bad_messages;

    /* heartbeats */
    uint64_t heartbeat_at_ns;
    uint64_t heartbeat_seq;
    uint64_t balance_at_ns;
    uint64_t split_bytes;
    uint64_t autosplit_at_ns;
    uint64_t placement_at_ns;
    uint64_t probe_at_ns;
    struct store_nodes nodes;
    bool joining;   /* may have no range at all */
    size_t leaving; /* replicas that are out and wait for their flush */
    struct peer peers[LIMIT_PEERS];
    size_t peer_count;
};

void store_touch(struct store *s, struct replica *r);
/* store_restore.c: what is kept of a replica that was removed, in memory and in the log. */
void store_orphan_leave(struct store *s, const struct replica *r);
void store_heartbeats(struct store *s, const struct tt_now *now);
void store_balance(struct store *s, const struct tt_now *now);
/* Somebody answers whose disk and clock are well. */
bool store_other_is_fit(const struct store *s, const struct tt_now *now);
void store_on_heartbeat(struct store *s, const struct tt_now *now, node_id from, struct slice body);
void store_on_heartbeat_ack(struct store *s, const struct tt_now *now, node_id from,
                            struct slice body);

/* store_rebuild.c */
/* All of a damaged replica but what its orphan keeps. Its files are set aside, it is to be freed.
 */
void store_throw_away(struct store *s, const struct tt_now *now, struct replica *r);
/* At a start: the file of this orphan is damaged (err), or is on record as damaged. */
void store_damaged_at_start(struct store *s, range_id id, struct span_error *err);
/* A line of a heartbeat for a range without a replica here. */
void store_rebuild_heartbeat(struct store *s, const struct tt_now *now, node_id from,
                             const struct heartbeat_range *h, struct heartbeat_ack_range *ack);
void store_rebuild_probes(struct store *s, const struct tt_now *now);
void store_rebuild_gone(struct store *s, range_id id, uint64_t number);
/* store.c */
void store_aside_after_persist(struct store *s, const struct engine_options *files);
/* Files of an earlier life of the replica are still to be removed. */
bool store_files_are_going(const struct store *s, range_id id);
/* placement.c: "am I still in?", to every node. */
void store_probe(struct store *s, range_id id, uint64_t number);
/* store_restore.c */
struct orphan *store_orphan_of(struct store *s, range_id id); /* made if there is none */
void store_orphan_clear(struct orphan *o);                    /* its entries */
/* Takes the reference to the entry's payload. */
void store_orphan_add(struct orphan *o, const struct raft_entry *e);
/* What is left of a replica that was removed: in memory and in the log. */
void store_orphan_gone_now(struct store *s, range_id id, struct raft_hard_state hs);

/* range_autosplit.c */
void store_autosplit(struct store *s, const struct tt_now *now);

/* placement.c */
void store_placement(struct store *s, const struct tt_now *now);
/* How many voters placement gives a range with these members. */
size_t store_replicas_wanted(const struct store *s, const struct raft_conf *conf);
/* Led here, and fewer members answer than there are to be. */
bool store_range_is_short(const struct store *s, const struct tt_now *now, const struct replica *r);
/* Replicas that hear no leader ask whether they are still in. */
void store_probes(struct store *s, const struct tt_now *now);
bool store_node_is_active(const struct store *s, node_id node);
/* Rule B9, H10 and F: is the node heard, and well enough to lead? */
bool store_peer_is_fit(const struct store *s, const struct tt_now *now, node_id node);
uint32_t store_peer_replicas(const struct store *s, node_id node);

void replica_flush_raft(struct replica *r, const struct tt_now *now);
void replica_flush_done(struct replica *r, const struct tt_now *now, struct engine_job *job);

#endif
