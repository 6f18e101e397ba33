/* Construction, dispatch and the end of a step.
 *
 * A step has one shape: the event's handler changes the state and may emit messages; then
 * step_finish() runs the timers, gives what changed a sequence number, lets out the answers that
 * have become durable, moves the commit index, hands out entries to apply and sets the deadline.
 * Answers that promise durability are never built by a handler. */
#include "shard/raft/raft.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/planted.h"
#include "shard/raft/raft_internal.h"

void raft_update_init(struct raft_update *up)
{
    memset(up, 0, sizeof(*up));
    up->deadline_mono_ns = UINT64_MAX;
}

void raft_update_deinit(struct raft_update *up)
{
    span_free(up->msgs);
    raft_update_init(up);
}

void raft_update_reset(struct raft_update *up)
{
    struct raft_msg *msgs = up->msgs;
    size_t cap = up->msg_cap;
    raft_update_init(up);
    up->msgs = msgs;
    up->msg_cap = cap;
}

struct raft_msg *raft_emit(struct raft_update *up, enum raft_msg_type type, uint32_t to,
                           raft_term term)
{
    REQUIRE(to != 0);
    if (up->msg_count == up->msg_cap) {
        up->msg_cap = up->msg_cap == 0 ? 16 : up->msg_cap * 2;
        up->msgs = (struct raft_msg *)span_realloc(up->msgs, up->msg_cap * sizeof(up->msgs[0]));
    }
    struct raft_msg *m = &up->msgs[up->msg_count++];
    memset(m, 0, sizeof(*m));
    m->type = type;
    m->to = to;
    m->term = term;
    return m;
}

/* ---- configurations in the log ---- */

static void confs_push(struct raft *r, raft_index index, const struct raft_conf *conf)
{
    if (r->conf_count == r->conf_cap) {
        r->conf_cap = r->conf_cap == 0 ? 4 : r->conf_cap * 2;
        r->confs =
            (struct raft_conf_slot *)span_realloc(r->confs, r->conf_cap * sizeof(r->confs[0]));
    }
    r->confs[r->conf_count].index = index;
    r->confs[r->conf_count].conf = *conf;
    r->conf_count++;
}

void raft_confs_install(struct raft *r, const struct raft_conf *conf, raft_index conf_index,
                        raft_index index)
{
    size_t kept = 0;
    while (kept < r->conf_count && r->confs[kept].index <= index) {
        kept++;
    }
    raft_index last = raft_log_last(&r->log);
    size_t above = r->conf_count - kept;
    while (above > 0 && r->confs[kept + above - 1].index > last) {
        above--; /* its entry was dropped */
    }
    confs_push(r, 0, conf); /* makes room */
    memmove(r->confs + 1, r->confs + kept, above * sizeof(r->confs[0]));
    r->confs[0].index = conf_index;
    r->confs[0].conf = *conf;
    r->conf_count = above + 1;
}

/* Configurations that ended at or before the log's base give way. */
static void confs_forget(struct raft *r)
{
    size_t drop = 0;
    while (drop + 1 < r->conf_count && r->confs[drop + 1].index <= r->log.base_index) {
        drop++;
    }
    if (drop > 0) {
        r->conf_count -= drop;
        memmove(r->confs, r->confs + drop, r->conf_count * sizeof(r->confs[0]));
    }
}

size_t raft_conf_committed(const struct raft *r)
{
    size_t at = r->conf_count - 1;
    while (at > 0 && r->confs[at].index > r->commit) {
        at--;
    }
    return at;
}

/* ---- log, durability, commit ---- */

void raft_log_add(struct raft *r, const struct raft_entry *e)
{
    raft_log_append(&r->log, e);
    if (r->dirty_from == 0 || e->index < r->dirty_from) {
        r->dirty_from = e->index;
    }
    if (e->type == RAFT_ENTRY_CONF) {
        struct raft_conf conf;
        span_status st = raft_conf_decode(raft_blob_slice(e->payload), &conf);
        INVARIANT(st == SPAN_OK); /* checked before anything was appended */
        confs_push(r, e->index, &conf);
    }
}

void raft_log_not_stable(struct raft *r, raft_index from)
{
    REQUIRE(from > 0);
    if (r->stable >= from) {
        r->stable = from - 1;
    }
    for (size_t i = 0; i < r->pending_count; i++) {
        struct raft_pending *p = &r->pending[r->pending_head + i];
        if (p->last >= from) {
            p->last = from - 1;
        }
    }
}

void raft_log_cut(struct raft *r, raft_index from)
{
    INVARIANT(from > r->commit); /* Raft: what is committed is never taken back */
    raft_log_truncate(&r->log, from);
    raft_log_not_stable(r, from);
    while (r->conf_count > 1 && r->confs[r->conf_count - 1].index >= from) {
        r->conf_count--;
    }
    INVARIANT(r->confs[r->conf_count - 1].index < from);
}

void raft_set_commit(struct raft *r, raft_index commit)
{
    if (commit <= r->commit) {
        return;
    }
    INVARIANT(commit <= raft_log_last(&r->log));
    if (r->role == RAFT_LEADER) {
        for (raft_index i = r->commit + 1; i <= commit; i++) {
            size_t n = raft_blob_slice(raft_log_at(&r->log, i)->payload).size;
            INVARIANT(r->uncommitted_bytes >= n);
            r->uncommitted_bytes -= n;
        }
    }
    r->commit = commit;
    if (r->matched < commit) {
        r->matched = commit;
    }
}

static void pending_push(struct raft *r, uint64_t seq, raft_index last)
{
    if (r->pending_head + r->pending_count == r->pending_cap) {
        if (r->pending_head > 0) {
            memmove(r->pending, r->pending + r->pending_head,
                    r->pending_count * sizeof(r->pending[0]));
            r->pending_head = 0;
        }
        if (r->pending_count == r->pending_cap) {
            r->pending_cap = r->pending_cap == 0 ? 16 : r->pending_cap * 2;
            r->pending = (struct raft_pending *)span_realloc(r->pending, r->pending_cap *
                                                                             sizeof(r->pending[0]));
        }
    }
    r->pending[r->pending_head + r->pending_count].seq = seq;
    r->pending[r->pending_head + r->pending_count].last = last;
    r->pending_count++;
}

static span_status on_persisted(struct raft *r, uint64_t seq)
{
    if (seq > r->next_seq) {
        return SPAN_INVALID;
    }
    while (r->pending_count > 0 && r->pending[r->pending_head].seq <= seq) {
        if (r->pending[r->pending_head].last > r->stable) {
            r->stable = r->pending[r->pending_head].last;
        }
        r->durable_seq = r->pending[r->pending_head].seq;
        r->pending_head++;
        r->pending_count--;
    }
    if (r->pending_count == 0) {
        r->pending_head = 0;
    }
    INVARIANT(r->stable <= raft_log_last(&r->log));
    return SPAN_OK;
}

static void emit_persist(struct raft *r, struct raft_update *up)
{
    if (!r->hs_dirty && r->dirty_from == 0) {
        return;
    }
    up->persist_seq = ++r->next_seq;
    if (r->hs_dirty) {
        up->hard_state_changed = true;
        up->hard_state = r->hs;
        r->hs_dirty = false;
        r->hs_seq = up->persist_seq;
    }
    raft_index last = r->stable;
    if (r->dirty_from != 0) {
        INVARIANT(r->dirty_from > r->applied); /* rule H3 */
        up->entries = raft_log_from(&r->log, r->dirty_from, &up->entry_count);
        last = raft_log_last(&r->log);
        r->dirty_from = 0;
    }
    pending_push(r, up->persist_seq, last);
}

static void emit_apply(struct raft *r, struct raft_update *up)
{
    raft_index to = r->commit < r->stable ? r->commit : r->stable;
    if (to > r->handed) {
        up->apply_from = r->handed + 1;
        up->apply_to = to;
        r->handed = to;
    }
}

static void check(const struct raft *r)
{
    INVARIANT(r->log.base_index <= r->applied);
    INVARIANT(r->applied <= r->handed);
    INVARIANT(r->handed <= r->commit);
    INVARIANT(r->handed <= r->stable);
    INVARIANT(r->commit <= raft_log_last(&r->log));
    INVARIANT(r->stable <= raft_log_last(&r->log));
    INVARIANT(r->matched <= raft_log_last(&r->log));
    INVARIANT(raft_log_last_term(&r->log) <= r->hs.term);
    INVARIANT(r->role != RAFT_LEADER || r->leader == r->self);
    INVARIANT(r->role != RAFT_CANDIDATE || r->hs.voted_for == r->self);
    INVARIANT(r->conf_count > 0);
}

static void step_finish(struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    raft_promise_see_clock(&r->promise, now);
    if (r->role == RAFT_LEADER) {
        raft_leader_refresh(r, now, up);
    }
    raft_election_timers(r, now, up);
    emit_persist(r, up);
    raft_emit_votes(r, now, up);
    raft_emit_ack(r, up);
    emit_apply(r, up);
    up->deadline_mono_ns =
        r->role == RAFT_LEADER ? raft_leader_deadline(r, now) : raft_election_deadline(r, now);
    check(r);
}

/* After an error, and for APPLIED, which owners send from the middle of carrying out another
 * update: nothing to carry out, and timers that are due run at the next step (the deadline says
 * now). */
static void step_quietly(const struct raft *r, const struct tt_now *now, struct raft_update *up)
{
    uint64_t deadline =
        r->role == RAFT_LEADER ? raft_leader_deadline(r, now) : raft_election_deadline(r, now);
    raft_update_reset(up);
    up->deadline_mono_ns = deadline;
    check(r);
}

/* ---- dispatch ---- */

static span_status on_message(struct raft *r, const struct raft_event *ev, struct raft_update *up)
{
    const struct raft_msg *m = ev->u.msg;
    if (ev->from == 0 || ev->from == r->self || (m->term == 0 && m->type != RAFT_MSG_VOTE_ACK)) {
        return SPAN_PROTOCOL;
    }
    switch (m->type) {
    case RAFT_MSG_APPEND:
        return raft_on_append(r, &ev->now, ev->from, m, up);
    case RAFT_MSG_APPEND_ACK:
        return raft_on_append_ack(r, &ev->now, ev->from, m, up);
    case RAFT_MSG_VOTE:
        return raft_on_vote(r, &ev->now, ev->from, m, up);
    case RAFT_MSG_VOTE_ACK:
        return raft_on_vote_ack(r, &ev->now, ev->from, m, up);
    case RAFT_MSG_TIMEOUT_NOW:
        return raft_on_timeout_now(r, &ev->now, ev->from, m, up);
    }
    return SPAN_PROTOCOL;
}

static span_status on_applied(struct raft *r, raft_index index)
{
    if (index > r->handed) {
        return SPAN_INVALID;
    }
    if (index > r->applied) {
        r->applied = index;
    }
    return SPAN_OK;
}

static span_status dispatch(struct raft *r, const struct raft_event *ev, struct raft_update *up)
{
    switch (ev->type) {
    case RAFT_EV_TICK:
        return SPAN_OK;
    case RAFT_EV_MESSAGE:
        return on_message(r, ev, up);
    case RAFT_EV_PROPOSE:
        return raft_on_propose(r, ev, up);
    case RAFT_EV_PERSISTED:
        return on_persisted(r, ev->u.persist_seq);
    case RAFT_EV_HEARTBEAT:
        return raft_on_heartbeat(r, &ev->now, ev->from, &ev->u.heartbeat, up);
    case RAFT_EV_HEARTBEAT_ACK:
        return raft_on_heartbeat_ack(r, ev, up);
    case RAFT_EV_TRANSFER:
        return raft_on_transfer(r, ev);
    case RAFT_EV_CAMPAIGN:
        return raft_on_campaign(r, &ev->now, ev->u.campaign.release, up);
    case RAFT_EV_SNAPSHOT_SENT:
        raft_on_snapshot_done(r, ev->from, ev->u.index, true);
        return SPAN_OK;
    case RAFT_EV_SNAPSHOT_FAILED:
        raft_on_snapshot_done(r, ev->from, 0, false);
        return SPAN_OK;
    case RAFT_EV_SNAPSHOT_INSTALLED:
        return raft_on_installed(r, ev, up);
    case RAFT_EV_APPLIED:
        return on_applied(r, ev->u.index);
    case RAFT_EV_PEER_LOST:
        raft_on_peer_lost(r, ev->from);
        return SPAN_OK;
    case RAFT_EV_COMMITTED:
        if (raft_log_matches(&r->log, ev->u.known.index, ev->u.known.term)) {
            raft_set_commit(r, ev->u.known.index);
        }
        return SPAN_OK;
    }
    return SPAN_INVALID;
}

span_status raft_step(struct raft *r, const struct raft_event *ev, struct raft_update *up)
{
    raft_update_reset(up);
    raft_election_start(r, &ev->now);
    span_status st = dispatch(r, ev, up);
    if (st == SPAN_OK && ev->type != RAFT_EV_APPLIED) {
        step_finish(r, &ev->now, up);
    } else {
        step_quietly(r, &ev->now, up);
    }
    return st;
}

/* ---- construction ---- */

static span_status restore_log(struct raft *r, const struct raft_config *c, struct span_error *err)
{
    for (size_t i = 0; i < c->entry_count; i++) {
        const struct raft_entry *e = &c->entries[i];
        if (e->index != raft_log_last(&r->log) + 1 || e->type == RAFT_ENTRY_NONE ||
            e->term < raft_log_last_term(&r->log) || e->term > c->hard_state.term) {
            return span_fail(
                err, SPAN_CORRUPT,
                "range %llu: log entry %llu of term %llu does not follow entry %llu of "
                "term %llu (current term %llu)",
                (unsigned long long)c->range, (unsigned long long)e->index,
                (unsigned long long)e->term, (unsigned long long)raft_log_last(&r->log),
                (unsigned long long)raft_log_last_term(&r->log),
                (unsigned long long)c->hard_state.term);
        }
        raft_log_append(&r->log, e);
        if (e->type != RAFT_ENTRY_CONF || e->index <= c->conf_index) {
            continue;
        }
        struct raft_conf conf;
        if (raft_conf_decode(raft_blob_slice(e->payload), &conf) != SPAN_OK) {
            return span_fail(err, SPAN_CORRUPT,
                             "range %llu: configuration in log entry %llu is malformed",
                             (unsigned long long)c->range, (unsigned long long)e->index);
        }
        confs_push(r, e->index, &conf);
    }
    raft_index last = raft_log_last(&r->log);
    if (c->applied < c->base_index || c->applied > last || c->conf_index > c->applied) {
        return span_fail(err, SPAN_CORRUPT,
                         "range %llu: applied index %llu, configuration index %llu and log "
                         "%llu..%llu do not fit each other",
                         (unsigned long long)c->range, (unsigned long long)c->applied,
                         (unsigned long long)c->conf_index, (unsigned long long)c->base_index,
                         (unsigned long long)last);
    }
    return SPAN_OK;
}

span_status raft_new(const struct raft_config *c, struct raft **out, struct span_error *err)
{
    *out = NULL;
    if (c->self == 0 || c->lease_ns > LEASE_NS_MAX || c->base_term > c->hard_state.term ||
        (c->base_index == 0 && c->base_term != 0) || c->conf.count > LIMIT_REPLICAS) {
        return span_fail(err, SPAN_INVALID,
                         "range %llu: node %u, lease %llu ns, term %llu, base %llu of term %llu is "
                         "no valid raft configuration",
                         (unsigned long long)c->range, c->self, (unsigned long long)c->lease_ns,
                         (unsigned long long)c->hard_state.term, (unsigned long long)c->base_index,
                         (unsigned long long)c->base_term);
    }
    struct raft *r = SPAN_NEW(struct raft);
    r->self = c->self;
    r->range = c->range;
    r->lease_ns = c->lease_ns == 0 ? LEASE_NS_DEFAULT : c->lease_ns;
    r->entry_guard = c->entry_guard;
    r->append_bytes = c->append_bytes == 0 ? LIMIT_APPEND_BYTES : c->append_bytes;
    r->may_lead = true;
    rng_init(&r->rng, c->seed);
    r->hs = c->hard_state;
    raft_log_init(&r->log, c->base_index, c->base_term);
    confs_push(r, c->conf_index, &c->conf);
    span_status st = restore_log(r, c, err);
    if (st != SPAN_OK) {
        raft_free(r);
        return st;
    }
    r->applied = r->handed = r->commit = r->matched = c->applied;
    r->stable = raft_log_last(&r->log);
    raft_promise_init(&r->promise, c->fresh, c->promised, c->hard_state.term);
    check(r);
    *out = r;
    return SPAN_OK;
}

void raft_free(struct raft *r)
{
    if (r == NULL) {
        return;
    }
    raft_log_deinit(&r->log);
    span_free(r->pending);
    span_free(r->confs);
    span_free(r);
}

/* ---- maintenance and accessors ---- */

void raft_compact(struct raft *r, raft_index index)
{
    raft_index to = index < r->applied ? index : r->applied;
    if (to > r->log.base_index) {
        raft_log_compact(&r->log, to);
        confs_forget(r);
    }
}

void raft_set_lease_ns(struct raft *r, uint64_t lease_ns)
{
    REQUIRE(lease_ns > 0);
    REQUIRE(lease_ns <= LEASE_NS_MAX);
    r->lease_ns = lease_ns;
}

void raft_set_may_lead(struct raft *r, bool may_lead)
{
    r->may_lead = may_lead;
}

const struct raft_entry *raft_entry_at(const struct raft *r, raft_index index)
{
    return raft_log_at(&r->log, index);
}

raft_index raft_first_index(const struct raft *r)
{
    return r->log.base_index + 1;
}

raft_index raft_last_index(const struct raft *r)
{
    return raft_log_last(&r->log);
}

raft_index raft_stable_index(const struct raft *r)
{
    return r->stable;
}

raft_index raft_commit(const struct raft *r)
{
    return r->commit;
}

raft_index raft_applied(const struct raft *r)
{
    return r->applied;
}

bool raft_term_at(const struct raft *r, raft_index index, raft_term *term)
{
    return raft_log_term(&r->log, index, term);
}

raft_term raft_current_term(const struct raft *r)
{
    return r->hs.term;
}

uint32_t raft_voted_for(const struct raft *r)
{
    return r->hs.voted_for;
}

uint32_t raft_leader(const struct raft *r)
{
    return r->leader;
}

enum raft_role raft_role(const struct raft *r)
{
    return r->role;
}

const char *raft_role_name(enum raft_role role)
{
    switch (role) {
    case RAFT_FOLLOWER:
        return "follower";
    case RAFT_PRE_CANDIDATE:
        return "pre-candidate";
    case RAFT_CANDIDATE:
        return "candidate";
    case RAFT_LEADER:
        return "leader";
    }
    return "unknown";
}

size_t raft_log_bytes(const struct raft *r)
{
    return r->log.bytes;
}

size_t raft_uncommitted_bytes(const struct raft *r)
{
    return r->role == RAFT_LEADER ? r->uncommitted_bytes : 0;
}

static const struct raft_conf *conf_slot(const struct raft *r, size_t at, raft_index *conf_index)
{
    if (conf_index != NULL) {
        *conf_index = r->confs[at].index;
    }
    return &r->confs[at].conf;
}

const struct raft_conf *raft_conf(const struct raft *r, raft_index *conf_index)
{
    return conf_slot(r, r->conf_count - 1, conf_index);
}

const struct raft_conf *raft_committed_conf(const struct raft *r, raft_index *conf_index)
{
    return conf_slot(r, raft_conf_committed(r), conf_index);
}

const struct raft_conf *raft_conf_at(const struct raft *r, raft_index index, raft_index *conf_index)
{
    size_t at = r->conf_count - 1;
    while (at > 0 && r->confs[at].index > index) {
        at--;
    }
    return conf_slot(r, at, conf_index);
}

struct tt_ts raft_lease_end(const struct raft *r)
{
    return r->role == RAFT_LEADER && !r->lease.released ? r->lease.end : tt_ts_of(0);
}

uint64_t raft_lease_ns(const struct raft *r)
{
    return r->lease_ns;
}

bool raft_has_lease(const struct raft *r, const struct tt_now *now)
{
    struct tt_ts end = raft_lease_end(r);
    return !tt_is_none(end) && raft_clock_is_good(now) && tt_before(&now->tt, end);
}

bool raft_is_ready(const struct raft *r, const struct tt_now *now)
{
    return raft_has_lease(r, now) && (r->applied >= r->term_start || PLANTED(SERVES_TOO_EARLY));
}

bool raft_has_released(const struct raft *r)
{
    return r->role == RAFT_LEADER && r->lease.released;
}

struct tt_ts raft_promised(const struct raft *r)
{
    return raft_promise_greatest(&r->promise);
}
