/* A node's store: all its replicas, the node-pair heartbeats that carry their leases, and the
 * routing of messages to them. Pure: one owner (a worker thread, or the simulator) feeds it events
 * that carry the time and gives it sinks for what leaves.
 *
 *   messages, gateway requests, PERSISTED, flush done, ticks
 *        |                                            sinks (struct store_io):
 *        v                                            - messages per peer and class
 *   store_* entry points --> replicas --> raft        - log entries and sticky state for the WAL
 *        |                       |--> lock table      - flush jobs for the flusher
 *        |                       |--> engine          - messages for this node's own gateway
 *        `-> store_turn_end: appends of the turn leave, one per follower and range
 *
 * A turn: any number of entry points, then store_turn_end once. Everything a turn wants durable
 * goes into one WAL submission; store_turn_end returns the turn's number, and store_persisted(turn)
 * comes back when it is synced, in order. (Messages that promise something durable are held back by
 * Raft until then, so everything in the send sinks may leave at once.)
 *
 * `now` in every call was read after the event was taken from its queue (rule A3). */
#ifndef SPAN_SHARD_RANGE_STORE_H
#define SPAN_SHARD_RANGE_STORE_H

#include "base/metrics.h"
#include "shard/engine/engine.h"
#include "truetime/truetime.h"
#include "txn/txn_codec.h"

struct store;

enum store_class {
    STORE_CONTROL, /* same numbers as enum net_class */
    STORE_BULK,
};

/* Sticky kinds in the WAL, per range (rule H3). */
enum store_sticky {
    STICKY_HARD_STATE = 1, /* term, vote */
    STICKY_FILE,           /* generation of the engine file that counts (rule H5) */
    STICKY_GONE,           /* bool: the replica that was here was removed from its range (F1) */
    STICKY_DAMAGED,        /* generation of a file found damaged: it is not used again */
};

struct store_io {
    void *ctx;
    /* Buffer of messages for a peer node: the caller appends whole messages. Never asked for the
     * own node. */
    struct buf *(*send)(void *ctx, node_id to, enum store_class cls);
    /* For the WAL, in order. */
    void (*entry)(void *ctx, range_id range, uint64_t index, uint64_t term, uint8_t type,
                  struct slice payload);
    void (*sticky)(void *ctx, range_id range, uint8_t kind, struct slice payload);
    void (*release)(void *ctx, range_id range,
                    uint64_t index); /* entries <= index are not needed any more */
    /* The range's records so far are void: all of its state and entries. May be NULL (they are
     * then kept for nothing). */
    void (*tombstone)(void *ctx, range_id range);
    /* A flush job whose next step the flusher is to run; store_flush_done gives it back. */
    void (*flush)(void *ctx, range_id range, struct engine_job *job);
    /* Rule B8: a peer's interval at sending; `asked`: our own at the question it answers, or NULL.
     * False: the message's timestamps contradict this clock and are refused. May be NULL. */
    bool (*peer_clock)(void *ctx, const struct tt_now *now, node_id peer,
                       const struct tt_interval *sent, const struct tt_interval *asked);
    /* A message for this node's own gateway (MSG_RESPONSE, MSG_WOUNDED, MSG_NODE_REQUEST,
     * MSG_NODE_RESPONSE). body is borrowed. */
    void (*to_gateway)(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                       struct slice body);
};

enum store_node_state {
    STORE_NODE_ACTIVE,
    STORE_NODE_DRAINING, /* leads nothing as long as another can */
    STORE_NODE_LEAVING,  /* its replicas move to other nodes */
};

struct store_node {
    node_id node;
    enum store_node_state state;
};

/* The nodes of the cluster, as the node table of the system range says; the newest version counts.
 * Version 0: those of the configuration, all active. */
struct store_nodes {
    uint64_t version;
    uint32_t replicas; /* of every range, as far as there are active nodes; 0: as many as it has */
    size_t count;
    struct store_node nodes[LIMIT_PEERS];
};

struct store_config {
    node_id self;
    uint64_t incarnation;
    node_id nodes[LIMIT_PEERS]; /* all of the cluster, this one too, ascending */
    size_t node_count;
    uint64_t lease_ns;
    uint64_t version_window_ns;
    uint64_t flush_bytes;
    uint64_t split_now_bytes; /* a split of a larger range builds its right side's file ahead (0:
                                 the default; UINT64_MAX: none does) */
    uint64_t log_tail;        /* entries kept behind the flushed index, 0: 2000; who is further
                                 behind gets a snapshot */
    size_t append_bytes;      /* of an append message; 0: LIMIT_APPEND_BYTES. Fits a WAL batch */
    uint64_t
        cache_bytes; /* SQLite pages of all files together; 0: the engine's own default a file */
    const char *dir; /* of the engine files */
    const char *vfs; /* SQLite VFS; NULL: the default */
    uint64_t seed;
    size_t replicas; /* of a range while there is no node table; 0: what it has */
    bool fresh;      /* the store was created just now: nothing was ever promised (B3) */
    bool unsafe_skip_commit_wait; /* only read by SHOW */
    struct metrics *metrics;      /* may be NULL */
    struct store_io io;
};

struct store *store_new(const struct store_config *cfg);
void store_free(struct store *s);

/* Start-up. Either store_bootstrap (a new, empty store: ranges 1 and 2 with all nodes as members),
 * or for every range that the WAL knows store_restore_sticky / store_restore_entry in WAL order and
 * then store_restore_end, which opens the engine files. */
SPAN_CHECKED span_status store_bootstrap(struct store *s, const struct tt_now *now,
                                         struct span_error *err);
SPAN_CHECKED span_status store_restore_sticky(struct store *s, range_id range, uint8_t kind,
                                              struct slice payload, struct span_error *err);
SPAN_CHECKED span_status store_restore_entry(struct store *s, range_id range, uint64_t index,
                                             uint64_t term, uint8_t type, struct slice payload,
                                             struct span_error *err);
void store_restore_tombstone(struct store *s, range_id range);
/* True once anything was restored. */
bool store_restore_found(const struct store *s);
/* An empty store that joins a running cluster: no ranges, they come by snapshots (F1). Instead of
 * store_bootstrap; store_restore_end takes a log without ranges then, too. */
void store_join(struct store *s);
SPAN_CHECKED span_status store_restore_end(struct store *s, const struct tt_now *now,
                                           struct span_error *err);

/* Events. */
/* One message of a peer's frame or of the own gateway (from == self). A malformed one is logged,
 * counted and dropped. */
void store_message(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                   struct slice body);
void store_persisted(struct store *s, const struct tt_now *now, uint64_t turn);
void store_flush_done(struct store *s, const struct tt_now *now, range_id range,
                      struct engine_job *job);
/* Gives a job back that will not be run any more (stopping). */
void store_flush_abandon(struct store *s, range_id range, struct engine_job *job);
void store_peer_lost(struct store *s, const struct tt_now *now, node_id peer);
/* Runs what is due. */
void store_tick(struct store *s, const struct tt_now *now);

/* Ends the turn: number of the turn if it has anything to persist or to send after a sync, else 0.
 */
uint64_t store_turn_end(struct store *s, const struct tt_now *now);
/* Monotonic time of the next store_tick that is needed. */
uint64_t store_deadline_ns(const struct store *s);

/* Somebody known leads range 1, as far as this node knows. */
bool store_is_ready(const struct store *s);
/* Buffer of messages to the own node: the gateway appends its requests here; they are handled in
 * the same turn. */
struct buf *store_local(struct store *s);
/* Settings that change at run time. */
void store_set_lease(struct store *s, uint64_t lease_ns);
void store_set_balance(struct store *s,
                       bool on); /* leaderships and replicas move to nodes that have fewer */
/* Ranges whose file is larger are split (0: never, as at the start). */
void store_set_split_size(struct store *s, uint64_t bytes);
/* A key at which a range led here wants to be split; borrowed until the next call that is not
 * const. False: none. */
bool store_split_wanted(const struct store *s, struct slice *key);
/* A newer node table (older ones are ignored). */
void store_set_nodes(struct store *s, const struct tt_now *now, const struct store_nodes *nodes);
uint64_t store_nodes_version(const struct store *s);
/* The newest version that any peer's heartbeat named. */
uint64_t store_nodes_version_heard(const struct store *s);
/* Begins handing all leaderships over (clean shutdown); store_leader_count tells when none is left.
 */
void store_drain(struct store *s, const struct tt_now *now);
size_t store_leader_count(const struct store *s);
/* Ranges led here with fewer members that answer than there are to be (cluster.replicas). */
size_t store_short_count(const struct store *s, const struct tt_now *now);
size_t store_broken_count(const struct store *s); /* replicas that are out for damaged data */
/* Replicas whose file was found damaged and that wait for their leader's snapshot; what is to be
 * said of the first one goes to text (empty: none). */
size_t store_damaged(const struct store *s, char *text, size_t size);
size_t store_range_count(const struct store *s);
/* Flushes the range (0: every range) that keeps old log segments alive, as soon as possible. */
void store_want_flush(struct store *s, const struct tt_now *now, range_id range);
/* H10: the disk of this node is too slow to lead: hands over what it leads and does not stand until
 * told otherwise, as long as some node is better off. */
void store_set_unfit(struct store *s, const struct tt_now *now, bool unfit);

/* For the gateway on this node: what is known of ranges here (higher generations win, F4). */
size_t store_descriptors(const struct store *s, struct arena *a, struct range_descriptor **out);
/* Generation counter that changes whenever store_descriptors or a leader would answer otherwise. */
uint64_t store_descriptors_version(const struct store *s);

/* Rows for SHOW RANGES / TRANSACTIONS / LOCKS: this node's part. Cells appended to `cells`: number
 * of columns is fixed per what (enum kv_show's numbers: 0 ranges, 3 transactions, 4 locks). */
void store_show(const struct store *s, const struct tt_now *now, unsigned what, struct arena *a,
                struct slice **cells, size_t *cell_count, unsigned *columns);

#endif
