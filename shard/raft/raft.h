/* Raft for one range, with leader leases on TrueTime: a pure state machine.
 *
 * The owner (shard/range/replica.c, one per replica, on the range's worker thread) feeds events,
 * each with the time read after the event was taken from its queue (rule A3), and carries out what
 * the update says. Nothing here reads a clock, sends, writes or draws from a global random source;
 * two runs with the same config and events are equal. Not thread-safe: one owner.
 *
 * One turn of the owner:
 *
 *     for each event taken from the mailbox:
 *         st = raft_step(r, &ev, &up);     // `up` is cleared first, and valid until the next call
 *         carry_out(&up):
 *             1. persist: up->hard_state_changed / up->entries  -> WAL, in this order, one unit
 *             2. send up->msgs (all of them may leave at once, see "Durability")
 *             3. apply up->apply_from .. up->apply_to with raft_entry_at(), then APPLIED
 *             4. became_leader -> PROPOSE an entry of the owner's in this same turn (rule B6)
 *             5. stepped_down  -> waiting proposals are now "unknown" (rule C11)
 *     raft_flush(r, now, &up);  carry_out(&up)   // once, at the end of the turn: the append
 * messages timer at up->deadline_mono_ns -> TICK
 *
 * Appends are only ever sent by raft_flush, so all proposals, acknowledgements and back-ups of one
 * turn become at most a few messages per follower. A turn that stepped must flush.
 *
 * Durability. Every update that has something to persist carries persist_seq > 0. When the WAL has
 * synced it, the owner reports PERSISTED with that number; numbers are reported in order, a number
 * covers all smaller ones (rule H3). (A sequence, not an index and term: an index can be written,
 * replaced and written again with the same term while the first sync is under way.) Messages that
 * promise something durable (votes, vote requests, append acknowledgements) are held back in here
 * and come out in the update of the PERSISTED event that makes them true. So everything in `msgs`
 * may leave at once, and nothing has to be parked by the owner. The leader sends appends before its
 * own sync and counts itself only after it. Entries are handed out for applying when they are
 * committed *and* durable here, so the engine never holds what the WAL could lose.
 *
 * Leases (raft_lease.h; rules B2 to B5, B7, B9). raft_lease_end() is E, the greatest end a majority
 * has promised to this leader in this term; raft_has_lease() says that it has certainly not come.
 * The owner gives out timestamps < E only, and serves only while raft_is_ready(). Promises are
 * asked for and given with appends and heartbeats.
 *
 * Heartbeats. One message per node pair every LEASE_RENEW_NS, built by the owner: e = earliest +
 * lease length once for the pair, and a struct raft_heartbeat per range led (raft_heartbeat_for).
 * The receiver feeds each as a HEARTBEAT event and sends the answers (up->heartbeat_ack) back in
 * one message; each comes in as HEARTBEAT_ACK. They also repair: a follower that is behind says so,
 * one whose acknowledgement was lost repeats it. There are no retransmission timers besides, so
 * heartbeats must go on for idle ranges too. Put a pair's heartbeats behind its appends on the same
 * ordered link: a heartbeat that overtakes appends costs a needless re-send, nothing more.
 *
 * Transfer (rule B5). The owner stops serving and giving out timestamps, lets promises to readers
 * run out, then sends TRANSFER with its floor as the release. From then on raft_has_lease() is
 * false and proposals are refused in this term. The target stands as soon as it is caught up; if no
 * new term is seen within one lease length the leader steps down with RAFT_DOWN_TRANSFER_FAILED and
 * the range elects in the usual way. */
#ifndef SPAN_SHARD_RAFT_RAFT_H
#define SPAN_SHARD_RAFT_RAFT_H

#include "shard/raft/raft_conf.h"
#include "shard/raft/raft_msg.h"

/* A leader whose uncommitted entries exceed this refuses proposals (OVERLOADED). The owner's own
 * admission should be far below; this is the bound on memory. */
#define RAFT_UNCOMMITTED_BYTES_MAX (256 * MIB)
/* Entries in one append message (LIMIT_APPEND_BYTES bounds the bytes). */
#define RAFT_APPEND_ENTRIES_MAX 4096

struct raft;

enum raft_role {
    RAFT_FOLLOWER,
    RAFT_PRE_CANDIDATE,
    RAFT_CANDIDATE,
    RAFT_LEADER,
};

/* What must survive a crash besides the entries. */
struct raft_hard_state {
    raft_term term;
    uint32_t voted_for; /* node, 0: nobody, in this term */
};

struct raft_config {
    uint32_t self;  /* node id, not 0 */
    uint64_t range; /* for log lines only */
    struct raft_hard_state hard_state;
    /* The compacted prefix (0, 0 for a log from the start), and the entries after it, contiguous
     * from base_index + 1. Payload references are taken, not stolen; the array is the caller's. */
    raft_index base_index;
    raft_term base_term;
    const struct raft_entry *entries;
    size_t entry_count;
    /* The engine has applied this much: base_index <= applied <= last entry. Everything up to it is
     * taken as committed; applying resumes behind it. */
    raft_index applied;
    /* The configuration set by the entry conf_index <= applied (or at birth: 0). CONF entries of
     * the restored log above conf_index override it. */
    struct raft_conf conf;
    raft_index conf_index;
    uint64_t seed;     /* for election jitter */
    uint64_t lease_ns; /* lease length, at most LEASE_NS_MAX; 0: LEASE_NS_DEFAULT */
    /* This replica was created just now on a store of its own and has never promised anything: no
     * restart wait (rule B3). Must be false whenever the replica may have run before. */
    bool fresh;
    /* Born by a split (rule F1): the left side's raft_promised() at this node, counted as a promise
     * to hard_state.term. The left leader's node may then stand at once by CAMPAIGN with a release.
     */
    struct tt_ts promised;
    /* Rule A7: the timestamp of an entry that a follower may refuse for being too far ahead of its
     * clock, or none (outcomes, anything without one). Pure, any bytes. NULL: nothing is refused.
     */
    struct tt_ts (*entry_guard)(uint8_t type, struct slice payload);
    size_t append_bytes; /* entries in one append message, if several; 0: LIMIT_APPEND_BYTES */
};

/* One range's line in a node pair's heartbeat, leader to member. */
struct raft_heartbeat {
    raft_term term;
    struct tt_ts
        lease_end; /* the pair's common e for every range with `lease`; 0: no promise asked */
    raft_index last_index; /* last entry sent to this member */
    raft_index commit;
};

/* One range's line in the answer. */
struct raft_heartbeat_ack {
    raft_term term;        /* the member's own; greater than the heartbeat's: refused */
    struct tt_ts promised; /* as in raft_append_ack */
    raft_index match;      /* as in raft_append_ack; valid only if term is the leader's */
    raft_index accepted;
    raft_index last_index; /* the member's last entry, agreeing or not: where to probe */
    bool behind;           /* accepted < the heartbeat's last_index */
};

struct raft_proposal {
    uint8_t type;           /* the owner's, or RAFT_ENTRY_CONF (then alone in its event) */
    struct slice payload;   /* copied ... */
    struct raft_blob *blob; /* ... unless this is set: then a reference is taken instead */
};

enum raft_event_type {
    RAFT_EV_TICK,               /* the deadline came (or any time: harmless) */
    RAFT_EV_MESSAGE,            /* from, msg */
    RAFT_EV_PROPOSE,            /* propose */
    RAFT_EV_PERSISTED,          /* persist_seq */
    RAFT_EV_HEARTBEAT,          /* from, heartbeat */
    RAFT_EV_HEARTBEAT_ACK,      /* from, heartbeat_ack */
    RAFT_EV_TRANSFER,           /* transfer */
    RAFT_EV_CAMPAIGN,           /* campaign */
    RAFT_EV_SNAPSHOT_SENT,      /* from (the peer), index: it has installed a snapshot at index */
    RAFT_EV_SNAPSHOT_FAILED,    /* from (the peer) */
    RAFT_EV_SNAPSHOT_INSTALLED, /* installed: the engine's state is now the snapshot's, durably (H5)
                                 */
    RAFT_EV_APPLIED,            /* index: the engine has applied this much */
    RAFT_EV_PEER_LOST,          /* from: its link broke; shortens no promise */
    RAFT_EV_COMMITTED,          /* known: this entry is committed, as another range's log says */
};

struct raft_event {
    enum raft_event_type type;
    struct tt_now now; /* read after the event was taken from its queue (rule A3) */
    uint32_t from;

    union {
        const struct raft_msg *msg; /* borrowed; references to payloads are taken */

        struct {
            const struct raft_proposal *items;
            size_t count;
            /* The owner's floor; needed with RAFT_ENTRY_CONF only (rule B4). */
            struct tt_ts floor;
        } propose;

        uint64_t persist_seq;
        struct raft_heartbeat heartbeat;
        struct raft_heartbeat_ack heartbeat_ack;

        struct {
            uint32_t target; /* a voter */
            struct tt_ts release;
        } transfer;

        struct {
            /* none: stand now if no promise forbids it (with pre-vote). Else (split, rule F1): the
             * lease promised to the present term is released to this node with this floor. */
            struct tt_ts release;
        } campaign;

        struct {
            raft_index index;
            raft_term term;
            struct raft_conf conf; /* in force at index ... */
            raft_index conf_index; /* ... and the entry that set it */
        } installed;

        struct {
            raft_index index;
            raft_term term;
        } known;

        raft_index index;
    } u;
};

enum raft_down_reason {
    RAFT_DOWN_NONE,
    RAFT_DOWN_TERM,            /* a newer term was seen (also the good end of a transfer) */
    RAFT_DOWN_NO_QUORUM,       /* rule B7: no majority answered for one lease length */
    RAFT_DOWN_TRANSFER_FAILED, /* released, but the target did not take over in time */
    RAFT_DOWN_CLOCK,           /* rule B9: the clock is out and nobody took over in time */
};

/* Caller-owned; init once, deinit at the end; every raft_step and raft_flush clears it first. All
 * pointers are borrowed from the raft and valid until the next call that takes it non-const. */
struct raft_update {
    /* To persist, in one WAL unit, hard state before entries (rule H3). */
    uint64_t persist_seq; /* > 0 when there is something to persist */
    bool hard_state_changed;
    struct raft_hard_state hard_state;
    /* entry_count > 0: entries from entries[0].index on replace everything from that index on. */
    const struct raft_entry *entries;
    size_t entry_count;
    /* SNAPSHOT_INSTALLED: the snapshot's index is not in the log with its term: all entries were
     * dropped, the log begins behind the snapshot's index. When false after SNAPSHOT_INSTALLED the
     * entries above the index stay. */
    bool log_dropped;

    /* To send now. */
    struct raft_msg *msgs;
    size_t msg_count;
    size_t msg_cap;
    bool has_heartbeat_ack; /* HEARTBEAT: the answer, to go back to its sender */
    struct raft_heartbeat_ack heartbeat_ack;

    /* To apply, in order; apply_from <= apply_to, or both 0. Each index is handed out once. */
    raft_index apply_from;
    raft_index apply_to;

    raft_index proposed_index; /* PROPOSE: index of the first entry appended */

    bool became_leader;
    /* became_leader: the greatest lease end promised by those who elected it and by itself, and the
     * release it came by (rules A1, B5). The floor starts at least here. */
    struct tt_ts vote_floor;
    bool stepped_down;
    enum raft_down_reason down_reason;
    /* Leader whose clock is out (rule B9): quiesce and TRANSFER to someone. Repeated until done. */
    bool handover_wanted;

    /* Members that need a snapshot now (told once each; raft_wants_snapshot repeats it). Answer
     * with SNAPSHOT_SENT or SNAPSHOT_FAILED. */
    uint32_t snapshot_to[LIMIT_REPLICAS];
    size_t snapshot_count;

    /* TICK no later than this (monotonic); UINT64_MAX: no timer. Always set. */
    uint64_t deadline_mono_ns;
};

void raft_update_init(struct raft_update *up);
void raft_update_deinit(struct raft_update *up);

/* A replica from what its store holds. INVALID or CORRUPT, with err (may be NULL) filled, if the
 * parts do not fit each other; then *out is NULL. Feed a TICK next to start its timers. */
span_status raft_new(const struct raft_config *config, struct raft **out,
                     struct span_error *err) SPAN_CHECKED;
void raft_free(struct raft *r); /* NULL is ignored */

/* One event. After anything but OK the update holds the deadline only and nothing has happened
 * (after CORRUPT the replica must not be used further). So it does for APPLIED, which may therefore
 * be sent while the rest of another update, copied out, is still to be carried out.
 *
 * NOT_LEADER: PROPOSE or TRANSFER at a replica that does not lead, or has released its lease.
 *
 * WOULD_WAIT: a CONF proposal that must wait: no entry of the own term is committed yet, the change
 * before it is not, or the floor would not stay below the lease end (rule B4).
 *
 * OVERLOADED: PROPOSE beyond RAFT_UNCOMMITTED_BYTES_MAX (never the first entry of a term).
 *
 * TOO_LARGE: an entry beyond LIMIT_ENTRY_BYTES.
 *
 * UNAVAILABLE: CAMPAIGN while a promise, the restart wait or the clock forbids it.
 *
 * INVALID: SNAPSHOT_INSTALLED at or below what was handed out for applying, or while leading; a
 * CONF proposal more than one voter away or without the leader itself (transfer first); a TRANSFER
 * target that is no other voter; an event that cannot be meant.
 *
 * PROTOCOL: a message that no correct peer sends; it was dropped.
 *
 * CORRUPT: a message contradicts committed entries, or shows a second leader in one term: take this
 * replica out, the range is damaged. */
span_status raft_step(struct raft *r, const struct raft_event *ev,
                      struct raft_update *up) SPAN_CHECKED;

/* End of the owner's turn: sends what followers lack, pipelined. Only msgs, snapshot_to and the
 * deadline are filled. Cheap when there is nothing to do and on followers. */
void raft_flush(struct raft *r, const struct tt_now *now, struct raft_update *up);

/* The line for `peer` in this node's next heartbeat to it, or false: not leading, or no member. `e`
 * is the pair's lease end, at most own earliest + raft_lease_ns. */
bool raft_heartbeat_for(const struct raft *r, uint32_t peer, struct tt_ts e,
                        const struct tt_now *now, struct raft_heartbeat *out);

/* Drops entries up to index (at most the applied one, and durable). The owner keeps a tail for slow
 * followers; one that needs more gets a snapshot. No-op below the base. */
void raft_compact(struct raft *r, raft_index index);

/* Lease length for promises asked from now on; at most LEASE_NS_MAX (rule B3 makes changes safe).
 */
void raft_set_lease_ns(struct raft *r, uint64_t lease_ns);
/* false: does not stand (draining, slow or full disk); goes on voting, promising and acknowledging.
 * Does not stop a leader: TRANSFER does. */
void raft_set_may_lead(struct raft *r, bool may_lead);

/* State. Entries and slices are borrowed until the next non-const call. */
const struct raft_entry *raft_entry_at(const struct raft *r,
                                       raft_index index); /* NULL: not in memory */
raft_index
raft_first_index(const struct raft *r); /* first in memory; last + 1 when there is none */
raft_index raft_last_index(const struct raft *r);
raft_index raft_stable_index(const struct raft *r); /* durable here up to this */
raft_index raft_commit(const struct raft *r);
raft_index raft_applied(const struct raft *r);
bool raft_term_at(const struct raft *r, raft_index index, raft_term *term); /* also at the base */
raft_term raft_current_term(const struct raft *r);
uint32_t raft_voted_for(const struct raft *r);
uint32_t raft_leader(const struct raft *r); /* node, 0: not known */
enum raft_role raft_role(const struct raft *r);
const char *raft_role_name(enum raft_role role);
size_t raft_log_bytes(const struct raft *r);         /* payload bytes in memory, for compaction */
size_t raft_uncommitted_bytes(const struct raft *r); /* 0 when not leading */
/* The configuration in force (the newest in the log) and the newest committed one. */
const struct raft_conf *raft_conf(const struct raft *r, raft_index *conf_index);
const struct raft_conf *raft_committed_conf(const struct raft *r, raft_index *conf_index);
/* The configuration in force at `index` >= the last committed change's (for a snapshot at index).
 */
const struct raft_conf *raft_conf_at(const struct raft *r, raft_index index,
                                     raft_index *conf_index);

/* Lease. E; none when not leading, released, or never granted. Can fall when a configuration entry
 * is appended (rule B4), never below the floor given with it. */
struct tt_ts raft_lease_end(const struct raft *r);
uint64_t raft_lease_ns(const struct raft *r);
/* Leads, has not released, clock good enough (rule B9), and E has certainly not come. */
bool raft_has_lease(const struct raft *r, const struct tt_now *now);
/* raft_has_lease, and an entry of the own term is applied (rule B6: and everything before it). */
bool raft_is_ready(const struct raft *r, const struct tt_now *now);
bool raft_has_released(const struct raft *r); /* leads, but gave its lease away (TRANSFER) */
/* Greatest lease end this replica is bound by or has reported, its own as a leader included. */
struct tt_ts raft_promised(const struct raft *r);

/* What the leader knows of a member; false when not leading or no such member. */
struct raft_peer_info {
    raft_index match;
    raft_index next;
    struct tt_ts promised;
    uint64_t answered_mono_ns; /* last answer in this term; election time before the first */
    bool probing;
    bool wants_snapshot;
};

bool raft_peer(const struct raft *r, uint32_t node, struct raft_peer_info *out);
bool raft_wants_snapshot(const struct raft *r, uint32_t node);
/* The best transfer target: the voter with the longest log that answered last; 0: none. */
uint32_t raft_transfer_target(const struct raft *r);

#endif
