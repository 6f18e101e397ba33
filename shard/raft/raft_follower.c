/* What every replica does for the leader of its term: take appends and heartbeats, promise, answer.
 *
 * Raft section 5.3 (log matching, repair) and rules B1, B2, A7. `matched` is what makes
 * acknowledgements and the commit index safe: only entries known to agree with the leader of the
 * present term are acknowledged or taken as committed. */
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/raft/raft_internal.h"

void raft_become_follower(struct raft *r, const struct tt_now *now, raft_term term, uint32_t leader,
                          enum raft_down_reason reason, struct raft_update *up)
{
    INVARIANT(term >= r->hs.term); /* terms only grow */
    if (r->role == RAFT_LEADER) {
        raft_leave_leader(r, reason, up);
    }
    if (r->role != RAFT_FOLLOWER || term > r->hs.term) {
        r->retry_mono_ns = now->mono_ns + raft_retry_jitter(r);
        r->vote_to = 0;
    }
    r->role = RAFT_FOLLOWER;
    if (term > r->hs.term) {
        r->hs.term = term;
        r->hs.voted_for = 0;
        r->hs_dirty = true;
        r->leader = 0;
        r->matched = r->commit;
        r->acked = 0;
        r->ack_due = false;
    }
    INVARIANT(leader == 0 || r->leader == 0 || r->leader == leader); /* one leader per term */
    r->leader = leader;
    if (leader != 0) {
        r->last_leader = leader;
        r->failures = 0;
        r->vote_to = 0; /* the election of this term is over */
    }
}

/* A message that only the leader of its term sends. */
static span_status hear_leader(struct raft *r, const struct tt_now *now, uint32_t from,
                               raft_term term, struct tt_ts lease_end, struct tt_ts *promised,
                               struct raft_update *up)
{
    if (term == r->hs.term && (r->role == RAFT_LEADER || (r->leader != 0 && r->leader != from))) {
        return SPAN_CORRUPT; /* election safety is broken somewhere */
    }
    raft_become_follower(r, now, term, from, RAFT_DOWN_TERM, up);
    *promised = raft_promise_give(&r->promise, now, term, lease_end);
    uint64_t grace = now->mono_ns + RAFT_LEADER_GRACE_NS;
    if (tt_is_none(lease_end) && r->retry_mono_ns < grace) {
        r->retry_mono_ns = grace; /* it is handing over: no hurry to stand against the target */
    }
    return SPAN_OK;
}

/* ---- appends ---- */

static void refuse_append(const struct raft *r, uint32_t to, const struct raft_append *a,
                          enum raft_refusal refusal, struct tt_ts promised, struct raft_update *up)
{
    struct raft_msg *m = raft_emit(up, RAFT_MSG_APPEND_ACK, to, r->hs.term);
    m->u.append_ack.refusal = refusal;
    m->u.append_ack.promised = promised;
    m->u.append_ack.prev_index = a->prev_index;
    if (refusal == RAFT_ACK_MISMATCH) {
        /* Section 5.3, fast back-up: nothing above hint_index can agree, whatever the leader holds
         * there, because our terms from there to prev_index are all greater than prev_term. */
        raft_index hint = raft_log_find(&r->log, a->prev_index, a->prev_term);
        raft_term term = 0;
        (void)raft_log_term(&r->log, hint, &term);
        m->u.append_ack.hint_index = hint;
        m->u.append_ack.hint_term = term;
    }
}

/* The message's own consistency: what no correct leader sends. */
static span_status check_append(const struct raft_msg *m)
{
    const struct raft_append *a = &m->u.append;
    raft_term term = a->prev_term;
    if (a->prev_index == 0 && a->prev_term != 0) {
        return SPAN_PROTOCOL;
    }
    for (size_t i = 0; i < a->entry_count; i++) {
        const struct raft_entry *e = &a->entries[i];
        if (e->index != a->prev_index + 1 + i || e->term < term || e->term > m->term ||
            e->type == RAFT_ENTRY_NONE) {
            return SPAN_PROTOCOL;
        }
        term = e->term;
        struct raft_conf conf;
        if (e->type == RAFT_ENTRY_CONF &&
            raft_conf_decode(raft_blob_slice(e->payload), &conf) != SPAN_OK) {
            return SPAN_PROTOCOL;
        }
    }
    return SPAN_OK;
}

/* How many of the entries may be appended: all up to the first whose timestamp lies too far ahead
 * (rule A7); what is committed is always taken. */
static size_t guard_entries(const struct raft *r, const struct tt_now *now,
                            const struct raft_append *a)
{
    if (r->entry_guard == NULL) {
        return a->entry_count;
    }
    struct tt_ts bound = tt_add(now->tt.latest, SKEW_NS_MAX);
    for (size_t i = 0; i < a->entry_count; i++) {
        const struct raft_entry *e = &a->entries[i];
        if (e->index <= a->commit || e->index <= r->commit) {
            continue;
        }
        if (tt_lt(bound, r->entry_guard(e->type, raft_blob_slice(e->payload)))) {
            return i;
        }
    }
    return a->entry_count;
}

/* Appends what is missing behind the agreed prev_index (section 5.3, steps 3 and 4). Entries that
 * agree are left alone, or a late append would cut off what a newer one brought. */
static span_status take_entries(struct raft *r, const struct raft_append *a, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct raft_entry *e = &a->entries[i];
        if (e->index <= r->log.base_index) {
            continue;
        }
        if (e->index <= raft_log_last(&r->log)) {
            if (raft_log_matches(&r->log, e->index, e->term)) {
                continue;
            }
            if (e->index <= r->matched) {
                return SPAN_CORRUPT;
            }
            raft_log_cut(r, e->index);
        }
        raft_log_add(r, e);
    }
    return SPAN_OK;
}

/* Does our log agree with the leader's at prev? A compacted prev agrees (it is committed), if the
 * entries reach to our base they must agree there. */
static bool agrees_at_prev(const struct raft *r, const struct raft_append *a)
{
    if (a->prev_index >= r->log.base_index) {
        return raft_log_matches(&r->log, a->prev_index, a->prev_term);
    }
    raft_index skip = r->log.base_index - a->prev_index;
    return skip > a->entry_count || a->entries[skip - 1].term == r->log.base_term;
}

span_status raft_on_append(struct raft *r, const struct tt_now *now, uint32_t from,
                           const struct raft_msg *m, struct raft_update *up)
{
    const struct raft_append *a = &m->u.append;
    span_status st = check_append(m);
    if (st != SPAN_OK) {
        return st;
    }
    if (m->term < r->hs.term) {
        refuse_append(r, from, a, RAFT_ACK_TERM, tt_ts_of(0), up);
        return SPAN_OK;
    }
    struct tt_ts promised;
    st = hear_leader(r, now, from, m->term, a->lease_end, &promised, up);
    if (st != SPAN_OK) {
        return st;
    }
    if (!agrees_at_prev(r, a)) {
        if (a->prev_index <= r->matched) {
            return SPAN_CORRUPT; /* leader completeness or append-only is broken somewhere */
        }
        refuse_append(r, from, a, RAFT_ACK_MISMATCH, promised, up);
        return SPAN_OK;
    }
    size_t count = guard_entries(r, now, a);
    if (count == 0 && a->entry_count > 0) {
        refuse_append(r, from, a, RAFT_ACK_CLOCK, promised, up);
        return SPAN_OK;
    }
    st = take_entries(r, a, count);
    if (st != SPAN_OK) {
        return st;
    }
    if (a->prev_index + count > r->matched) {
        r->matched = a->prev_index + count;
    }
    raft_set_commit(r, a->commit < r->matched ? a->commit : r->matched);
    r->ack_due = true;
    return SPAN_OK;
}

static raft_index durable_match(const struct raft *r)
{
    if (!raft_hs_is_durable(r)) {
        return 0; /* after a crash we might be in an older term and follow its leader */
    }
    bool all = r->matched <= r->stable || PLANTED(ACK_BEFORE_SYNC);
    return all ? r->matched : r->stable;
}

void raft_emit_ack(struct raft *r, struct raft_update *up)
{
    if (!r->ack_due || r->role != RAFT_FOLLOWER || r->leader == 0 || !raft_hs_is_durable(r)) {
        return;
    }
    raft_index match = durable_match(r);
    if (match < r->matched && match <= r->acked) {
        return; /* nothing new is durable */
    }
    r->acked = match;
    r->ack_due = match < r->matched;
    struct raft_msg *m = raft_emit(up, RAFT_MSG_APPEND_ACK, r->leader, r->hs.term);
    m->u.append_ack.refusal = RAFT_ACK_OK;
    m->u.append_ack.match = match;
    m->u.append_ack.accepted = r->matched;
    m->u.append_ack.promised = r->promise.term == r->hs.term ? r->promise.in_term : tt_ts_of(0);
}

/* ---- heartbeats ---- */

span_status raft_on_heartbeat(struct raft *r, const struct tt_now *now, uint32_t from,
                              const struct raft_heartbeat *hb, struct raft_update *up)
{
    struct raft_heartbeat_ack *ack = &up->heartbeat_ack;
    if (from == 0 || from == r->self || hb->term == 0 || hb->term > RAFT_TERM_MAX) {
        return SPAN_PROTOCOL;
    }
    if (hb->term >= r->hs.term) {
        /* Rule B1: the promise is renewed for this range only because the terms agree. */
        span_status st = hear_leader(r, now, from, hb->term, hb->lease_end, &ack->promised, up);
        if (st != SPAN_OK) {
            return st;
        }
        raft_set_commit(r, hb->commit < r->matched ? hb->commit : r->matched);
        ack->match = durable_match(r);
        ack->accepted = r->matched;
        ack->behind = r->matched < hb->last_index;
    }
    ack->term = r->hs.term;
    if (PLANTED(PROMISE_OF_NO_TERM) && hb->term < r->hs.term) {
        ack->term = hb->term;
        ack->promised = hb->lease_end;
    }
    ack->last_index = raft_log_last(&r->log);
    up->has_heartbeat_ack = true;
    return SPAN_OK;
}

/* ---- snapshots ---- */

span_status raft_on_installed(struct raft *r, const struct raft_event *ev, struct raft_update *up)
{
    raft_index index = ev->u.installed.index;
    raft_term term = ev->u.installed.term;
    if (r->role == RAFT_LEADER || index <= r->applied || term == 0 ||
        ev->u.installed.conf_index > index) {
        return SPAN_INVALID;
    }
    if (term > r->hs.term) {
        raft_become_follower(r, &ev->now, term, 0, RAFT_DOWN_NONE, up); /* there is such a term */
    }
    bool agrees = raft_log_matches(&r->log, index, term);
    if (index <= r->commit && !agrees) {
        return SPAN_CORRUPT;
    }
    if (agrees) {
        raft_log_compact(&r->log, index);
    } else {
        raft_log_not_stable(r, index + 1);
        raft_log_reset(&r->log, index, term);
        up->log_dropped = true;
    }
    raft_confs_install(r, &ev->u.installed.conf, ev->u.installed.conf_index, index);
    /* The owner may have been handed more than it could apply: it goes on from here. */
    r->applied = index;
    r->handed = r->handed > index ? r->handed : index;
    if (r->stable < index) {
        r->stable = index; /* the snapshot itself is durable */
    }
    if (r->matched < index) {
        r->matched = index; /* every later leader has what is committed */
    }
    raft_set_commit(r, index);
    r->ack_due = true;
    return SPAN_OK;
}
