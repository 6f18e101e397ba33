/* Promises and leases on TrueTime: rules B2, B3, B4, B5, B7, B9.
 *
 * A leader asks for a promise by putting an absolute lease end e <= its own earliest + lease length
 * into appends and heartbeats. A member of that term promises by echoing it; a late or doubled
 * answer can therefore only confirm e. Until tt_after(e) by its own clock a promiser grants no vote
 * and no pre-vote, does not stand, and does not adopt the higher term of a vote request. The lease
 * end in force, E, is the greatest end that a majority, the leader included, has promised; the
 * leader acts while tt_before(E).
 *
 * Why leases of one range are disjoint in true time: a new leader needs votes from a majority,
 * which shares a member with the majority that promised E; that member voted only when E had
 * certainly passed, and the old leader stopped when E had not certainly not come. The exceptions
 * are made sound one by one: a release (B5) voids promises because its leader never serves again in
 * that term, and carries its floor instead; a restart (B3) forgets promises but waits longer than
 * any of them can last; a membership change (B4) takes the minimum over every configuration that
 * could elect. */
#ifndef SPAN_SHARD_RAFT_RAFT_LEASE_H
#define SPAN_SHARD_RAFT_RAFT_LEASE_H

#include "shard/raft/raft_conf.h"
#include "shard/raft/raft_msg.h"

/* What this replica has promised. As a leader: what it has used (a leader that stepped down is a
 * promiser like any other). */
struct raft_promise {
    struct tt_ts bound;   /* promises of earlier terms, the restart wait */
    raft_term term;       /* the promise that a release of this term's leader can void ... */
    struct tt_ts in_term; /* ... none: nothing promised to it */
    struct tt_ts floor;   /* releases it voted by: reported like a promise, but stands in no way */
    bool clock_unseen;    /* restarted, and the clock has not been good since (rule B3) */
};

/* May this clock state vote, stand and lead (rule B9)? Promising and acknowledging it may in any.
 */
bool raft_clock_is_good(const struct tt_now *now);

/* fresh, promised, term: as in struct raft_config. */
void raft_promise_init(struct raft_promise *p, bool fresh, struct tt_ts promised, raft_term term);
/* Every reading of the clock passes here: the first good one after a restart starts the wait. */
void raft_promise_see_clock(struct raft_promise *p, const struct tt_now *now);
/* Promises e to the leader of `term` (rule B2), unless e lies beyond own latest + LEASE_NS_MAX
 * (rules A7, B3). Returns the greatest end promised to it so far; none: nothing. */
struct tt_ts raft_promise_give(struct raft_promise *p, const struct tt_now *now, raft_term term,
                               struct tt_ts e);
/* The leader of `term` itself has a lease until e. */
void raft_promise_use(struct raft_promise *p, raft_term term, struct tt_ts e);
/* May this replica vote or stand? released_term: the term whose leader is known to have released
 * its lease to the candidate, 0: none. */
bool raft_promise_is_over(const struct raft_promise *p, const struct tt_now *now,
                          raft_term released_term);
/* This replica takes part in an election by release of `term`: the promise to that term gives way
 * to the release, below which no later leader may give out timestamps. */
void raft_promise_release(struct raft_promise *p, raft_term term, struct tt_ts release);
/* The greatest end of all (rule A1: what a vote reports), and the one that must pass before it
 * votes or stands without a release. */
struct tt_ts raft_promise_greatest(const struct raft_promise *p);
struct tt_ts raft_promise_end(const struct raft_promise *p);
/* About how long until raft_promise_is_over for a request without a release; 0: now, or never as
 * far as can be known (clock). */
uint64_t raft_promise_wait_ns(const struct raft_promise *p, const struct tt_now *now);

/* The leader's side. */
struct raft_lease {
    struct tt_ts self; /* its own promise to itself */
    struct tt_ts end;  /* E */
    bool released;     /* rule B5: never again in this term */
    struct tt_ts release;
};

/* What a leader may ask for now: earliest + length; none with a bad clock. */
struct tt_ts raft_lease_ask(const struct tt_now *now, uint64_t lease_ns);

#endif
