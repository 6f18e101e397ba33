/* A running node: the threads around the store. One worker owns the store and the gateway core
 * beside it; the WAL writer, the flusher, the transport and the sessions reach it only through its
 * mailbox.
 *
 *   transport --frames--> mailbox --> worker: store + guest --+--> outboxes --> transport
 *   WAL writer --durable--^                                   +--> WAL batch --> WAL writer
 *   flusher --done--------^                                   `--> flush jobs --> flusher
 *   sessions --ops--------^
 *
 * The worker's turn: take everything queued, read the clock (rule A3), handle it all, run what is
 * due, then hand the turn's records to the WAL as one batch and each peer's messages to the
 * transport as one frame. */
#ifndef SPAN_SHARD_NODE_H
#define SPAN_SHARD_NODE_H

#include "base/metrics.h"
#include "shard/mailbox.h"
#include "shard/net/transport.h"
#include "shard/range/store.h"
#include "shard/wal/wal_file.h"
#include "truetime/clock.h"

struct node;

/* What lives beside the store in the worker: the gateway. All calls come on the worker's thread. */
struct node_guest {
    void *ctx;
    void (*message)(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                    struct slice body);
    void (*op)(void *ctx, const struct tt_now *now,
               struct mailbox_item *item); /* posted by node_post */
    void (*tick)(void *ctx, const struct tt_now *now);
    uint64_t (*deadline_ns)(void *ctx);
    void (*peer_lost)(void *ctx, const struct tt_now *now, node_id node);
    void (*peer_up)(void *ctx, const struct tt_now *now, node_id node); /* may be NULL */
    void (*turn_begin)(void *ctx, const struct tt_now *now);            /* may be NULL */
};

struct node_peer {
    node_id node;
    const char *url;
};

/* Texts but the peers' are borrowed until node_close. */
struct node_config {
    node_id self;
    uint64_t cluster_id;
    uint64_t store_id;
    const char *dir; /* the node's data folder: wal/ and ranges/ are made in it */
    bool created;    /* the folder was made just now */
    bool join;       /* the node joins a running cluster: it begins without ranges */
    const char *listen_url;
    const char *source; /* address of outgoing connections; NULL: any */
    const struct node_peer
        *peers; /* every node of the cluster, this one too, ascending ids; copied */
    size_t peer_count;
    struct clock *clock; /* borrowed */
    struct timer *timer; /* borrowed */
    struct metrics *metrics;
    uint64_t lease_ns;
    uint64_t version_window_ns;
    uint64_t flush_bytes;
    uint64_t cache_bytes;       /* of SQLite pages, for the whole node */
    uint64_t wal_segment_bytes; /* 0: WAL_SEGMENT_BYTES */
    bool enable_faults;
    /* The node can not go on (WAL dead, corruption): called once from any thread; it must not
     * block. */
    void (*on_fatal)(void *ctx, const char *what);
    void *fatal_ctx;
};

/* Recovers the store, starts the threads, joins the peers. Until node_start nothing is handled:
 * between the two the caller makes its guest, which needs node_store and node_incarnation. */
SPAN_CHECKED span_status node_open(const struct node_config *cfg, struct node **out,
                                   struct span_error *err);
SPAN_CHECKED span_status node_start(struct node *n, const struct node_guest *guest,
                                    struct span_error *err);

struct store *node_store(struct node *n); /* worker's thread only, once started */
uint64_t node_incarnation(const struct node *n);
/* Outbox of the turn towards a node (own node: the store's local queue). Worker's thread only. */
struct buf *node_out(struct node *n, node_id to, enum store_class cls);

/* One more peer, from now on; nothing if it is known. Worker's thread (or before node_start). */
SPAN_CHECKED span_status node_add_peer(struct node *n, node_id id, const char *url,
                                       struct span_error *err);

/* Any thread. The item goes to guest.op in the worker. CLOSED: stays the caller's. */
SPAN_CHECKED span_status node_post(struct node *n, struct mailbox_item *item);
/* Any thread but the worker: runs fn in the worker and waits. CLOSED when the node is stopping. */
SPAN_CHECKED span_status node_call(struct node *n,
                                   void (*fn)(void *ctx, struct node *n, const struct tt_now *now),
                                   void *ctx);

struct transport *node_transport(struct node *n);
struct wal_faults *node_wal_faults(struct node *n);

#define NODE_FLUSH_ERROR_BYTES 256
#define NODE_DAMAGE_BYTES      384

struct node_status {
    size_t ranges;
    size_t leads;
    bool ready; /* the system range has a known leader and the clock is good */
    uint64_t turns;
    uint64_t wal_syncs;
    uint64_t wal_units;
    uint64_t wal_bytes;
    uint64_t sync_ns_total;
    uint64_t mailbox_posts;
    uint64_t mailbox_wakeups;
    const char *wal_state;                    /* static text */
    bool unfit;                               /* disk too slow to lead (H10) */
    size_t broken;                            /* replicas that can not go on from their data */
    size_t damaged;                           /* replicas being rebuilt: their file was damaged */
    char damage[NODE_DAMAGE_BYTES];           /* which, what was found, how far it is: of one */
    size_t short_of_replicas;                 /* ranges led here: store_short_count */
    char flush_error[NODE_FLUSH_ERROR_BYTES]; /* of a flush in the last seconds; empty: none */
};

void node_status_get(struct node *n, struct node_status *out); /* any thread */

/* Hands leaderships over, at most patience_ns; then stops the threads, flushes and closes cleanly.
 */
void node_close(struct node *n, uint64_t patience_ns);

#endif
