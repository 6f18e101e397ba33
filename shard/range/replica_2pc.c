/* Two-phase commit between ranges: votes, decision, outcomes, questions, wounds. Every step that
 * matters is a record in the log of the range that takes it; messages may be lost, doubled and
 * late. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

/* ---- participant's side ---- */

void replica_send_vote(struct replica *r, struct rtxn *t, bool yes, span_status why)
{
    struct txn_vote v = {.coordinator = buf_slice(&t->coordinator),
                         .txn = t->owner.txn,
                         .participant = buf_slice(&t->anchor),
                         .range = r->id,
                         .node = store_cfg(r->store)->self,
                         .yes = yes,
                         .prepare_ts = t->ts,
                         .status = (uint16_t)why};
    node_id to = store_route(r->store, v.coordinator, t->coordinator_node, t->tries);
    msg_encode_vote(store_out(r->store, to, STORE_CONTROL), &v);
}

void replica_send_wound(struct replica *r, const struct rtxn *t)
{
    if (PLANTED(WOUND_STAYS_HERE)) {
        return;
    }
    struct txn_query m = {.coordinator = buf_slice(&t->coordinator),
                          .txn = t->owner.txn,
                          .node = store_cfg(r->store)->self,
                          .by = t->wounded_by};
    node_id to = store_route(r->store, m.coordinator, t->coordinator_node, t->tries);
    msg_encode_query(store_out(r->store, to, STORE_CONTROL), MSG_WOUND, &m);
}

/* Rule C8: an in-doubt participant asks; its vote goes along, so that a coordinator that lost it
 * counts it first. So does the wound, which may have been lost, too. */
static void ask(struct replica *r, struct rtxn *t)
{
    replica_send_vote(r, t, true, SPAN_OK);
    if (t->wound_sent) {
        replica_send_wound(r, t);
    }
    struct txn_query m = {.coordinator = buf_slice(&t->coordinator),
                          .txn = t->owner.txn,
                          .participant = buf_slice(&t->anchor),
                          .node = store_cfg(r->store)->self};
    node_id to = store_route(r->store, m.coordinator, t->coordinator_node, t->tries);
    msg_encode_query(store_out(r->store, to, STORE_CONTROL), MSG_TXN_QUERY, &m);
    t->tries++;
}

static void send_ack(struct replica *r, const struct txn_outcome *m)
{
    struct txn_outcome_ack a = {
        .coordinator = m->coordinator, .txn = m->txn, .participant = m->participant};
    msg_encode_outcome_ack(store_out(r->store, m->node, STORE_CONTROL), &a);
}

void replica_on_outcome(struct replica *r, const struct tt_now *now, const struct txn_outcome *m)
{
    const struct outcome *o = outcome_table_get(r->outcomes, &m->txn);
    if (o != NULL) {
        if (tt_is_none(o->ts) == m->commit) {
            SPAN_LOG(ERROR, "two outcomes of one transaction", "range=%llu",
                     (unsigned long long)r->id);
        }
        send_ack(r, m);
        return;
    }
    struct rtxn *t = rtxn_find(r, &m->txn);
    if (t == NULL || t->state == RTXN_HOLDING) {
        if (m->commit) {
            if (m->txn.begin_ns <= r->watermark.ns) {
                send_ack(r, m); /* applied and forgotten long ago (rule C3) */
            }
            return;
        }
        /* Never prepared here: a late prepare is refused, its locks go. */
        rtxn_forget(r, now, &m->txn, SPAN_ABORTED);
        if (t != NULL) {
            rtxn_free(r, now, t);
        }
        send_ack(r, m);
        return;
    }
    if (t->state != RTXN_PREPARED && t->state != RTXN_PREPARING) {
        return; /* FINISHING: acknowledged when applied */
    }
    if (m->commit && t->state != RTXN_PREPARED) {
        SPAN_LOG(ERROR, "commit of a transaction that was not voted for", "range=%llu",
                 (unsigned long long)r->id);
        return; /* the vote is sent when the record is applied: no correct peer says this */
    }
    enum rtxn_state before = t->state;
    if (m->commit) {
        replica_learn(r, m->ts); /* rule A1; rule A7: an outcome is always taken */
        t->ts = m->ts;
    }
    t->state = RTXN_FINISHING;
    t->owner.leaving = true;
    t->coordinator_node = m->node;
    heap_remove(&r->timers, &t->timer);
    struct cmd_outcome c = {.txn = m->txn, .commit = m->commit, .ts = m->ts};
    struct buf b = {0};
    cmd_encode_outcome(&b, &c);
    if (!replica_propose(r, now, CMD_OUTCOME, buf_slice(&b)) && r->leading &&
        rtxn_find(r, &m->txn) == t) {
        t->owner.leaving = false;
        t->state = before; /* asked for again: by its timer, which a PREPARING one gets later */
        if (before == RTXN_PREPARED) {
            t->retry_ns = ASK_AFTER_NS;
            heap_insert(&r->timers, &t->timer, now->mono_ns + ASK_AFTER_NS);
        }
    }
    buf_deinit(&b);
}

/* ---- coordinator's side ---- */

static void keep_early_vote(struct rtxn *t, const struct txn_vote *m)
{
    if (t->early_count >= LIMIT_TXN_RANGES) {
        return;
    }
    t->early = span_realloc(t->early, (t->early_count + 1) * sizeof *t->early);
    struct rvote_early *e = &t->early[t->early_count++];
    *e = (struct rvote_early){.yes = m->yes, .prepare_ts = m->prepare_ts, .status = m->status};
    buf_set(&e->participant, m->participant);
}

void replica_on_vote(struct replica *r, const struct tt_now *now, const struct txn_vote *m)
{
    struct rtxn *t = rtxn_find(r, &m->txn);
    if (t == NULL) {
        return; /* no question (rule C8): sent again with the question if it matters */
    }
    if (t->state == RTXN_HOLDING) {
        keep_early_vote(t, m);
        return;
    }
    if (t->state != RTXN_COORDINATING) {
        return;
    }
    for (size_t i = 0; i < t->participant_count; i++) {
        struct rparticipant *p = &t->participants[i];
        if (!slice_eq(buf_slice(&p->anchor), m->participant)) {
            continue;
        }
        p->node = m->node != 0 ? m->node : p->node;
        if (!m->yes) {
            replica_abort_coordinated(r, now, t, span_status_from_wire(m->status));
            return;
        }
        if (m->prepare_ts.ns > now->tt.latest.ns + SKEW_NS_MAX) {
            replica_abort_coordinated(r, now, t, SPAN_CLOCK); /* rule A7 */
            return;
        }
        if (!p->voted) {
            p->voted = true;
            p->prepare_ts = m->prepare_ts;
            t->prepare_max = tt_max(t->prepare_max, m->prepare_ts);
            t->votes_missing--;
            replica_try_decide(r, now, t);
        }
        return;
    }
}

static bool propose_decision(struct replica *r, const struct tt_now *now, struct rtxn *t,
                             const struct cmd_decision *c)
{
    struct buf b = {0};
    cmd_encode_decision(&b, c);
    struct txn_id id = t->owner.txn;
    bool ok = replica_propose(r, now, CMD_DECISION, buf_slice(&b));
    buf_deinit(&b);
    return ok && rtxn_find(r, &id) == t;
}

static void fill_participants(const struct rtxn *t, struct cmd_decision *c,
                              struct txn_participant *out)
{
    for (size_t i = 0; i < t->participant_count; i++) {
        out[i] = (struct txn_participant){buf_slice(&t->participants[i].anchor),
                                          t->participants[i].range, t->participants[i].node};
    }
    c->participants = out;
    c->participant_count = t->participant_count;
}

void replica_try_decide(struct replica *r, const struct tt_now *now, struct rtxn *t)
{
    if (t->state != RTXN_COORDINATING || t->votes_missing > 0) {
        return;
    }
    if (!replica_may_serve(r, now)) {
        r->decide_waits = true;
        return;
    }
    /* Rule A2: above the clock read after the commit request came (not now: the wait for it
     * overlaps both rounds), every prepare timestamp, what was seen, the own floor; below the lease
     * end, or it waits for the renewal. */
    struct tt_ts s = replica_choose_ts(r, t->latest, tt_max(t->seen, t->prepare_max));
    if (tt_is_none(s)) {
        r->decide_waits = true;
        return;
    }
    struct arena a = {0};
    struct range_request q;
    span_status st = msg_decode_request(buf_slice(&t->request), &a, &q);
    INVARIANT(st == SPAN_OK);
    r->floor = s;
    t->ts = s;
    t->state = RTXN_DECIDING;
    t->owner.unwoundable = true;
    t->owner.leaving = true;
    heap_remove(&r->timers, &t->timer);
    rtxn_keys_set(t, q.writes, q.write_count);
    rtxn_flight(r, t, true);
    struct cmd_decision c = {.txn = t->owner.txn,
                             .commit = true,
                             .ts = s,
                             .anchor = buf_slice(&t->anchor),
                             .write_count = q.write_count,
                             .writes = q.writes};
    struct txn_participant *parts = arena_alloc(&a, (t->participant_count + 1) * sizeof *parts);
    fill_participants(t, &c, parts);
    if (!propose_decision(r, now, t, &c) && r->leading && rtxn_find(r, &q.txn) == t) {
        /* Not proposed (the log is full): nothing was decided, so it may still be aborted. */
        t->state = RTXN_COORDINATING;
        t->owner.unwoundable = false;
        t->owner.leaving = false;
        rtxn_flight(r, t, false);
        heap_insert(&r->timers, &t->timer, now->mono_ns + 10 * MS_NS);
    }
    arena_deinit(&a);
}

void replica_decide_ready(struct replica *r, const struct tt_now *now)
{
    if (!r->decide_waits) {
        return;
    }
    r->decide_waits = false;
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_COORDINATING && t->votes_missing == 0) {
            replica_try_decide(r, now, t);
        }
    }
}

void replica_abort_coordinated(struct replica *r, const struct tt_now *now, struct rtxn *t,
                               span_status why)
{
    INVARIANT(t->state == RTXN_COORDINATING);
    t->too_large = why == SPAN_TOO_LARGE;
    /* Its locks here are unprepared: they may go at once. Participants learn it when the record is
     * applied. */
    lock_table_release(r->locks, &t->owner);
    r->rerun_locks = true;
    t->state = RTXN_DECIDING;
    t->ts = tt_ts_of(0);
    heap_remove(&r->timers, &t->timer);
    struct cmd_decision c = {.txn = t->owner.txn, .commit = false, .anchor = buf_slice(&t->anchor)};
    struct txn_participant *parts = span_calloc(t->participant_count + 1, sizeof *parts);
    fill_participants(t, &c, parts);
    struct txn_id id = t->owner.txn;
    if (!propose_decision(r, now, t, &c) && r->leading && rtxn_find(r, &id) == t) {
        t->state = RTXN_COORDINATING; /* tried again by its timer, which aborts */
        t->votes_missing = SIZE_MAX;
        heap_insert(&r->timers, &t->timer, now->mono_ns + 10 * MS_NS);
    }
    span_free(parts);
}

void replica_propose_abort(struct replica *r, const struct tt_now *now, const struct txn_id *txn,
                           struct slice anchor, struct slice asker, node_id asker_node)
{
    struct rtxn *t = rtxn_new(r, txn, txn, RTXN_COORDINATING);
    buf_set(&t->anchor, anchor);
    buf_set(&t->asker, asker);
    t->asker_node = asker_node;
    replica_abort_coordinated(r, now, t, SPAN_ABORTED);
}

static void send_outcome(struct replica *r, const struct rtxn *t, struct slice participant,
                         node_id node)
{
    struct txn_outcome m = {.participant = participant,
                            .txn = t->owner.txn,
                            .commit = !tt_is_none(t->ts),
                            .ts = t->ts,
                            .coordinator = buf_slice(&t->anchor),
                            .node = store_cfg(r->store)->self};
    msg_encode_outcome(store_out(r->store, node, STORE_CONTROL), &m);
}

void replica_send_outcomes(struct replica *r, struct rtxn *t, bool all)
{
    for (size_t i = 0; i < t->participant_count; i++) {
        struct rparticipant *p = &t->participants[i];
        if (all || !p->acked) {
            struct slice anchor = buf_slice(&p->anchor);
            node_id to = all ? p->node : store_route(r->store, anchor, p->node, t->tries);
            send_outcome(r, t, anchor, to);
        }
    }
    if (t->asker.size > 0 && t->asker_node != 0) {
        send_outcome(r, t, buf_slice(&t->asker), t->asker_node);
    }
}

void replica_on_outcome_ack(struct replica *r, const struct tt_now *now,
                            const struct txn_outcome_ack *m)
{
    struct rtxn *t = rtxn_find(r, &m->txn);
    (void)now;
    if (t == NULL || t->state != RTXN_DECIDED) {
        return;
    }
    bool all = true;
    for (size_t i = 0; i < t->participant_count; i++) {
        struct rparticipant *p = &t->participants[i];
        if (slice_eq(buf_slice(&p->anchor), m->participant)) {
            p->acked = true;
        }
        all = all && p->acked;
    }
    if (all && t->retry_ns != 0) {
        t->retry_ns = 0; /* reported once */
        heap_remove(&r->timers, &t->timer);
        buf_append(&r->resolved, &t->owner.txn, sizeof t->owner.txn);
        r->resolved_count++;
    }
}

void replica_on_query(struct replica *r, const struct tt_now *now, const struct txn_query *m)
{
    const struct outcome *o = outcome_table_get(r->outcomes, &m->txn);
    struct rtxn *t = rtxn_find(r, &m->txn);
    if (o != NULL || (t == NULL && m->txn.begin_ns <= r->watermark.ns)) {
        /* Rule C3: a decision is kept beyond W until every participant has applied it; nothing
         * below W means aborted. */
        struct txn_outcome a = {.participant = m->participant,
                                .txn = m->txn,
                                .commit = o != NULL && !tt_is_none(o->ts),
                                .ts = o != NULL ? o->ts : tt_ts_of(0),
                                .coordinator = m->coordinator,
                                .node = store_cfg(r->store)->self};
        msg_encode_outcome(store_out(r->store, m->node, STORE_CONTROL), &a);
        return;
    }
    if (t != NULL && t->state == RTXN_DECIDED) {
        send_outcome(r, t, m->participant, m->node);
        return;
    }
    if (t != NULL && (t->state != RTXN_HOLDING || !list_is_empty(&t->parked))) {
        return; /* being decided */
    }
    if (t != NULL) {
        rtxn_wound(r, now, t, SPAN_ABORTED); /* its commit request never came */
    }
    if (PLANTED(ABORT_NOT_RECORDED)) {
        struct txn_outcome a = {.participant = m->participant,
                                .txn = m->txn,
                                .coordinator = m->coordinator,
                                .node = store_cfg(r->store)->self};
        msg_encode_outcome(store_out(r->store, m->node, STORE_CONTROL), &a);
        return;
    }
    replica_propose_abort(r, now, &m->txn, m->coordinator, m->participant, m->node);
}

void replica_on_wound(struct replica *r, const struct tt_now *now, const struct txn_query *m)
{
    struct rtxn *t = rtxn_find(r, &m->txn);
    if (t == NULL) {
        return;
    }
    if (t->state == RTXN_COORDINATING) {
        replica_abort_coordinated(r, now, t, SPAN_WOUNDED);
    } else if (t->state == RTXN_HOLDING) {
        /* Also while its commit request waits for locks here: that one finds itself wounded and
         * leaves an abort record. */
        rtxn_wound(r, now, t, SPAN_WOUNDED);
    }
}

/* ---- timers ---- */

/* Rule C8: locks that are not prepared belong to a gateway's incarnation. With its links gone it
 * can not use them, and whoever waits for them would wait until its keep-alive is late. */
void replica_gateway_lost(struct replica *r, const struct tt_now *now, node_id gateway)
{
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_HOLDING && t->gateway == gateway) {
            rtxn_wound(r, now, t, SPAN_LOCKS_LOST);
        }
    }
}

void replica_rtxn_timer(struct replica *r, const struct tt_now *now, struct rtxn *t)
{
    switch (t->state) {
    case RTXN_HOLDING: { /* rule C8: the gateway's node or the session is silent */
        bool late = t->heard_ns + GATEWAY_LOST_NS <= now->mono_ns;
        if (store_node_is_silent(r->store, now, t->gateway) ||
            (late && list_is_empty(&t->parked))) {
            rtxn_wound(r, now, t, SPAN_LOCKS_LOST);
            return;
        }
        heap_insert(&r->timers, &t->timer, now->mono_ns + GATEWAY_CHECK_NS);
        break;
    }
    case RTXN_COORDINATING:
        replica_abort_coordinated(r, now, t, SPAN_DEADLINE);
        break;
    case RTXN_PREPARED:
        if (PLANTED(LOCKS_TIME_OUT)) {
            lock_table_release(r->locks, &t->owner);
            r->rerun_locks = true;
        }
        ask(r, t);
        /* A coordinator that just lost its leader has a new one in some 300 ms: locks must not wait
         * for much longer. */
        t->retry_ns = t->retry_ns < SEC_NS ? t->retry_ns + t->retry_ns / 2 : t->retry_ns;
        heap_insert(&r->timers, &t->timer, now->mono_ns + t->retry_ns);
        break;
    case RTXN_DECIDED:
        t->tries++;
        replica_send_outcomes(r, t, false);
        t->retry_ns = t->retry_ns < 2 * SEC_NS ? t->retry_ns + t->retry_ns / 2 : t->retry_ns;
        heap_insert(&r->timers, &t->timer, now->mono_ns + t->retry_ns);
        break;
    case RTXN_COMMITTING:
    case RTXN_PREPARING:
    case RTXN_FINISHING:
    case RTXN_DECIDING:
        break;
    }
}
