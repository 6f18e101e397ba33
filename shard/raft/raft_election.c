/* Standing and voting: Raft sections 5.2, 5.4.1 and 9.6 (pre-vote), under the lease rules B2, B3,
 * B5 and B9.
 *
 *     FOLLOWER --promise over, rank's turn--> PRE_CANDIDATE --majority would vote--> CANDIDATE
 *        ^                                        |    ^                               |   |
 *        +----- leader heard, newer term ---------+----|------ nobody won -------------+   |
 *        +----------------------------------------------------------------------<----------+
 *                                                            majority voted -> LEADER
 *
 * A transfer target, and the left leader's node at a split, go from FOLLOWER to CANDIDATE directly,
 * with a release. Term and vote are durable before a request or an answer says so: the candidate's
 * requests and the voter's answer wait in raft_emit_votes(). */
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/raft/raft_internal.h"

uint64_t raft_retry_jitter(struct raft *r)
{
    uint64_t ns = rng_between(&r->rng, RAFT_RETRY_NS_MIN, RAFT_RETRY_NS_MAX);
    return r->failures > RAFT_RETRY_MANY ? 3 * ns : ns;
}

static size_t rank_of_self(const struct raft *r)
{
    return raft_conf_rank(raft_conf_now(r), r->self, r->last_leader);
}

/* Everything but patience: a voter, wanted, no promise running, a good clock. */
static bool may_stand(const struct raft *r, const struct tt_now *now, raft_term released_term)
{
    return r->may_lead && raft_conf_is_voter(raft_conf_now(r), r->self) &&
           (raft_promise_is_over(&r->promise, now, released_term) ||
            PLANTED(STANDS_INSIDE_PROMISE));
}

/* Rule I4: tt_after(promise) plus a spread by rank, so that the first to stand usually stands
 * alone. */
static struct tt_ts stand_after(const struct raft *r)
{
    struct tt_ts end = raft_promise_end(&r->promise);
    return tt_is_none(end) ? end : tt_add(end, rank_of_self(r) * STAND_SPREAD_NS);
}

/* ---- votes collected ---- */

static bool vote_is_in(const struct raft *r, uint32_t node)
{
    for (size_t i = 0; i < r->vote_count; i++) {
        if (r->votes[i] == node) {
            return true;
        }
    }
    return false;
}

static void vote_count_in(struct raft *r, uint32_t node)
{
    if (raft_conf_is_voter(raft_conf_now(r), node) && !vote_is_in(r, node)) {
        INVARIANT(r->vote_count < LIMIT_REPLICAS);
        r->votes[r->vote_count++] = node;
    }
}

static bool has_majority(const struct raft *r)
{
    return r->vote_count >= raft_conf_quorum(raft_conf_now(r)) && r->vote_count > 0;
}

static void ask_votes(struct raft *r, bool pre, struct raft_update *up)
{
    const struct raft_conf *c = raft_conf_now(r);
    for (size_t i = 0; i < c->count; i++) {
        uint32_t node = c->members[i].node;
        if (!c->members[i].voter || node == r->self || vote_is_in(r, node)) {
            continue;
        }
        struct raft_msg *m = raft_emit(up, RAFT_MSG_VOTE, node, r->hs.term + (pre ? 1 : 0));
        m->u.vote.pre = pre;
        m->u.vote.last_index = raft_log_last(&r->log);
        m->u.vote.last_term = raft_log_last_term(&r->log);
        m->u.vote.has_release = !pre && r->has_release;
        m->u.vote.release = m->u.vote.has_release ? r->release : tt_ts_of(0);
    }
}

/* ---- standing ---- */

static void become_candidate(struct raft *r)
{
    INVARIANT(r->role != RAFT_LEADER);
    r->hs.term++;
    r->hs.voted_for = r->self;
    r->hs_dirty = true;
    r->role = RAFT_CANDIDATE;
    r->leader = 0;
    r->matched = r->commit;
    r->acked = 0;
    r->ack_due = false;
    r->vote_to = 0;
    r->vote_count = 0;
    r->asked = false;
    r->retry_mono_ns = UINT64_MAX; /* set when the requests go out */
    r->vote_floor = tt_ts_of(0);
}

static void stand_plainly(struct raft *r)
{
    become_candidate(r);
    r->has_release = false;
    r->release = tt_ts_of(0);
}

/* Rule B5: in the term after the released one only. */
static void stand_by_release(struct raft *r, struct tt_ts release)
{
    raft_term released_term = r->hs.term;
    become_candidate(r);
    r->has_release = true;
    r->release = release;
    raft_promise_release(&r->promise, released_term, release);
}

static void start_pre_vote(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    r->role = RAFT_PRE_CANDIDATE;
    r->leader = 0;
    r->vote_to = 0;
    r->has_release = false;
    r->failures++;
    r->retry_mono_ns = now->mono_ns + raft_retry_jitter(r);
    r->vote_count = 0;
    vote_count_in(r, r->self);
    if (has_majority(r)) {
        stand_plainly(r);
        return;
    }
    ask_votes(r, true, up);
}

span_status raft_on_campaign(struct raft *r, const struct tt_now *now, struct tt_ts release,
                             struct raft_update *up)
{
    bool by_release = !tt_is_none(release);
    if (r->role == RAFT_LEADER || r->role == RAFT_CANDIDATE) {
        return SPAN_INVALID;
    }
    raft_promise_see_clock(&r->promise, now);
    if (!may_stand(r, now, by_release ? r->hs.term : 0)) {
        return SPAN_UNAVAILABLE;
    }
    if (by_release) {
        stand_by_release(r, release);
    } else {
        start_pre_vote(r, now, up);
    }
    return SPAN_OK;
}

span_status raft_on_timeout_now(struct raft *r, const struct tt_now *now, uint32_t from,
                                const struct raft_msg *m, struct raft_update *up)
{
    (void)up;
    /* A late or doubled one finds another term. */
    if (m->term != r->hs.term || r->role == RAFT_LEADER || r->role == RAFT_CANDIDATE ||
        (r->leader != 0 && r->leader != from)) {
        return SPAN_OK;
    }
    if (may_stand(r, now, r->hs.term)) {
        stand_by_release(r, m->u.timeout_now.release);
    }
    return SPAN_OK;
}

/* ---- voting ---- */

static void answer_vote(const struct raft *r, uint32_t to, const struct raft_msg *m, bool granted,
                        struct tt_ts promised, uint64_t wait_ns, struct raft_update *up)
{
    struct raft_msg *a = raft_emit(up, RAFT_MSG_VOTE_ACK, to, r->hs.term);
    a->u.vote_ack.pre = m->u.vote.pre;
    a->u.vote_ack.granted = granted;
    a->u.vote_ack.vote_term = m->term;
    a->u.vote_ack.promised = promised;
    a->u.vote_ack.wait_ns = wait_ns;
}

static void on_pre_vote(const struct raft *r, const struct tt_now *now, uint32_t from,
                        const struct raft_msg *m, struct raft_update *up)
{
    const struct raft_vote *v = &m->u.vote;
    bool good =
        m->term > r->hs.term && raft_log_is_up_to_date(&r->log, v->last_index, v->last_term);
    if (good && !raft_promise_is_over(&r->promise, now, 0)) {
        answer_vote(r, from, m, false, tt_ts_of(0), raft_promise_wait_ns(&r->promise, now), up);
        return;
    }
    answer_vote(r, from, m, good, tt_ts_of(0), 0, up);
}

span_status raft_on_vote(struct raft *r, const struct tt_now *now, uint32_t from,
                         const struct raft_msg *m, struct raft_update *up)
{
    const struct raft_vote *v = &m->u.vote;
    raft_promise_see_clock(&r->promise, now);
    if (v->pre) {
        on_pre_vote(r, now, from, m, up);
        return SPAN_OK;
    }
    if (m->term < r->hs.term) {
        answer_vote(r, from, m, false, tt_ts_of(0), 0, up);
        return SPAN_OK;
    }
    /* Rule B5: void only in the term after the released one, and at the leader itself only if it
     * did release (a claim it cannot confirm is none). */
    bool released = v->has_release && (r->role != RAFT_LEADER || r->lease.released);
    raft_term released_term = released ? m->term - 1 : 0;
    if (!raft_promise_is_over(&r->promise, now, released_term)) {
        /* Rule B2: no vote, and the higher term is not adopted. */
        answer_vote(r, from, m, false, tt_ts_of(0), raft_promise_wait_ns(&r->promise, now), up);
        return SPAN_OK;
    }
    if (m->term == r->hs.term && r->hs.voted_for == from && r->role == RAFT_FOLLOWER &&
        r->leader == 0) {
        r->vote_to = from; /* asked again: the answer was lost, or is still being written */
        r->vote_promised = raft_promise_greatest(&r->promise);
        return SPAN_OK;
    }
    if (m->term > r->hs.term) {
        raft_become_follower(r, now, m->term, 0, RAFT_DOWN_TERM, up);
    }
    if (r->role == RAFT_LEADER || r->leader != 0 || r->hs.voted_for != 0 ||
        !raft_log_is_up_to_date(&r->log, v->last_index, v->last_term)) {
        answer_vote(r, from, m, false, tt_ts_of(0), 0, up);
        return SPAN_OK;
    }
    if (r->role == RAFT_PRE_CANDIDATE) {
        raft_become_follower(r, now, m->term, 0, RAFT_DOWN_NONE, up);
    }
    r->hs.voted_for = from;
    r->hs_dirty = true;
    if (released) {
        raft_promise_release(&r->promise, released_term, v->release);
    }
    r->vote_to = from;
    r->vote_promised = raft_promise_greatest(&r->promise);
    /* Give the candidate time to win before standing against it. */
    r->retry_mono_ns = now->mono_ns + RAFT_RETRY_NS_MAX / 2 + raft_retry_jitter(r);
    return SPAN_OK;
}

span_status raft_on_vote_ack(struct raft *r, const struct tt_now *now, uint32_t from,
                             const struct raft_msg *m, struct raft_update *up)
{
    const struct raft_vote_ack *v = &m->u.vote_ack;
    bool pre = r->role == RAFT_PRE_CANDIDATE;
    if (!pre && r->role != RAFT_CANDIDATE) {
        return SPAN_OK; /* late */
    }
    if (m->term > r->hs.term && !v->granted) {
        raft_become_follower(r, now, m->term, 0, RAFT_DOWN_NONE, up);
        return SPAN_OK;
    }
    if (v->pre != pre || v->vote_term != r->hs.term + (pre ? 1 : 0)) {
        return SPAN_OK;
    }
    if (!v->granted) {
        /* Only a promise is in the way, and it ends soon: ask again then. */
        uint64_t at = now->mono_ns + v->wait_ns;
        if (pre && v->wait_ns > 0 && v->wait_ns <= LEASE_NS_MAX && at < r->retry_mono_ns) {
            r->retry_mono_ns = at;
        }
        return SPAN_OK;
    }
    if (pre) {
        vote_count_in(r, from);
        if (has_majority(r)) {
            stand_plainly(r);
        }
        return SPAN_OK;
    }
    if (!r->asked) {
        return SPAN_PROTOCOL; /* granted before it was asked */
    }
    vote_count_in(r, from);
    r->vote_floor = tt_max(r->vote_floor, v->promised); /* rule A1 */
    if (has_majority(r)) {
        raft_become_leader(r, now, up);
    }
    return SPAN_OK;
}

/* ---- what waits for durability ---- */

static void candidate_ask(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    r->asked = true;
    r->retry_mono_ns =
        now->mono_ns +
        (r->has_release ? RAFT_RELEASE_STAND_NS : RAFT_RETRY_NS_MAX / 2 + raft_retry_jitter(r));
    r->resend_mono_ns = now->mono_ns + RAFT_RESEND_NS;
    vote_count_in(r, r->self); /* its own vote counts once it is durable, like any other */
    r->vote_floor = tt_max(r->vote_floor, raft_promise_greatest(&r->promise));
    if (r->has_release) {
        r->vote_floor = tt_max(r->vote_floor, r->release);
    }
    if (has_majority(r)) {
        raft_become_leader(r, now, up);
        return;
    }
    ask_votes(r, false, up);
}

void raft_emit_votes(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    if (!raft_hs_is_durable(r)) {
        return;
    }
    if (r->role == RAFT_CANDIDATE && !r->asked) {
        candidate_ask(r, now, up);
    }
    if (r->vote_to != 0) {
        INVARIANT(r->hs.voted_for == r->vote_to);
        struct raft_msg *m = raft_emit(up, RAFT_MSG_VOTE_ACK, r->vote_to, r->hs.term);
        m->u.vote_ack.granted = true;
        m->u.vote_ack.vote_term = r->hs.term;
        m->u.vote_ack.promised = r->vote_promised;
        r->vote_to = 0;
    }
}

/* ---- timers ---- */

void raft_election_start(struct raft *r, const struct tt_now *now)
{
    if (!r->timers_started) {
        /* Without any promise to count from (a new range) ranks spread on the monotonic clock. */
        r->timers_started = true;
        r->retry_mono_ns = now->mono_ns + rank_of_self(r) * 2 * STAND_SPREAD_NS;
    }
}

void raft_election_timers(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    if (r->role == RAFT_LEADER) {
        return;
    }
    if (r->role == RAFT_CANDIDATE) {
        if (now->mono_ns >= r->retry_mono_ns || !raft_clock_is_good(now) || !r->may_lead) {
            raft_become_follower(r, now, r->hs.term, 0, RAFT_DOWN_NONE, up);
        } else if (r->asked && now->mono_ns >= r->resend_mono_ns) {
            r->resend_mono_ns = now->mono_ns + RAFT_RESEND_NS;
            ask_votes(r, false, up);
        }
        return;
    }
    if (now->mono_ns < r->retry_mono_ns) {
        return;
    }
    bool early = PLANTED(STANDS_INSIDE_PROMISE);
    if (!may_stand(r, now, 0) || (!tt_after(&now->tt, stand_after(r)) && !early)) {
        if (r->role == RAFT_PRE_CANDIDATE) {
            r->role = RAFT_FOLLOWER;
        }
        return;
    }
    start_pre_vote(r, now, up);
}

uint64_t raft_election_deadline(const struct raft *r, const struct tt_now *now)
{
    if (r->role == RAFT_CANDIDATE) {
        if (!r->asked) {
            return UINT64_MAX; /* PERSISTED comes first */
        }
        return r->retry_mono_ns < r->resend_mono_ns ? r->retry_mono_ns : r->resend_mono_ns;
    }
    if (!r->may_lead || !raft_conf_is_voter(raft_conf_now(r), r->self)) {
        return UINT64_MAX;
    }
    uint64_t at = now->mono_ns + RAFT_CLOCK_POLL_NS;
    if (raft_clock_is_good(now)) {
        struct tt_ts end = stand_after(r);
        at = tt_after(&now->tt, end) ? now->mono_ns
                                     : now->mono_ns + (end.ns - now->tt.earliest.ns) + 1;
    }
    return at > r->retry_mono_ns ? at : r->retry_mono_ns;
}
