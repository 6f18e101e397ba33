/* The state of struct raft and the functions its parts call in each other; not for other modules.
 *
 *   raft.c           construction, dispatch, end of a step, persistence bookkeeping, accessors
 *   raft_follower.c  appends, heartbeats, snapshot installed, change of term
 *   raft_election.c  standing, votes, timers of everybody but the leader
 *   raft_leader.c    proposals, acknowledgements, flush, commit, lease, transfer, leader's timers
 *
 * Where a function needs the time it gets `now`, the event's. */
#ifndef SPAN_SHARD_RAFT_RAFT_INTERNAL_H
#define SPAN_SHARD_RAFT_RAFT_INTERNAL_H

#include "base/rng.h"
#include "shard/raft/raft.h"
#include "shard/raft/raft_lease.h"
#include "shard/raft/raft_log.h"
#include "shard/raft/raft_progress.h"

/* Two neighbouring configurations can be in force at once. */
#define RAFT_PROGRESS_MAX (2 * LIMIT_REPLICAS)

/* Patience, all on the monotonic clock. A failed campaign is repeated after a random 20 to 100 ms;
 * many failures stretch that, because then the disks are slow or a majority is away. */
#define RAFT_RETRY_NS_MIN     (20 * MS_NS)
#define RAFT_RETRY_NS_MAX     (100 * MS_NS)
#define RAFT_RETRY_MANY       10
#define RAFT_RESEND_NS        (20 * MS_NS)  /* vote requests, TIMEOUT_NOW */
#define RAFT_RELEASE_STAND_NS (200 * MS_NS) /* a release is good for one term: keep asking */
#define RAFT_CLOCK_POLL_NS    (50 * MS_NS)  /* clock bad: look again */
#define RAFT_LEADER_GRACE_NS                                                                       \
    (2 * LEASE_RENEW_NS) /* a leader that asks for no promise was heard                            \
                          */

/* Terms beyond this come from no election: a peer that sends one is broken. Keeps term + 1 sound.
 */
#define RAFT_TERM_MAX (1ULL << 48)

/* A configuration and the entry that set it. */
struct raft_conf_slot {
    raft_index index;
    struct raft_conf conf;
};

/* An update handed to the owner for persisting and not yet reported durable. last: as much of the
 * *present* log as it wrote, so a later truncation lowers it. */
struct raft_pending {
    uint64_t seq;
    raft_index last;
};

struct raft {
    uint32_t self;
    uint64_t range;
    uint64_t lease_ns;
    struct tt_ts (*entry_guard)(uint8_t type, struct slice payload);
    size_t append_bytes;
    bool may_lead;
    struct rng rng;

    struct raft_hard_state hs;
    bool hs_dirty;   /* changed in this step */
    uint64_t hs_seq; /* the update that carries hs; durable when <= durable_seq */
    enum raft_role role;
    uint32_t leader;      /* of hs.term; 0: not known */
    uint32_t last_leader; /* the last one known, for ranks */

    /* base <= applied <= handed <= min(commit, stable), commit <= last, stable <= last */
    struct raft_log log;
    raft_index commit;
    raft_index handed; /* given out for applying */
    raft_index applied;
    raft_index stable;
    raft_index dirty_from; /* first entry appended in this step; 0: none */
    uint64_t next_seq;     /* last number given out */
    uint64_t durable_seq;
    struct raft_pending *pending;
    size_t pending_head, pending_count, pending_cap;

    /* In the order of the log: confs[0] is in force at the base (or the one given at construction).
     */
    struct raft_conf_slot *confs;
    size_t conf_count, conf_cap;

    struct raft_promise promise;

    /* Follower. matched: our log agrees with the leader of hs.term up to here (at least the commit
     * index: every later leader has what is committed). */
    raft_index matched;
    raft_index acked; /* last durable match sent in this term */
    bool ack_due;
    uint32_t vote_to; /* vote granted, answer waits for durability; 0: none */
    struct tt_ts vote_promised;

    /* Standing. */
    bool timers_started;
    uint64_t retry_mono_ns; /* does not stand (again) before */
    uint64_t resend_mono_ns;
    unsigned failures;
    bool asked;       /* candidate: hard state durable, requests sent */
    bool has_release; /* candidate: by rule B5 */
    struct tt_ts release;
    struct tt_ts vote_floor;
    uint32_t votes[LIMIT_REPLICAS];
    size_t vote_count;

    /* Leader. */
    struct raft_progress progress[RAFT_PROGRESS_MAX];
    size_t progress_count;
    struct raft_lease lease;
    raft_index term_start; /* index of its first entry */
    size_t uncommitted_bytes;
    uint32_t transfer_to; /* 0: none under way */
    uint64_t transfer_deadline_ns;
    uint64_t transfer_sent_ns;
    bool clock_bad;
    uint64_t clock_bad_mono_ns;
};

static inline const struct raft_conf *raft_conf_now(const struct raft *r)
{
    return &r->confs[r->conf_count - 1].conf;
}

static inline bool raft_hs_is_durable(const struct raft *r)
{
    return !r->hs_dirty && r->hs_seq <= r->durable_seq;
}

/* raft.c */
void raft_update_reset(struct raft_update *up); /* empty, keeps the memory */
/* A zeroed message at the end of up->msgs, addressed; valid until the next one is added. */
struct raft_msg *raft_emit(struct raft_update *up, enum raft_msg_type type, uint32_t to,
                           raft_term term);
void raft_log_add(struct raft *r, const struct raft_entry *e); /* also follows CONF entries */
void raft_log_cut(struct raft *r, raft_index from);
/* A snapshot at index with this configuration: those of entries still in the log above it stay. */
void raft_confs_install(struct raft *r, const struct raft_conf *conf, raft_index conf_index,
                        raft_index index);
size_t raft_conf_committed(const struct raft *r); /* place of the newest committed one in confs */
void raft_set_commit(struct raft *r, raft_index commit);
void raft_log_not_stable(struct raft *r, raft_index from); /* nothing from `from` on is durable */

/* raft_follower.c */
/* Follower of `term` (>= the present one); leader 0: not known. Steps down first if leading. */
void raft_become_follower(struct raft *r, const struct tt_now *now, raft_term term, uint32_t leader,
                          enum raft_down_reason reason, struct raft_update *up);
span_status raft_on_append(struct raft *r, const struct tt_now *now, uint32_t from,
                           const struct raft_msg *m, struct raft_update *up);
span_status raft_on_heartbeat(struct raft *r, const struct tt_now *now, uint32_t from,
                              const struct raft_heartbeat *hb, struct raft_update *up);
span_status raft_on_installed(struct raft *r, const struct raft_event *ev, struct raft_update *up);
void raft_emit_ack(struct raft *r, struct raft_update *up); /* if one is due and true */

/* raft_election.c */
span_status raft_on_vote(struct raft *r, const struct tt_now *now, uint32_t from,
                         const struct raft_msg *m, struct raft_update *up);
span_status raft_on_vote_ack(struct raft *r, const struct tt_now *now, uint32_t from,
                             const struct raft_msg *m, struct raft_update *up);
span_status raft_on_timeout_now(struct raft *r, const struct tt_now *now, uint32_t from,
                                const struct raft_msg *m, struct raft_update *up);
span_status raft_on_campaign(struct raft *r, const struct tt_now *now, struct tt_ts release,
                             struct raft_update *up);
void raft_emit_votes(struct raft *r, const struct tt_now *now, struct raft_update *up);
void raft_election_start(struct raft *r, const struct tt_now *now); /* before the first event */
void raft_election_timers(struct raft *r, const struct tt_now *now, struct raft_update *up);
uint64_t raft_election_deadline(const struct raft *r, const struct tt_now *now);
uint64_t raft_retry_jitter(struct raft *r);

/* raft_leader.c */
void raft_become_leader(struct raft *r, const struct tt_now *now, struct raft_update *up);
void raft_leave_leader(struct raft *r, enum raft_down_reason reason, struct raft_update *up);
span_status raft_on_propose(struct raft *r, const struct raft_event *ev, struct raft_update *up);
span_status raft_on_append_ack(struct raft *r, const struct tt_now *now, uint32_t from,
                               const struct raft_msg *m, struct raft_update *up);
span_status raft_on_heartbeat_ack(struct raft *r, const struct raft_event *ev,
                                  struct raft_update *up);
span_status raft_on_transfer(struct raft *r, const struct raft_event *ev);
void raft_on_snapshot_done(struct raft *r, uint32_t peer, raft_index index, bool ok);
void raft_on_peer_lost(struct raft *r, uint32_t peer);
void raft_leader_refresh(struct raft *r, const struct tt_now *now, struct raft_update *up);
uint64_t raft_leader_deadline(const struct raft *r, const struct tt_now *now);
const struct raft_progress *raft_find_progress(const struct raft *r, uint32_t node);

#endif
