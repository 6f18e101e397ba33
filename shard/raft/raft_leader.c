/* What the leader does: take proposals, replicate (raft_flush), count, hold its lease, hand over.
 *
 * Raft sections 5.3 and 5.4.2 (only entries of the own term are committed by counting), rules B2 to
 * B5, B7 and B9. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/raft/raft_internal.h"

/* ---- members ---- */

const struct raft_progress *raft_find_progress(const struct raft *r, uint32_t node)
{
    for (size_t i = 0; i < r->progress_count; i++) {
        if (r->progress[i].node == node) {
            return &r->progress[i];
        }
    }
    return NULL;
}

static struct raft_progress *find_progress(struct raft *r, uint32_t node)
{
    for (size_t i = 0; i < r->progress_count; i++) {
        if (r->progress[i].node == node) {
            return &r->progress[i];
        }
    }
    return NULL;
}

static bool is_member(const struct raft *r, uint32_t node)
{
    for (size_t i = raft_conf_committed(r); i < r->conf_count; i++) {
        if (raft_conf_has(&r->confs[i].conf, node)) {
            return true;
        }
    }
    return false;
}

/* Progress for every other member of every configuration from the last committed one on: one that
 * is being removed still gets its removal, and its promise still counts (rule B4). */
static void sync_progress(struct raft *r, uint64_t mono_ns)
{
    for (size_t i = 0; i < r->progress_count;) {
        if (is_member(r, r->progress[i].node)) {
            i++;
        } else {
            r->progress[i] = r->progress[--r->progress_count];
        }
    }
    for (size_t i = raft_conf_committed(r); i < r->conf_count; i++) {
        const struct raft_conf *c = &r->confs[i].conf;
        for (size_t k = 0; k < c->count; k++) {
            uint32_t node = c->members[k].node;
            if (node == r->self || raft_find_progress(r, node) != NULL) {
                continue;
            }
            REQUIRE(r->progress_count < RAFT_PROGRESS_MAX);
            raft_progress_init(&r->progress[r->progress_count++], node, raft_log_last(&r->log),
                               mono_ns);
        }
    }
}

/* ---- lease ---- */

static uint64_t promised_by(const void *ctx, uint32_t node)
{
    const struct raft *r = (const struct raft *)ctx;
    if (node == r->self) {
        return r->lease.self.ns;
    }
    const struct raft_progress *p = raft_find_progress(r, node);
    return p == NULL ? 0 : p->promised.ns;
}

/* Rule B4: the minimum over every configuration that could elect a successor, `extra` (may be NULL)
 * being one about to be appended. */
static struct tt_ts lease_end_with(const struct raft *r, const struct raft_conf *extra)
{
    if (PLANTED(LEASE_OF_OLD_MEMBERS)) {
        const struct raft_conf *old = raft_conf_at(r, r->term_start - 1, NULL);
        return tt_ts_of(raft_conf_quorum_value(old, promised_by, r));
    }
    uint64_t end = extra == NULL ? UINT64_MAX : raft_conf_quorum_value(extra, promised_by, r);
    for (size_t i = raft_conf_committed(r); i < r->conf_count; i++) {
        uint64_t e = raft_conf_quorum_value(&r->confs[i].conf, promised_by, r);
        end = e < end ? e : end;
    }
    return tt_ts_of(end);
}

static void refresh_lease(struct raft *r, const struct tt_now *now)
{
    if (r->lease.released) {
        return;
    }
    r->lease.self = tt_max(r->lease.self, raft_lease_ask(now, r->lease_ns));
    r->lease.end = lease_end_with(r, NULL);
    /* Recorded as a promise of its own: should it step down, it votes for nobody before. */
    raft_promise_use(&r->promise, r->hs.term, r->lease.end);
}

/* What to put into a message; nothing once the lease is given away or the clock is out. */
static struct tt_ts lease_to_ask(const struct raft *r, const struct tt_now *now)
{
    return r->lease.released ? tt_ts_of(0) : raft_lease_ask(now, r->lease_ns);
}

/* ---- coming and going ---- */

void raft_become_leader(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    INVARIANT(r->role == RAFT_CANDIDATE);
    INVARIANT(raft_hs_is_durable(r));
    r->role = RAFT_LEADER;
    r->leader = r->self;
    r->last_leader = r->self;
    r->failures = 0;
    r->term_start = raft_log_last(&r->log) + 1;
    r->progress_count = 0;
    sync_progress(r, now->mono_ns);
    memset(&r->lease, 0, sizeof(r->lease));
    r->transfer_to = 0;
    r->clock_bad = false;
    r->uncommitted_bytes = 0;
    for (raft_index i = r->commit + 1; i < r->term_start; i++) {
        r->uncommitted_bytes += raft_blob_slice(raft_log_at(&r->log, i)->payload).size;
    }
    up->became_leader = true;
    up->vote_floor = r->vote_floor;
    refresh_lease(r, now);
}

void raft_leave_leader(struct raft *r, enum raft_down_reason reason, struct raft_update *up)
{
    r->role = RAFT_FOLLOWER;
    r->leader = 0;
    r->progress_count = 0;
    memset(&r->lease, 0, sizeof(r->lease));
    r->transfer_to = 0;
    r->matched = r->commit;
    r->ack_due = false;
    up->stepped_down = true;
    up->down_reason = reason;
}

static void step_down(struct raft *r, const struct tt_now *now, enum raft_down_reason reason,
                      struct raft_update *up)
{
    raft_leave_leader(r, reason, up);
    r->retry_mono_ns = now->mono_ns + raft_retry_jitter(r);
}

/* ---- proposals ---- */

static span_status check_conf_change(const struct raft *r, const struct raft_event *ev)
{
    struct raft_conf next;
    const struct raft_proposal *p = &ev->u.propose.items[0];
    struct slice bytes = p->blob != NULL ? raft_blob_slice(p->blob) : p->payload;
    if (ev->u.propose.count != 1 || raft_conf_decode(bytes, &next) != SPAN_OK ||
        raft_conf_distance(raft_conf_now(r), &next) > 1 || !raft_conf_is_voter(&next, r->self)) {
        return SPAN_INVALID;
    }
    /* Raft dissertation 4.1 and its erratum: one at a time, and not before an own-term entry. */
    bool early = r->commit < r->term_start && !PLANTED(MEMBERS_TOO_EARLY);
    if (raft_conf_committed(r) + 1 < r->conf_count || early) {
        return SPAN_WOULD_WAIT;
    }
    /* Rule B4: what was given out must stay below the lease that the new configuration leaves. */
    if (!tt_lt(ev->u.propose.floor, lease_end_with(r, &next))) {
        return SPAN_WOULD_WAIT;
    }
    return SPAN_OK;
}

static span_status check_proposals(const struct raft *r, const struct raft_event *ev)
{
    const struct raft_proposal *items = ev->u.propose.items;
    size_t bytes = 0;
    for (size_t i = 0; i < ev->u.propose.count; i++) {
        size_t n = items[i].blob != NULL ? items[i].blob->size : items[i].payload.size;
        if (items[i].type == RAFT_ENTRY_NONE) {
            return SPAN_INVALID;
        }
        if (n > LIMIT_ENTRY_BYTES) {
            return SPAN_TOO_LARGE;
        }
        bytes += n;
        if (items[i].type == RAFT_ENTRY_CONF) {
            span_status st = check_conf_change(r, ev);
            if (st != SPAN_OK) {
                return st;
            }
        }
    }
    bool first = raft_log_last(&r->log) < r->term_start; /* owed (rule B6): never refused */
    return !first && r->uncommitted_bytes + bytes > RAFT_UNCOMMITTED_BYTES_MAX ? SPAN_OVERLOADED
                                                                               : SPAN_OK;
}

span_status raft_on_propose(struct raft *r, const struct raft_event *ev, struct raft_update *up)
{
    if (r->role != RAFT_LEADER || r->lease.released) {
        return SPAN_NOT_LEADER;
    }
    if (ev->u.propose.count == 0) {
        return SPAN_INVALID;
    }
    span_status st = check_proposals(r, ev);
    if (st != SPAN_OK) {
        return st;
    }
    up->proposed_index = raft_log_last(&r->log) + 1;
    for (size_t i = 0; i < ev->u.propose.count; i++) {
        const struct raft_proposal *p = &ev->u.propose.items[i];
        struct raft_blob *blob = p->blob != NULL        ? raft_blob_ref(p->blob)
                                 : p->payload.size == 0 ? NULL
                                                        : raft_blob_new(p->payload);
        struct raft_entry e = {
            .index = raft_log_last(&r->log) + 1,
            .term = r->hs.term,
            .type = p->type,
            .payload = blob,
        };
        raft_log_add(r, &e);
        r->uncommitted_bytes += raft_blob_slice(blob).size;
        raft_blob_unref(blob); /* the log holds its own */
        if (e.type == RAFT_ENTRY_CONF) {
            sync_progress(r, ev->now.mono_ns);
        }
    }
    return SPAN_OK;
}

/* ---- counting ---- */

static uint64_t match_of(const void *ctx, uint32_t node)
{
    const struct raft *r = (const struct raft *)ctx;
    if (node == r->self) {
        return r->stable; /* counts itself only when durable */
    }
    const struct raft_progress *p = raft_find_progress(r, node);
    return p == NULL ? 0 : p->match;
}

static void advance_commit(struct raft *r, const struct tt_now *now)
{
    raft_index to = raft_conf_quorum_value(raft_conf_now(r), match_of, r);
    /* Section 5.4.2, figure 8: entries of older terms are committed only along with one of ours. */
    if (to > r->commit && (to >= r->term_start || PLANTED(OLD_TERM_COMMITTED))) {
        INVARIANT(raft_log_matches(&r->log, to, r->hs.term) || PLANTED(OLD_TERM_COMMITTED));
        size_t before = raft_conf_committed(r);
        raft_set_commit(r, to);
        if (raft_conf_committed(r) != before) {
            sync_progress(r, now->mono_ns);
        }
    }
}

/* ---- answers ---- */

static void note_answer(struct raft_progress *p, const struct tt_now *now, struct tt_ts promised)
{
    p->answered_mono_ns = now->mono_ns;
    p->promised = tt_max(p->promised, promised);
}

/* The next index to try, when nothing above `hint` can agree. */
static raft_index back_up(const struct raft *r, raft_index hint, raft_term hint_term)
{
    if (hint < r->log.base_index) {
        return hint + 1; /* compacted: flush turns it into a snapshot */
    }
    return raft_log_find(&r->log, hint, hint_term) + 1;
}

static void on_refusal(const struct raft *r, struct raft_progress *p,
                       const struct raft_append_ack *a)
{
    if (p->state == RAFT_SNAPSHOT || a->prev_index <= p->match) {
        return; /* late */
    }
    if (p->state == RAFT_PROBE && a->prev_index != p->next - 1) {
        return; /* answers an older probe */
    }
    if (a->refusal == RAFT_ACK_CLOCK) {
        /* Rule A7: its clock or ours is out. Try again when a heartbeat is answered. */
        raft_progress_probe(p, p->match + 1, true);
        return;
    }
    raft_index next = back_up(r, a->hint_index, a->hint_term);
    raft_progress_probe(p, next < a->prev_index ? next : a->prev_index, false);
}

span_status raft_on_append_ack(struct raft *r, const struct tt_now *now, uint32_t from,
                               const struct raft_msg *m, struct raft_update *up)
{
    const struct raft_append_ack *a = &m->u.append_ack;
    if (m->term > r->hs.term) {
        if (r->role == RAFT_LEADER) {
            raft_become_follower(r, now, m->term, 0, RAFT_DOWN_TERM, up);
        }
        return SPAN_OK;
    }
    if (r->role != RAFT_LEADER || m->term < r->hs.term) {
        return SPAN_OK;
    }
    struct raft_progress *p = find_progress(r, from);
    if (p == NULL) {
        return SPAN_OK;
    }
    if (a->refusal == RAFT_ACK_TERM) {
        return SPAN_OK; /* refuses an append of an older term of ours */
    }
    if (a->accepted > raft_log_last(&r->log) || a->match > a->accepted) {
        return SPAN_PROTOCOL;
    }
    note_answer(p, now, a->promised);
    if (a->refusal != RAFT_ACK_OK) {
        on_refusal(r, p, a);
        return SPAN_OK;
    }
    raft_progress_acked(p, a->match, a->accepted);
    if (p->state == RAFT_PROBE || (p->state == RAFT_SNAPSHOT && p->match >= r->log.base_index)) {
        raft_progress_replicate(p, a->accepted);
    }
    return SPAN_OK;
}

span_status raft_on_heartbeat_ack(struct raft *r, const struct raft_event *ev,
                                  struct raft_update *up)
{
    const struct raft_heartbeat_ack *a = &ev->u.heartbeat_ack;
    if (a->term > RAFT_TERM_MAX) {
        return SPAN_PROTOCOL;
    }
    if (a->term > r->hs.term) {
        if (r->role == RAFT_LEADER) {
            raft_become_follower(r, &ev->now, a->term, 0, RAFT_DOWN_TERM, up);
        }
        return SPAN_OK;
    }
    struct raft_progress *p = r->role == RAFT_LEADER ? find_progress(r, ev->from) : NULL;
    if (p == NULL || a->term < r->hs.term) {
        return SPAN_OK;
    }
    if (a->accepted > raft_log_last(&r->log) || a->match > a->accepted) {
        return SPAN_PROTOCOL;
    }
    note_answer(p, &ev->now, a->promised);
    raft_progress_acked(p, a->match, a->accepted);
    bool stuck = a->accepted <= p->accepted_seen;
    p->accepted_seen = a->accepted;
    if (p->state == RAFT_SNAPSHOT) {
        if (p->match >= r->log.base_index) {
            raft_progress_replicate(p, a->accepted);
        }
        return SPAN_OK;
    }
    if (!a->behind) {
        if (p->state == RAFT_PROBE && a->accepted + 1 >= p->next) {
            raft_progress_replicate(p, a->accepted); /* the answer to the probe was lost */
        } else if (p->state == RAFT_PROBE) {
            p->paused = false;
        }
        return SPAN_OK;
    }
    /* Behind: an append was lost, or is still on its way by a slower link. Give it one heartbeat.
     */
    if (p->state == RAFT_PROBE || stuck) {
        raft_index next = a->last_index + 1 < p->next ? a->last_index + 1 : p->next;
        raft_progress_probe(p, next, false);
    }
    return SPAN_OK;
}

void raft_on_snapshot_done(struct raft *r, uint32_t peer, raft_index index, bool ok)
{
    struct raft_progress *p = r->role == RAFT_LEADER ? find_progress(r, peer) : NULL;
    if (p == NULL || p->state != RAFT_SNAPSHOT) {
        return;
    }
    /* Not an acknowledgement: the probe finds out. After a failure the next heartbeat's answer
     * makes it try again. */
    if (ok && index <= raft_log_last(&r->log)) {
        raft_progress_probe(p, index + 1, false);
    } else {
        raft_progress_probe(p, p->match + 1, true);
    }
}

void raft_on_peer_lost(struct raft *r, uint32_t peer)
{
    struct raft_progress *p = r->role == RAFT_LEADER ? find_progress(r, peer) : NULL;
    if (p != NULL && p->state == RAFT_REPLICATE) {
        raft_progress_probe(p, p->match + 1, true); /* what was under way may be gone */
    }
}

/* ---- transfer ---- */

span_status raft_on_transfer(struct raft *r, const struct raft_event *ev)
{
    uint32_t target = ev->u.transfer.target;
    if (r->role != RAFT_LEADER || r->lease.released) {
        return SPAN_NOT_LEADER;
    }
    if (target == r->self || !raft_conf_is_voter(raft_conf_now(r), target) ||
        raft_find_progress(r, target) == NULL) {
        return SPAN_INVALID;
    }
    /* The floor it was elected with is below everything it gave out; an owner that never served may
     * not know it. */
    r->lease.release = tt_max(ev->u.transfer.release, r->vote_floor);
    r->lease.released = true;
    r->transfer_to = target;
    r->transfer_deadline_ns = ev->now.mono_ns + r->lease_ns;
    r->transfer_sent_ns = 0;
    return SPAN_OK;
}

static void flush_transfer(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    const struct raft_progress *p =
        r->transfer_to == 0 ? NULL : raft_find_progress(r, r->transfer_to);
    if (p == NULL || p->match != raft_log_last(&r->log) ||
        (r->transfer_sent_ns != 0 && now->mono_ns < r->transfer_sent_ns + RAFT_RESEND_NS)) {
        return;
    }
    r->transfer_sent_ns = now->mono_ns;
    struct raft_msg *m = raft_emit(up, RAFT_MSG_TIMEOUT_NOW, r->transfer_to, r->hs.term);
    m->u.timeout_now.release = r->lease.release;
}

/* ---- sending ---- */

/* One append from p->next on, within the limits; false: what comes before it is compacted. */
static bool send_append(struct raft *r, struct raft_progress *p, struct tt_ts lease_end,
                        struct raft_update *up)
{
    raft_term prev_term = 0;
    if (!raft_log_term(&r->log, p->next - 1, &prev_term)) {
        return false;
    }
    size_t have = 0;
    const struct raft_entry *entries = raft_log_from(&r->log, p->next, &have);
    size_t count = 0;
    size_t bytes = 0;
    while (count < have && count < RAFT_APPEND_ENTRIES_MAX) {
        size_t n = raft_blob_slice(entries[count].payload).size;
        if (count > 0 && bytes + n > r->append_bytes) {
            break;
        }
        bytes += n;
        count++;
    }
    struct raft_msg *m = raft_emit(up, RAFT_MSG_APPEND, p->node, r->hs.term);
    m->u.append.prev_index = p->next - 1;
    m->u.append.prev_term = prev_term;
    m->u.append.commit = r->commit;
    m->u.append.lease_end = lease_end;
    m->u.append.entries = entries;
    m->u.append.entry_count = count;
    raft_progress_sent(p, p->next - 1 + count);
    return true;
}

static void flush_member(struct raft *r, struct raft_progress *p, struct tt_ts lease_end,
                         struct raft_update *up)
{
    while (raft_progress_may_send(p, raft_log_last(&r->log))) {
        if (!send_append(r, p, lease_end, up)) {
            raft_progress_snapshot(p);
        }
    }
    if (p->state == RAFT_SNAPSHOT && !p->snapshot_told && up->snapshot_count < LIMIT_REPLICAS) {
        p->snapshot_told = true;
        up->snapshot_to[up->snapshot_count++] = p->node;
    }
}

void raft_flush(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    raft_update_reset(up);
    if (r->role != RAFT_LEADER) {
        up->deadline_mono_ns = raft_election_deadline(r, now);
        return;
    }
    /* The owner owes an entry of the new term before it flushes (rule B6). */
    INVARIANT(raft_log_last(&r->log) >= r->term_start);
    struct tt_ts lease_end = lease_to_ask(r, now);
    for (size_t i = 0; i < r->progress_count; i++) {
        flush_member(r, &r->progress[i], lease_end, up);
    }
    flush_transfer(r, now, up);
    up->deadline_mono_ns = raft_leader_deadline(r, now);
}

bool raft_heartbeat_for(const struct raft *r, uint32_t peer, struct tt_ts e,
                        const struct tt_now *now, struct raft_heartbeat *out)
{
    const struct raft_progress *p = r->role == RAFT_LEADER ? raft_find_progress(r, peer) : NULL;
    if (p == NULL) {
        return false;
    }
    memset(out, 0, sizeof(*out));
    out->term = r->hs.term;
    out->lease_end = tt_min(e, lease_to_ask(r, now));
    out->last_index = p->next - 1;
    out->commit = r->commit;
    return true;
}

/* ---- end of a step ---- */

static uint64_t answered_at(const void *ctx, uint32_t node)
{
    const struct raft *r = (const struct raft *)ctx;
    if (node == r->self) {
        return UINT64_MAX;
    }
    const struct raft_progress *p = raft_find_progress(r, node);
    return p == NULL ? 0 : p->answered_mono_ns;
}

/* Rule B7: when a majority has not answered by then, it steps down. */
static uint64_t quorum_deadline(const struct raft *r)
{
    uint64_t at = raft_conf_quorum_value(raft_conf_now(r), answered_at, r);
    return at > UINT64_MAX - r->lease_ns ? UINT64_MAX : at + r->lease_ns;
}

void raft_leader_refresh(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    bool bad = !raft_clock_is_good(now);
    if (bad && !r->clock_bad) {
        r->clock_bad_mono_ns = now->mono_ns;
    }
    r->clock_bad = bad;
    if (now->mono_ns >= quorum_deadline(r)) {
        step_down(r, now, RAFT_DOWN_NO_QUORUM, up);
        return;
    }
    if (r->lease.released && now->mono_ns >= r->transfer_deadline_ns) {
        step_down(r, now, RAFT_DOWN_TRANSFER_FAILED, up);
        return;
    }
    if (bad && now->mono_ns >= r->clock_bad_mono_ns + r->lease_ns) {
        step_down(r, now, RAFT_DOWN_CLOCK, up);
        return;
    }
    up->handover_wanted = bad && !r->lease.released;
    advance_commit(r, now);
    refresh_lease(r, now);
}

uint64_t raft_leader_deadline(const struct raft *r, const struct tt_now *now)
{
    uint64_t at = quorum_deadline(r);
    if (r->lease.released) {
        uint64_t resend =
            r->transfer_sent_ns == 0 ? UINT64_MAX : r->transfer_sent_ns + RAFT_RESEND_NS;
        at = resend < at ? resend : at;
        at = r->transfer_deadline_ns < at ? r->transfer_deadline_ns : at;
    }
    if (r->clock_bad) {
        uint64_t down = r->clock_bad_mono_ns + r->lease_ns;
        at = down < at ? down : at;
    }
    if (r->progress_count == 0) {
        uint64_t renew =
            now->mono_ns + LEASE_RENEW_NS; /* alone: nobody's answer renews the lease */
        at = renew < at ? renew : at;
    }
    return at;
}

/* ---- accessors ---- */

bool raft_peer(const struct raft *r, uint32_t node, struct raft_peer_info *out)
{
    const struct raft_progress *p = r->role == RAFT_LEADER ? raft_find_progress(r, node) : NULL;
    if (p == NULL) {
        return false;
    }
    out->match = p->match;
    out->next = p->next;
    out->promised = p->promised;
    out->answered_mono_ns = p->answered_mono_ns;
    out->probing = p->state == RAFT_PROBE;
    out->wants_snapshot = p->state == RAFT_SNAPSHOT;
    return true;
}

bool raft_wants_snapshot(const struct raft *r, uint32_t node)
{
    struct raft_peer_info info;
    return raft_peer(r, node, &info) && info.wants_snapshot;
}

uint32_t raft_transfer_target(const struct raft *r)
{
    const struct raft_progress *best = NULL;
    for (size_t i = 0; r->role == RAFT_LEADER && i < r->progress_count; i++) {
        const struct raft_progress *p = &r->progress[i];
        if (!raft_conf_is_voter(raft_conf_now(r), p->node) || p->state == RAFT_SNAPSHOT) {
            continue;
        }
        if (best == NULL || p->match > best->match ||
            (p->match == best->match && p->answered_mono_ns > best->answered_mono_ns)) {
            best = p;
        }
    }
    return best == NULL ? 0 : best->node;
}
