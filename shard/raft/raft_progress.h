/* What a leader knows of one member, and how it sends to it.
 *
 *            probe answered                 append refused, heartbeat says behind, link lost
 *   PROBE ------------------> REPLICATE ------------------------------------------------> PROBE
 *     |  next is compacted                                                                  ^
 *     +-----------------------> SNAPSHOT ---------------------------------------------------+
 *                                           sent, failed, or the member caught up otherwise
 *
 * PROBE: one append at a time, because where the logs agree is a guess. After sending it waits
 * (`paused`) until an answer or a heartbeat answer comes; this is what keeps a dead peer cheap.
 * REPLICATE: appends are pipelined, `next` runs ahead, bounded by the window. SNAPSHOT: nothing is
 * sent until the owner reports.
 *
 * Invariants: match < next; every entry <= match is durable at the member and equal to ours. */
#ifndef SPAN_SHARD_RAFT_RAFT_PROGRESS_H
#define SPAN_SHARD_RAFT_RAFT_PROGRESS_H

#include "shard/raft/raft_msg.h"

enum raft_progress_state {
    RAFT_PROBE,
    RAFT_REPLICATE,
    RAFT_SNAPSHOT,
};

struct raft_progress {
    uint32_t node;
    enum raft_progress_state state;
    bool paused;        /* PROBE: waiting for the answer */
    bool snapshot_told; /* SNAPSHOT: the owner knows */
    raft_index match;
    raft_index next;
    raft_index accepted_seen; /* `accepted` of the last heartbeat answer */
    struct tt_ts promised;    /* greatest lease end it promised in this term (rule B2) */
    uint64_t answered_mono_ns;
    /* Last indexes of the appends under way, oldest first. */
    raft_index inflight[LIMIT_INFLIGHT_APPENDS];
    size_t inflight_head;
    size_t inflight_count;
};

/* A member as a new leader sees it: it may agree up to our last entry. */
void raft_progress_init(struct raft_progress *p, uint32_t node, raft_index last, uint64_t mono_ns);
void raft_progress_probe(struct raft_progress *p, raft_index next, bool paused);
void raft_progress_replicate(struct raft_progress *p, raft_index accepted);
void raft_progress_snapshot(struct raft_progress *p);
bool raft_progress_may_send(const struct raft_progress *p, raft_index last);
/* An append of the entries next .. last went out (last = next - 1: an empty one). */
void raft_progress_sent(struct raft_progress *p, raft_index last);
/* The member holds everything up to match durably, and up to accepted in memory. */
void raft_progress_acked(struct raft_progress *p, raft_index match, raft_index accepted);

#endif
