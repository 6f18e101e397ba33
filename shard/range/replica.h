/* One replica: Raft, lock table, two-phase-commit roles, safe time and engine as one deterministic
 * machine. Private to shard/range: store.c creates replicas and feeds them, the replica_*.c files
 * are its parts.
 *
 *   requests ---> replica_request.c   checks (leader, lease, bounds, schema, term), dispatch,
 * parking
 *                   |-> replica_read.c     reads with locks / at a timestamp / on a follower
 *                   `-> replica_txn.c      one-range commit, coordinator, participant, validate,
 * status 2PC messages -> replica_2pc.c     votes, outcomes, queries, wounds Raft messages,
 * heartbeats, PERSISTED -> replica.c -> raft_step -> committed entries
 *                                           `-> replica_apply.c -> engine, outcomes, answers
 *   split, merge                       range_split.c, range_merge.c
 *
 * Invariants: a timestamp is chosen in the step that proposes its record and lies above the floor,
 * above what the transaction has seen, and below the lease end (A1, A2, A4); a transaction has one
 * record in flight at most; a prepared transaction's locks are held on whoever leads; nothing is
 * answered before its record is committed and applied. */
#ifndef SPAN_SHARD_RANGE_REPLICA_H
#define SPAN_SHARD_RANGE_REPLICA_H

#include "base/heap.h"
#include "base/list.h"
#include "base/map.h"
#include "base/rng.h"
#include "shard/raft/raft.h"
#include "shard/range/outcome_table.h"
#include "shard/range/store.h"
#include "txn/lock_table.h"

/* What a transaction is doing at this replica. Prepared and decided ones are replicated state and
 * exist on followers too; the others live and die with the leadership. */
enum rtxn_state {
    RTXN_HOLDING,      /* has or wants locks, nothing proposed */
    RTXN_COMMITTING,   /* CMD_COMMIT1 proposed at ts */
    RTXN_PREPARING,    /* CMD_PREPARE proposed at ts */
    RTXN_PREPARED,     /* prepare record applied; waits for the outcome */
    RTXN_FINISHING,    /* prepared, CMD_OUTCOME proposed */
    RTXN_COORDINATING, /* coordinator: waits for votes */
    RTXN_DECIDING,     /* coordinator: CMD_DECISION proposed */
    RTXN_DECIDED,      /* coordinator: decision applied, some participants have not acknowledged */
};

struct rparticipant {
    struct buf anchor;
    range_id range;
    node_id node;
    bool voted;
    bool acked;
    struct tt_ts prepare_ts;
};

struct rvote_early {
    struct buf participant;
    bool yes;
    struct tt_ts prepare_ts;
    uint16_t status;
};

struct rtxn {
    struct lock_owner owner; /* txn id and age */
    enum rtxn_state state;
    struct list in_state; /* replica->flight while a record of it is chosen and not applied */
    struct list parked;   /* struct rparked waiting for its locks */
    node_id gateway;
    uint64_t incarnation;
    uint64_t heard_ns; /* last request or keepalive, monotonic */
    struct tt_ts ts;   /* s or p once chosen */
    struct tt_ts seen;
    struct tt_ts latest;      /* coordinator: of the clock when the commit request came */
    bool wound_sent;          /* MSG_WOUND went to its coordinator ... */
    struct txn_id wounded_by; /* ... for this older one */
    unsigned tries;           /* questions or outcomes sent in vain: where the next one goes */

    /* the commit request to answer: COMMITTING, COORDINATING, DECIDING */
    uint64_t request_id;
    uint8_t op;
    uint64_t deadline_ns; /* monotonic: of the commit, for the coordinator to give up */

    /* write keys, for reads that must wait for this record (A5): while in flight */
    size_t key_count;
    struct buf *keys;

    /* coordinator */
    size_t participant_count;
    struct rparticipant *participants;
    size_t votes_missing;
    struct rvote_early
        *early; /* votes that came before the coordinator's own request could go on */
    size_t early_count;
    struct tt_ts prepare_max;
    struct buf request;     /* the OP_COORDINATE body, until the decision is proposed */
    struct buf anchor;      /* own anchor key */
    struct heap_node timer; /* COORDINATING: deadline; DECIDED: resend; PREPARED: ask again;
                               HOLDING: gateway silent */
    uint64_t retry_ns;      /* current interval */
    struct buf asker;       /* DECIDING an abort on a participant's question: its anchor */
    node_id asker_node;
    bool too_large; /* DECIDING an abort because a participant could not log its part */

    /* participant */
    struct buf coordinator;
    node_id coordinator_node;
    struct buf record; /* as applied: cmd_prepare (PREPARED, FINISHING) or cmd_decision */
    bool stored;       /* a flush wrote its row; most transactions are over before one does */
};

/* Why a request is parked and by what it is taken up again. */
enum rpark {
    RPARK_LOCKS,  /* rtxn->parked, when all wanted locks are granted */
    RPARK_FLIGHT, /* replica->wait_flight, when a record in flight was applied or dropped */
    RPARK_LEASE,  /* replica->wait_lease, when the lease end moved or the leader began to serve */
};

struct rparked {
    struct list node;
    struct heap_node timer; /* deadline, in replica->deadlines */
    enum rpark why;
    struct rtxn *txn; /* RPARK_LOCKS */
    struct buf body;  /* the request, to run again from the start */
    uint64_t deadline_ns;
    node_id gateway;
};

/* A transaction that ended here in this term without a record: later requests of it are refused
 * (C12). */
struct rgone {
    struct list node; /* replica->gone, ends soonest first */
    struct txn_id txn;
    uint64_t until_ns;
    span_status why;
};

struct schema_version {
    uint64_t version;
    struct tt_ts since;
};

#define REPLICA_DAMAGE_BYTES 256 /* of the text that says what was found */

struct replica_birth;

enum merge_step {
    MERGE_DRAINS,  /* new records are held back on both sides until none is in flight */
    MERGE_FREEZES, /* CMD_FREEZE is proposed on the right, until all members hold it */
    MERGE_ENDS,    /* CMD_MERGE is proposed on the left */
};

struct merged_range {
    range_id range;
    uint64_t index;
};

struct replica {
    struct store *store;
    range_id id;
    uint64_t file_generation;
    struct raft *raft;
    struct engine *engine;
    struct lock_table *locks;
    struct outcome_table *outcomes;
    bool broken;  /* a committed entry or the file could not be applied: this replica is out */
    bool damaged; /* the file is: it goes as soon as no flush runs, to be rebuilt */
    char damage[REPLICA_DAMAGE_BYTES];
    /* A committed split that found no room for the right side's file: it and all behind it, up to
     * apply_wait_to, are applied when there is room again. 0: nothing waits. */
    uint64_t apply_wait_from;
    uint64_t apply_wait_to;
    uint64_t apply_retry_ns;
    bool apply_wait_ahead; /* it waits for that file to be built by the flusher */
    bool apply_wait_merge; /* it is a merge that waits, for its right side or for a flush */
    range_id split_built;  /* the right side whose file the waiting split has made already */

    /* replicated descriptor */
    struct buf start;
    struct buf end;
    uint64_t generation;
    size_t member_count;
    node_id members[LIMIT_REPLICAS];

    /* replicated values */
    struct tt_ts watermark;  /* W (C3) */
    struct tt_ts applied_ts; /* newest timestamp applied or learned: part of every floor */

    /* leader */
    bool leading;        /* raft says leader */
    bool serving;        /* rule B6: own-term entry applied, locks rebuilt */
    uint64_t open_index; /* of the own-term entry */
    bool releasing;      /* handing over or splitting: no new timestamps */
    struct tt_ts floor;
    node_id transfer_to;
    uint64_t transfer_deadline_ns;

    /* follower's safe time: closed timestamp valid once applied >= closed_index */
    struct tt_ts closed;
    struct tt_ts closed_next;
    uint64_t closed_index;

    struct map64 schema; /* table id -> struct schema_version *, what is in force here now */
    struct mapb txns;    /* txn id (16 bytes) -> struct rtxn */
    struct list flight;  /* rtxns with a chosen timestamp not applied, and prepared ones */
    struct mapb gone_by_id;
    struct list gone;
    struct list wait_flight;
    struct list wait_lease;
    struct heap deadlines; /* parked requests */
    struct heap timers;    /* rtxns */
    struct heap_node wake; /* in store->wakes, by the next deadline of anything here */
    struct list dirty;     /* in store->dirty while raft_flush is due */
    struct list touched;   /* in store->touched while replica_settle is due */
    uint64_t served_since_ns;
    bool decide_waits; /* a decision waits for the lease end to move */
    bool rerun_flight; /* a record in flight ended: wait_flight is to run again */
    bool rerun_lease;
    bool rerun_locks;
    uint64_t raft_deadline_ns;
    uint64_t look_ns;        /* at a split under way */
    uint64_t lazy_until_ns;  /* entries that can wait are not sent before; 0: none wait */
    bool lazy_step;          /* the proposal being carried out can wait */
    bool urgent;             /* something that can not wait is to be sent, too */
    struct tt_ts lease_seen; /* lease end when wait_lease was last run */

    /* resolved decisions to report in the next CMD_RESOLVED, and maintenance */
    struct buf resolved;
    size_t resolved_count;
    uint64_t maintain_at_ns;
    uint64_t maintain_index;

    /* split in progress (leader) */
    struct buf split_key;
    struct buf split_request;
    uint64_t split_deadline_ns;
    bool split_proposed;
    bool split_ahead;        /* the right side's file is being built; nothing is held back yet */
    bool split_tell;         /* the members are to hear at once that it is committed */
    bool split_announced;    /* CMD_SPLIT_AHEAD was proposed */
    uint64_t split_ready_ns; /* this replica's own file is ready since; 0: it is not */
    size_t split_ready_count;
    node_id split_ready[LIMIT_REPLICAS]; /* members that said theirs is */

    /* right side built ahead, on every replica: given up then; 0: none */
    uint64_t ahead_until_ns;
    struct engine_job
        *ahead_job; /* waits before its next piece; a flush is under way all the time */
    uint64_t ahead_job_at_ns;
    range_id ahead_tried; /* the committed split that waited for it */

    /* merge in progress: at the left side's leader, whose node leads both */
    range_id merge_right; /* 0: none */
    enum merge_step merge_step;
    uint64_t merge_token; /* the generation when it began */
    uint64_t merge_deadline_ns;
    struct buf merge_request;
    uint64_t undo_index; /* last CMD_MERGE proposed here that says never */
    range_id merge_left; /* at the right side's leader: who drives it; 0: nobody here */

    /* replicated, right side of a merge: nothing is changed here any more (rule F3) */
    bool frozen;
    range_id frozen_left;
    uint64_t frozen_token;
    raft_index frozen_index;
    raft_term frozen_term;
    struct buf frozen_start; /* of the left side */
    uint64_t frozen_ask_ns;  /* leader: whether it has come to nothing is asked then */
    unsigned frozen_tries;

    /* replicated, left side: the ranges it took in, and by which entry of this log */
    struct merged_range *merged;
    size_t merged_count;

    /* taken in by this range, by that entry of its log: goes when that is durable there */
    range_id absorbed_by;
    uint64_t absorbed_at;

    /* automatic split (leader): how far back from the end the walk has come */
    struct buf cut_at;
    uint64_t cut_bytes;
    bool cut_wanted;
    uint64_t cut_look_ns; /* not before */

    /* change of members in progress (leader): first one is added, then one removed; 0: none */
    node_id member_add;
    node_id member_remove;
    uint64_t member_until_ns;
    struct buf member_request; /* who asked; empty: placement */

    /* not the leader: is this replica still a member? */
    uint64_t heard_ns; /* last message of a leader */
    uint64_t probe;    /* number of the question under way; 0: none, or a leader was heard since */
    bool maybe_out;    /* applied a configuration without this node */
    bool out;          /* it is: goes as soon as no flush runs */
    struct tt_ts stand_release; /* born of a split that this node led: stand at once with this
                                   release (F1) */

    /* flush, snapshots */
    uint64_t restored_last; /* last entry of the log this process started with */
    unsigned births;        /* right sides of splits whose first records are not durable yet */
    bool flush_wanted;
    bool flushing;
    uint64_t flush_at_ns;

    struct replica_absent {
        node_id node;
        uint64_t since_ns;
    } absent[LIMIT_REPLICAS]; /* leader: since when a member says it has no replica */

    /* Leader: members that have lost their file, and what their snapshot must hold. */
    struct replica_rebuild {
        node_id node;
        uint64_t number; /* of their question; 0: a free slot */
        uint64_t need;
    } rebuilds[LIMIT_REPLICAS];

    struct replica_sending *sending; /* snapshot streams out, list */
    struct replica_receiving *receiving;
};

/* How often a change of members is looked at, and a split. */
#define MEMBER_LOOK_NS (20 * MS_NS)
#define SPLIT_LOOK_NS  (2 * MS_NS)

#define RTXN_OF_OWNER(o) ((struct rtxn *)(void *)((char *)(o)-offsetof(struct rtxn, owner)))

/* ---- replica.c: life, raft glue ---- */
struct replica *replica_new(struct store *s, range_id id);
void replica_free(struct replica *r);
/* Runs one raft event and everything that follows from it. */
void replica_raft(struct replica *r, const struct tt_now *now, struct raft_event *ev);
/* Proposes one command. False: this replica stopped leading (its leader_stop has run). */
bool replica_propose(struct replica *r, const struct tt_now *now, uint8_t type,
                     struct slice payload);
/* Proposes a configuration. WOULD_WAIT: not yet (rule B4, Raft's one-at-a-time rule). */
SPAN_CHECKED span_status replica_propose_conf(struct replica *r, const struct tt_now *now,
                                              const struct raft_conf *conf);
/* A leader was heard: whatever was asked about being out is void. */
void replica_heard(struct replica *r, const struct tt_now *now);
/* Answers everybody who waits here; the replica is about to go. */
void replica_retire(struct replica *r);
/* Runs what became possible: granted locks, parked requests. Called by the store at the end of an
 * event, never inside a handler (handlers borrow from the arena that this reuses). */
void replica_settle(struct replica *r, const struct tt_now *now);
/* One line of a peer's heartbeat. */
void replica_heartbeat(struct replica *r, const struct tt_now *now, node_id from,
                       const struct heartbeat *hb, const struct heartbeat_range *line,
                       struct heartbeat_ack_range *ack);
void replica_tick(struct replica *r, const struct tt_now *now);
/* Re-arms r->wake. */
void replica_schedule(struct replica *r, const struct tt_now *now);
/* The leader may give out timestamps and answer now: serving, not releasing, lease in force. */
bool replica_may_serve(const struct replica *r, const struct tt_now *now);
void replica_learn(struct replica *r, struct tt_ts ts); /* floor and applied_ts rise (A1) */
void replica_break(struct replica *r, const char *what, span_status st);
bool replica_covers(const struct replica *r, struct slice key);
bool replica_covers_span(const struct replica *r, const struct span *span);
void replica_descriptor(const struct replica *r, struct range_descriptor *d);
uint64_t replica_mono_of(const struct tt_now *now,
                         struct tt_ts t); /* monotonic time at which tt_after(t) should hold */
struct tt_ts replica_safe_time(const struct replica *r);

/* Rule A7: the timestamp by which a follower may refuse an entry. */
struct tt_ts replica_entry_guard(uint8_t type, struct slice payload);
void replica_leader_start(struct replica *r, const struct tt_now *now, struct tt_ts vote_floor);
void replica_leader_stop(struct replica *r, const struct tt_now *now);
/* Answers the commit request of t, if there is one: unknown outcome (rule C11). */
void replica_unknown(struct replica *r, const struct rtxn *t);
/* Sends and syncs what could wait: somebody waits for it now. */
void replica_hurry(struct replica *r);
void store_persist_now(struct store *s);
/* Decisions that every participant has applied go from the replicated state. */
void replica_propose_resolved(struct replica *r, const struct tt_now *now);

/* ---- replica_stored.c ---- */
/* Descriptor and values <-> engine meta rows. */
#define OUTCOME_KEY_BYTES 32
/* Row of a sealed block of outcomes; borrows out. */
struct slice replica_outcome_key(char out[OUTCOME_KEY_BYTES], uint64_t block);
void replica_meta_descriptor_put(struct replica *r);
/* A decision that not all participants have, as its record says. */
SPAN_CHECKED span_status replica_take_decided(struct replica *r, struct slice record,
                                              struct rtxn **out);
SPAN_CHECKED span_status replica_load_meta(struct replica *r, struct span_error *err);
SPAN_CHECKED span_status replica_open_engine(struct replica *r, bool create,
                                             struct span_error *err);

struct replica_birth {
    struct raft_hard_state hard_state;
    bool fresh;
    struct tt_ts promised;            /* split: the left side's (F1) */
    const struct raft_entry *entries; /* of the WAL, ascending */
    size_t entry_count;
};

SPAN_CHECKED span_status replica_start_raft(struct replica *r, const struct replica_birth *birth,
                                            struct span_error *err);
/* First records of a new replica: its file and its hard state. log_dropped: entries that the log
 * holds of an earlier life do not count. */
void replica_persist_birth(struct replica *r, bool log_dropped);
/* No flush is under way and nothing hinders one. */
bool replica_may_flush(const struct replica *r);
void replica_maybe_flush(struct replica *r, const struct tt_now *now);
/* A copy that pauses goes on when it is time. */
void replica_flush_resume(struct replica *r, const struct tt_now *now);

/* ---- replica_request.c ---- */
void replica_request(struct replica *r, const struct tt_now *now, struct slice body,
                     const struct range_request *q);
void replica_respond(struct replica *r, const struct range_request *q, struct range_response *resp);
void replica_refuse(struct replica *r, const struct range_request *q, span_status st,
                    const char *text);
void replica_park(struct replica *r, const struct tt_now *now, struct slice body,
                  const struct range_request *q, enum rpark why, struct rtxn *txn);
void replica_rerun(struct replica *r, const struct tt_now *now, struct list *waiting);
void replica_wake_granted(struct replica *r, const struct tt_now *now);
void replica_expire_parked(struct replica *r, const struct tt_now *now);
SPAN_CHECKED span_status replica_check_schema(struct replica *r, const struct range_request *q,
                                              struct tt_ts at);

/* ---- replica_txn.c: transactions at the leader ---- */
struct rtxn *rtxn_find(const struct replica *r, const struct txn_id *txn);
/* May this transaction still do something here: not finished, not dropped, not too old, its locks
 * of the same term (C1, C3, C12). */
SPAN_CHECKED span_status replica_admit_txn(struct replica *r, const struct range_request *q);
/* The transaction of an admitted request, made when it is new here. */
struct rtxn *rtxn_of_request(struct replica *r, const struct tt_now *now,
                             const struct range_request *q);
/* OP_PREPARE that can not be done: the coordinator hears it. */
void replica_vote_no(struct replica *r, const struct range_request *q, span_status why);
struct rtxn *rtxn_new(struct replica *r, const struct txn_id *txn, const struct txn_id *age,
                      enum rtxn_state state);
void rtxn_free(struct replica *r, const struct tt_now *now,
               struct rtxn *t); /* releases its locks, parked requests get LOCKS_LOST */
/* Its parked requests run again from the start, soon. */
void rtxn_unpark(struct replica *r, struct rtxn *t);
void rtxn_keys_set(struct rtxn *t, const struct txn_write *writes, size_t n);
void rtxn_flight(struct replica *r, struct rtxn *t, bool on);
void rtxn_forget(struct replica *r, const struct tt_now *now, const struct txn_id *txn,
                 span_status why);
const struct rgone *rtxn_gone(const struct replica *r, const struct txn_id *txn);
/* Unprepared transaction loses everything here; its gateway is told. */
void rtxn_wound(struct replica *r, const struct tt_now *now, struct rtxn *t, span_status why);
/* The links to a node went down: transactions of its gateway that hold locks here lose them. */
void replica_gateway_lost(struct replica *r, const struct tt_now *now, node_id gateway);
bool replica_wound_cb(void *ctx, struct lock_owner *victim, const struct lock_owner *by);
void replica_op_commit1(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q);
void replica_op_prepare(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q);
void replica_op_coordinate(struct replica *r, const struct tt_now *now, struct slice body,
                           const struct range_request *q);
void replica_op_validate(struct replica *r, const struct tt_now *now, struct slice body,
                         const struct range_request *q);
void replica_op_release(struct replica *r, const struct tt_now *now, const struct range_request *q);
void replica_op_status(struct replica *r, const struct tt_now *now, const struct range_request *q);
/* A timestamp above the floor, the clock and `above`; none if there is none below the lease end
 * now. */
struct tt_ts replica_choose_ts(struct replica *r, struct tt_ts latest, struct tt_ts above);

/* ---- replica_read.c ---- */
void replica_op_read(struct replica *r, const struct tt_now *now, struct slice body,
                     const struct range_request *q);

/* ---- replica_2pc.c ---- */
void replica_on_vote(struct replica *r, const struct tt_now *now, const struct txn_vote *m);
void replica_on_outcome(struct replica *r, const struct tt_now *now, const struct txn_outcome *m);
void replica_on_outcome_ack(struct replica *r, const struct tt_now *now,
                            const struct txn_outcome_ack *m);
void replica_on_query(struct replica *r, const struct tt_now *now, const struct txn_query *m);
void replica_on_wound(struct replica *r, const struct tt_now *now, const struct txn_query *m);
void replica_send_vote(struct replica *r, struct rtxn *t, bool yes, span_status why);
void replica_send_wound(struct replica *r, const struct rtxn *t);
void replica_try_decide(struct replica *r, const struct tt_now *now, struct rtxn *t);
/* Coordinated transactions whose votes are complete and that waited for the lease. */
void replica_decide_ready(struct replica *r, const struct tt_now *now);
void replica_abort_coordinated(struct replica *r, const struct tt_now *now, struct rtxn *t,
                               span_status why);
/* Replicates an abort record for a transaction this coordinator knows nothing of. `asker` (may be
 * empty) gets the outcome. */
void replica_propose_abort(struct replica *r, const struct tt_now *now, const struct txn_id *txn,
                           struct slice anchor, struct slice asker, node_id asker_node);
void replica_send_outcomes(struct replica *r, struct rtxn *t, bool all);
void replica_rtxn_timer(struct replica *r, const struct tt_now *now, struct rtxn *t);

#define META_KEY_BYTES (2 + 16)
/* Row of a prepared ('p') or decided ('d') transaction in the engine. */
struct slice replica_txn_key(uint8_t out[META_KEY_BYTES], char kind, const struct txn_id *id);

/* ---- replica_apply.c ---- */
SPAN_CHECKED span_status replica_apply(struct replica *r, const struct tt_now *now,
                                       const struct raft_entry *e);

/* ---- range_split.c ---- */
void replica_op_split(struct replica *r, const struct tt_now *now, struct slice body,
                      const struct range_request *q);
void replica_split_step(struct replica *r, const struct tt_now *now);
/* Leadership ends: whoever asked for a split hears it. */
void replica_split_cancel(struct replica *r);
SPAN_CHECKED span_status replica_apply_split(struct replica *r, const struct tt_now *now,
                                             const struct cmd_split *c, uint64_t index);

/* A split will come: its right side's file is built ahead. */
void replica_apply_split_ahead(struct replica *r, const struct tt_now *now,
                               const struct cmd_split *c, uint64_t index);
void replica_split_tick(struct replica *r, const struct tt_now *now);
/* For the leader: a member's file is ready; and whether this one's is. */
void replica_split_peer_ready(struct replica *r, node_id node);
bool replica_split_is_ready(const struct replica *r);
/* Whether a snapshot of that range would meet the file being built here. */
bool replica_split_in_the_way(struct replica *r, range_id right);
/* No split comes, or another one: what was built ahead goes. */
void replica_split_forget(struct replica *r);
/* A change that raises the generation is on its way (members, a merge that is given up). */
bool replica_generation_moves(const struct replica *r);

/* ---- range_merge.c ---- */
void replica_op_merge(struct replica *r, const struct tt_now *now, struct slice body,
                      const struct range_request *q);
/* At the left side's leader: the next step, if it can be taken. */
void replica_merge_step(struct replica *r, const struct tt_now *now);
/* Leadership of one of the sides ends. */
void replica_merge_cancel(struct replica *r);
/* Whether a commit request must wait until the sides of a merge have come to rest. */
bool replica_merge_holds_back(const struct replica *r, const struct range_request *q);
/* Frozen, or about to be, or about to take another in: nothing may be proposed (rule C2). */
bool replica_is_sealed(const struct replica *r);
/* Splits, merges: no other change of the range may begin. */
bool replica_is_changing(const struct replica *r);
/* At the frozen side's leader: asks whether the merge has come to nothing. */
void replica_frozen_step(struct replica *r, const struct tt_now *now);
SPAN_CHECKED span_status replica_apply_freeze(struct replica *r, const struct tt_now *now,
                                              const struct cmd_freeze *c,
                                              const struct raft_entry *e);
/* WOULD_WAIT: to be applied later. */
SPAN_CHECKED span_status replica_apply_merge(struct replica *r, const struct tt_now *now,
                                             const struct cmd_merge *c, uint64_t index);
void store_on_merge(struct store *s, const struct tt_now *now, node_id from, struct slice body);
#define MERGED_KEY_BYTES 32
/* Row of a range that was taken in; borrows key. */
struct slice replica_merged_row(char key[MERGED_KEY_BYTES], struct buf *value, range_id range,
                                uint64_t index);
/* Is the range one that this one took in, or that what it was split from took in? */
bool replica_has_merged(const struct replica *r, range_id range);
/* What was loaded says that these replicas' ranges were taken in: they go. */
void replica_drop_merged(struct replica *r, const struct tt_now *now);
SPAN_CHECKED span_status replica_load_merge(struct replica *r);
void replica_forget_merge(struct replica *r);

/* ---- range_autosplit.c ---- */
void replica_autosplit_reset(struct replica *r);

/* ---- replica_member.c ---- */
void replica_op_members(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q);
bool replica_member_busy(const struct replica *r);
/* Placement's own change; false: another is under way, or it can not be now. */
bool replica_member_start(struct replica *r, const struct tt_now *now, node_id add, node_id remove);
void replica_member_step(struct replica *r, const struct tt_now *now);
void replica_member_cancel(struct replica *r);
SPAN_CHECKED span_status replica_apply_conf(struct replica *r, struct slice payload);
/* `range`: this one, or one that it took in. */
void replica_on_probe(struct replica *r, const struct tt_now *now, node_id from, range_id range,
                      uint64_t number);

/* ---- replica_snapshot.c ---- */
void replica_snapshot_wanted(struct replica *r, const struct tt_now *now, node_id to);
void replica_on_snapshot(struct replica *r, const struct tt_now *now, node_id from,
                         struct slice bytes);
void replica_on_snapshot_ack(struct replica *r, const struct tt_now *now, node_id from,
                             struct slice bytes);
void replica_snapshot_stop(struct replica *r); /* all streams end */
void replica_snapshot_install(
    struct replica *r, const struct tt_now *now); /* a received file is complete: switch to it */
uint64_t replica_snapshot_floor(const struct replica *r); /* UINT64_MAX: no stream runs */
/* Position of the log that an installed file stands for. */
SPAN_CHECKED span_status replica_installed_base(struct replica *r, raft_index *index,
                                                raft_term *term, raft_index *conf_index,
                                                struct raft_conf *conf);
void replica_snapshot_tick(struct replica *r, const struct tt_now *now);
/* A flush left so much in SQLite's WAL: streams that keep it from being reset are given up (H5b).
 */
void replica_snapshot_pinned(struct replica *r, const struct tt_now *now, uint64_t wal_bytes);
/* A member's answer to a heartbeat: has it a replica of this range? One that goes on not having one
 * gets it by a snapshot (rule F1). */
void replica_peer_has(struct replica *r, const struct tt_now *now, node_id node, bool has);
bool replica_is_receiving(const struct replica *r);
/* The leader hears that a member has lost its file. */
void replica_on_rebuild(struct replica *r, const struct tt_now *now, node_id from, uint64_t number);

/* ---- store_rebuild.c ---- */
/* The file can not be trusted any more: out, and rebuilt if there is somebody to do it from. */
void replica_damaged(struct replica *r, const char *cause);
bool replica_can_rebuild(const struct replica *r);

/* ---- services of the store ---- */
struct buf *store_out(struct store *s, node_id to,
                      enum store_class cls); /* own node: the local queue */
/* Where a message of 2PC for this key goes: the leader as this node knows it; without a replica
 * here, or during an election, the hint, and after tries in vain every node in turn (a node passes
 * it on). */
node_id store_route(const struct store *s, struct slice anchor, node_id hint, unsigned tries);
void store_wake_at(struct store *s, struct replica *r, uint64_t mono_ns);
void store_mark_dirty(struct store *s, struct replica *r);
/* Nothing was heard of it for half a second: ten heartbeats. False for one never heard of. */
bool store_node_is_silent(const struct store *s, const struct tt_now *now, node_id node);
const struct tt_now *store_now(const struct store *s); /* of the event being handled */
const struct store_config *store_cfg(const struct store *s);
struct replica *store_replica(const struct store *s, range_id id);
struct replica *store_replica_at(const struct store *s, struct slice key);
void store_add_replica(struct store *s, struct replica *r);
/* r, taken in by `left`, is no range any more. Its files and records stay until `left` holds the
 * entry durably. */
void store_absorb(struct store *s, const struct tt_now *now, struct replica *r,
                  const struct replica *left, uint64_t index);
/* Where a message about the range of this key goes: the replica when it leads here, else NULL and
 * who is asked next, or 0. */
struct replica *store_leader_of(struct store *s, struct slice key, uint8_t *hops, node_id *forward);
void store_leave(struct store *s, struct replica *r); /* it is out: goes soon */
/* Removes files once everything persisted in this turn is durable. */
void store_remove_after_persist(struct store *s, struct replica *r,
                                const struct engine_options *files);
void store_born(struct store *s, struct replica *r); /* its first tick is due */
/* Another range has it in itself: nothing brings it back. */
bool store_is_merged(const struct store *s, range_id id);
/* A range of this number is here, was here, or became a part of another: it is not given again. */
bool store_knows_range(const struct store *s, range_id id);
/* Log state of a range that the WAL knows and no file or split has brought to life yet (rule F1).
 */
bool store_orphan_known(const struct store *s, range_id id);
void store_orphan_state(struct store *s, range_id id,
                        struct replica_birth *birth); /* fills hard state, entries, fresh */
void store_orphan_drop(struct store *s, range_id id);
/* A replica of it was here and was removed: neither a split replayed nor anything but a snapshot
 * brings it back. */
bool store_orphan_gone(const struct store *s, range_id id);
/* It became a part of another range: its damaged replica here is not rebuilt any more. */
void store_rebuild_drop(struct store *s, range_id id);
/* A replica of it was here, its file is damaged, and it waits for a snapshot. */
bool store_orphan_damaged(const struct store *s, range_id id);
uint64_t store_orphan_generation(const struct store *s, range_id id); /* of that file, else 0 */
/* May a stream with this number and term make a replica of the range here? */
bool store_rebuild_takes(const struct store *s, range_id id, uint64_t number, raft_term term);
/* One more replica leaves as soon as no flush of it runs. */
void store_leaves(struct store *s);
/* A replica that is nothing but a snapshot being received: no engine, no Raft, not in any map. */
void store_embryo_drop(struct store *s, range_id id);
bool store_embryo_known(const struct store *s, range_id id);
void store_embryo_born(struct store *s, struct replica *r);
void store_descriptors_changed(struct store *s);
/* lazy: nobody waits for it; it goes with the next turn that persists anything, at the latest after
 * STORE_LAZY_NS. */
void store_note_persist(struct store *s, struct replica *r, uint64_t persist_seq, bool lazy);
#define STORE_LAZY_NS MS_NS
/* The right side of a split wrote its first records in this turn: `left` waits for them. */
void store_note_birth(struct store *s, struct replica *left);
/* Heartbeats go out with the next tick, which is due: they tell what is committed. */
void store_heartbeat_now(struct store *s);
/* Every leadership here is to be handed over (clean stop, slow disk). */
bool store_hands_over(const struct store *s);
/* Whom to hand a leadership to: a node in good health that is not far behind, else Raft's choice.
 */
node_id store_handover_target(const struct store *s, const struct tt_now *now,
                              const struct raft *raft);
struct arena *store_request_arena(struct store *s);
struct arena *store_apply_arena(struct store *s);
struct raft_update *store_update(struct store *s);
struct buf *store_scratch(struct store *s);   /* cleared; for encoding one message at once */
struct buf *store_row_bytes(struct store *s); /* cleared; of the read being answered */
/* Descriptors of every replica here, in memory of the store until the next call. */
size_t store_descriptors_of(struct store *s, struct range_descriptor **out);

#endif
