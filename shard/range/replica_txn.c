/* Transactions at the leader: admission, the commit operations of gateways, wounds, status. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

static struct slice id_key(const struct txn_id *id)
{
    return slice_of(id, sizeof *id);
}

struct rtxn *rtxn_find(const struct replica *r, const struct txn_id *txn)
{
    return mapb_get(&r->txns, id_key(txn));
}

struct rtxn *rtxn_new(struct replica *r, const struct txn_id *txn, const struct txn_id *age,
                      enum rtxn_state state)
{
    struct rtxn *t = SPAN_NEW(struct rtxn);
    lock_owner_init(&t->owner, txn, age);
    t->state = state;
    list_init(&t->in_state);
    list_init(&t->parked);
    void *old = mapb_put(&r->txns, id_key(txn), t);
    INVARIANT(old == NULL);
    return t;
}

static void keys_free(struct rtxn *t)
{
    for (size_t i = 0; i < t->key_count; i++) {
        buf_deinit(&t->keys[i]);
    }
    span_free(t->keys);
    t->keys = NULL;
    t->key_count = 0;
}

void rtxn_unpark(struct replica *r, struct rtxn *t)
{
    LIST_EACH_SAFE(it, tmp, &t->parked)
    {
        struct rparked *p = LIST_ENTRY(it, struct rparked, node);
        list_remove(it);
        p->why = RPARK_LEASE;
        p->txn = NULL;
        list_push_back(&r->wait_lease, it);
        r->rerun_lease = true;
    }
}

void rtxn_free(struct replica *r, const struct tt_now *now, struct rtxn *t)
{
    (void)now;
    lock_table_release(r->locks, &t->owner);
    r->rerun_locks = true;
    if (!list_is_empty(&t->in_state)) {
        list_remove(&t->in_state);
        r->rerun_flight = true;
    }
    heap_remove(&r->timers, &t->timer);
    mapb_remove(&r->txns, id_key(&t->owner.txn));
    rtxn_unpark(r, t); /* what they find is that their locks are gone */
    for (size_t i = 0; i < t->participant_count; i++) {
        buf_deinit(&t->participants[i].anchor);
    }
    for (size_t i = 0; i < t->early_count; i++) {
        buf_deinit(&t->early[i].participant);
    }
    keys_free(t);
    span_free(t->participants);
    span_free(t->early);
    buf_deinit(&t->request);
    buf_deinit(&t->anchor);
    buf_deinit(&t->coordinator);
    buf_deinit(&t->record);
    buf_deinit(&t->asker);
    span_free(t);
}

void rtxn_keys_set(struct rtxn *t, const struct txn_write *writes, size_t n)
{
    keys_free(t);
    t->keys = span_calloc(n + 1, sizeof *t->keys);
    t->key_count = n;
    for (size_t i = 0; i < n; i++) {
        buf_set(&t->keys[i], writes[i].key);
    }
}

void rtxn_flight(struct replica *r, struct rtxn *t, bool on)
{
    if (on) {
        if (list_is_empty(&t->in_state)) {
            list_push_back(&r->flight, &t->in_state);
        }
    } else if (!list_is_empty(&t->in_state)) {
        list_remove(&t->in_state);
        r->rerun_flight = true;
    }
}

/* Rule C12: remembered in memory until no message of it can be under way any more. Another leader
 * has another term, which refuses whatever names the old one. */
void rtxn_forget(struct replica *r, const struct tt_now *now, const struct txn_id *txn,
                 span_status why)
{
    if (mapb_get(&r->gone_by_id, id_key(txn)) != NULL) {
        return;
    }
    struct rgone *g = SPAN_NEW(struct rgone);
    g->txn = *txn;
    g->why = why;
    g->until_ns = now->mono_ns + 30 * SEC_NS;
    list_push_back(&r->gone, &g->node);
    mapb_put(&r->gone_by_id, id_key(txn), g);
}

const struct rgone *rtxn_gone(const struct replica *r, const struct txn_id *txn)
{
    return mapb_get(&r->gone_by_id, id_key(txn));
}

void rtxn_wound(struct replica *r, const struct tt_now *now, struct rtxn *t, span_status why)
{
    INVARIANT(t->state == RTXN_HOLDING);
    if (t->gateway != 0) {
        struct txn_wounded m = {.incarnation = t->incarnation,
                                .range = r->id,
                                .txn = t->owner.txn,
                                .status = (uint16_t)why};
        msg_encode_wounded(store_out(r->store, t->gateway, STORE_CONTROL), &m);
    }
    rtxn_forget(r, now, &t->owner.txn, why);
    rtxn_free(r, now, t);
}

static void wound_coordinator_of(struct replica *r, struct rtxn *t, const struct lock_owner *by)
{
    if (t->wound_sent) {
        return;
    }
    t->wound_sent = true;
    t->wounded_by = by->age;
    replica_send_wound(r, t);
}

/* A younger transaction is in the way of an older one. */
bool replica_wound_cb(void *ctx, struct lock_owner *victim, const struct lock_owner *by)
{
    struct replica *r = ctx;
    struct rtxn *t = RTXN_OF_OWNER(victim);
    const struct tt_now *now = store_now(r->store);
    switch (t->state) {
    case RTXN_HOLDING:
        rtxn_wound(r, now, t, SPAN_WOUNDED);
        return true;
    case RTXN_COORDINATING: /* rule C4: woundable until the decision is proposed */
        /* Its abort record is proposed when this event is handled: a step of Raft in the middle of
         * an acquire could end the leadership and free the transaction that asks. */
        lock_table_release(r->locks, &t->owner);
        r->rerun_locks = true;
        t->votes_missing = SIZE_MAX;
        heap_insert(&r->timers, &t->timer, now->mono_ns);
        return true;
    case RTXN_PREPARING:
    case RTXN_PREPARED:
        if (PLANTED(PREPARED_IS_WOUNDED)) {
            lock_table_release(r->locks, &t->owner);
            r->rerun_locks = true;
            return true;
        }
        wound_coordinator_of(r, t, by);
        return false;
    case RTXN_FINISHING:
    case RTXN_COMMITTING:
    case RTXN_DECIDING:
    case RTXN_DECIDED:
        return false;
    }
    return false;
}

/* ---- admission ---- */

span_status replica_admit_txn(struct replica *r, const struct range_request *q)
{
    if (outcome_table_get(r->outcomes, &q->txn) != NULL) {
        return SPAN_ABORTED;
    }
    if (q->txn.begin_ns <= r->watermark.ns) {
        return SPAN_ABORTED; /* rule C3: older than TXN_AGE_NS_MAX */
    }
    const struct rgone *g = rtxn_gone(r, &q->txn);
    if (g != NULL) {
        return g->why;
    }
    if (q->term != 0 && (q->term != raft_current_term(r->raft) || rtxn_find(r, &q->txn) == NULL)) {
        return SPAN_LOCKS_LOST; /* rule C1 */
    }
    return SPAN_OK;
}

struct rtxn *rtxn_of_request(struct replica *r, const struct tt_now *now,
                             const struct range_request *q)
{
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (t == NULL) {
        t = rtxn_new(r, &q->txn, &q->age, RTXN_HOLDING);
        heap_insert(&r->timers, &t->timer, now->mono_ns + GATEWAY_CHECK_NS);
    }
    t->gateway = q->gateway;
    t->incarnation = q->incarnation;
    t->heard_ns = now->mono_ns;
    return t;
}

struct tt_ts replica_choose_ts(struct replica *r, struct tt_ts latest, struct tt_ts above)
{
    struct tt_ts floor = PLANTED(FLOOR_IGNORED) ? tt_ts_of(0) : r->floor;
    above = PLANTED(SEEN_IGNORED) ? tt_ts_of(0) : above;
    struct tt_ts s = tt_max(latest, tt_add(tt_max(floor, above), 1));
    return s.ns < raft_lease_end(r->raft).ns ? s : tt_ts_of(0);
}

/* Locks of a commit operation: schema S, written keys X (rule C4: nobody waits for an older holder
 * here). */
static enum lock_result lock_writes(struct replica *r, const struct tt_now *now, struct rtxn *t,
                                    const struct range_request *q)
{
    bool waiting = false;
    for (size_t i = 0; i < q->schema_count + q->write_count; i++) {
        uint8_t skey[SCHEMA_KEY_BYTES];
        struct lock_request lq = {
            .owner = &t->owner, .commit_phase = true, .may_wait = true, .now_ns = now->mono_ns};
        lq.span.point = true;
        if (i < q->schema_count) {
            lq.span.start = schema_key(skey, q->schema[i].table_id);
            lq.mode = LOCK_SHARED;
        } else {
            lq.span.start = q->writes[i - q->schema_count].key;
            lq.mode = LOCK_EXCLUSIVE;
        }
        switch (lock_table_acquire(r->locks, &lq, replica_wound_cb, r)) {
        case LOCK_GRANTED:
            break;
        case LOCK_WAITING:
            waiting = true;
            break;
        case LOCK_REFUSED:
            return LOCK_REFUSED;
        }
    }
    return waiting ? LOCK_WAITING : LOCK_GRANTED;
}

static bool too_large(const struct range_request *q)
{
    size_t bytes = 0;
    for (size_t i = 0; i < q->write_count; i++) {
        bytes += txn_write_bytes(&q->writes[i]);
    }
    return bytes > LIMIT_TXN_RANGE_BYTES;
}

/* What all three commit operations need before they may choose a timestamp. OK: all locks are held
 * and *out is set. WOULD_WAIT: the request is parked. Anything else: refuse with it (the
 * transaction's locks here are gone). */
static span_status ready_to_commit(struct replica *r, const struct tt_now *now, struct slice body,
                                   const struct range_request *q, struct rtxn **out)
{
    span_status st = replica_admit_txn(r, q);
    if (st != SPAN_OK) {
        return st;
    }
    if (too_large(q)) {
        return SPAN_TOO_LARGE;
    }
    struct rtxn *t = rtxn_of_request(r, now, q);
    switch (lock_writes(r, now, t, q)) {
    case LOCK_GRANTED:
        break;
    case LOCK_WAITING:
        replica_park(r, now, body, q, RPARK_LOCKS, t);
        return SPAN_WOULD_WAIT;
    case LOCK_REFUSED:
        st = SPAN_CONFLICT;
        break;
    }
    if (st == SPAN_OK) {
        st = replica_check_schema(r, q, ENGINE_NEWEST);
    }
    if (st != SPAN_OK) {
        rtxn_forget(r, now, &q->txn, st);
        rtxn_free(r, now, t);
        return st;
    }
    *out = t;
    return SPAN_OK;
}

static void answer_to(struct rtxn *t, const struct range_request *q)
{
    t->request_id = q->request_id;
    t->gateway = q->gateway;
    t->op = q->op;
}

/* A commit request that was sent before: it is in flight, or over. True: dealt with. */
static bool seen_before(struct replica *r, const struct range_request *q)
{
    const struct outcome *o = outcome_table_get(r->outcomes, &q->txn);
    if (o != NULL) {
        struct range_response resp = {.status = tt_is_none(o->ts) ? SPAN_ABORTED : SPAN_OK,
                                      .ts = o->ts};
        replica_respond(r, q, &resp);
        return true;
    }
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (t == NULL || t->state == RTXN_HOLDING) {
        return false;
    }
    if (t->state == RTXN_COMMITTING || t->state == RTXN_COORDINATING || t->state == RTXN_DECIDING) {
        answer_to(t, q);
    }
    return true;
}

/* ---- one range ---- */

void replica_op_commit1(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q)
{
    if (seen_before(r, q)) {
        return;
    }
    struct rtxn *t = NULL;
    span_status st = ready_to_commit(r, now, body, q, &t);
    if (st == SPAN_WOULD_WAIT) {
        return;
    }
    if (st != SPAN_OK) {
        replica_refuse(r, q, st, "");
        return;
    }
    struct tt_ts s = replica_choose_ts(r, now->tt.latest, q->seen);
    if (tt_is_none(s)) {
        replica_park(r, now, body, q, RPARK_LEASE, NULL);
        return;
    }
    r->floor = s;
    t->ts = s;
    t->state = RTXN_COMMITTING;
    t->owner.leaving = true;
    t->owner.unwoundable = true;
    heap_remove(&r->timers, &t->timer);
    answer_to(t, q);
    rtxn_keys_set(t, q->writes, q->write_count);
    rtxn_flight(r, t, true);
    struct cmd_commit c = {
        .txn = q->txn, .ts = s, .write_count = q->write_count, .writes = q->writes};
    struct buf b = {0};
    cmd_encode_commit(&b, &c);
    if (!replica_propose(r, now, CMD_COMMIT1, buf_slice(&b)) && rtxn_find(r, &q->txn) == t) {
        rtxn_free(r, now, t); /* refused, not proposed */
        replica_refuse(r, q, SPAN_OVERLOADED, "");
    }
    buf_deinit(&b);
}

/* ---- participant ---- */

void replica_vote_no(struct replica *r, const struct range_request *q, span_status why)
{
    struct txn_vote v = {.coordinator = q->coordinator,
                         .txn = q->txn,
                         .participant = q->anchor,
                         .range = r->id,
                         .node = store_cfg(r->store)->self,
                         .status = (uint16_t)why};
    node_id to = store_route(r->store, q->coordinator, q->coordinator_node, 0);
    msg_encode_vote(store_out(r->store, to, STORE_CONTROL), &v);
}

struct lock_copy {
    struct cmd_lock *locks;
    size_t count;
    size_t cap;
};

static void copy_lock(void *ctx, const struct lock_owner *o, const struct span *span,
                      enum lock_mode mode, bool held, uint64_t since_ns)
{
    struct lock_copy *c = ctx;
    (void)o;
    (void)since_ns;
    if (!held || (PLANTED(READ_LOCKS_NOT_RECORDED) && mode == LOCK_SHARED)) {
        return;
    }
    if (c->count == c->cap) {
        c->cap = c->cap == 0 ? 16 : c->cap * 2;
        c->locks = span_realloc(c->locks, c->cap * sizeof *c->locks);
    }
    c->locks[c->count++] = (struct cmd_lock){*span, (uint8_t)mode};
}

void replica_op_prepare(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q)
{
    const struct outcome *o = outcome_table_get(r->outcomes, &q->txn);
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (o != NULL || (t != NULL && t->state != RTXN_HOLDING)) {
        if (o == NULL && !slice_eq(buf_slice(&t->anchor), q->anchor)) {
            /* Planned before two ranges became one, and that other part has prepared: what is one
             * participant now was to be two, and the second one has never voted. */
            replica_vote_no(r, q, SPAN_LOCKS_LOST);
            replica_refuse(r, q, SPAN_LOCKS_LOST, "");
        } else if (t != NULL && t->state == RTXN_PREPARED) {
            t->coordinator_node = q->coordinator_node;
            replica_send_vote(r, t, true, SPAN_OK);
        } else if (o != NULL && tt_is_none(o->ts)) {
            replica_vote_no(r, q, SPAN_ABORTED);
        }
        return; /* rule C3: a duplicate never prepares again */
    }
    if (replica_covers(r, q->coordinator)) {
        /* It was planned before two ranges became one: its locks on the right side are lost. */
        replica_vote_no(r, q, SPAN_LOCKS_LOST);
        replica_refuse(r, q, SPAN_LOCKS_LOST, "");
        return;
    }
    span_status st = ready_to_commit(r, now, body, q, &t);
    if (st == SPAN_WOULD_WAIT) {
        return;
    }
    struct tt_ts p = tt_ts_of(0);
    if (st == SPAN_OK) {
        p = replica_choose_ts(r, now->tt.latest, q->seen);
        if (tt_is_none(p)) {
            replica_park(r, now, body, q, RPARK_LEASE, NULL);
            return;
        }
    } else {
        replica_vote_no(r, q, st);
        replica_refuse(r, q, st, "");
        return;
    }
    r->floor = p;
    t->ts = p;
    t->state = RTXN_PREPARING;
    t->owner.unwoundable = true;
    heap_remove(&r->timers, &t->timer);
    buf_set(&t->coordinator, q->coordinator);
    buf_set(&t->anchor, q->anchor);
    t->coordinator_node = q->coordinator_node;
    rtxn_keys_set(t, q->writes, q->write_count);
    rtxn_flight(r, t, true);
    struct lock_copy locks = {0};
    lock_table_each_of(r->locks, &t->owner, copy_lock, &locks);
    struct cmd_prepare c = {.txn = q->txn,
                            .age = q->age,
                            .prepare_ts = p,
                            .anchor = q->anchor,
                            .coordinator = q->coordinator,
                            .coordinator_node = q->coordinator_node,
                            .write_count = q->write_count,
                            .writes = q->writes,
                            .lock_count = locks.count,
                            .locks = locks.locks};
    struct buf b = {0};
    cmd_encode_prepare(&b, &c);
    span_free(locks.locks);
    bool fits = b.size <= LIMIT_ENTRY_BYTES;
    if (!fits || !replica_propose(r, now, CMD_PREPARE, buf_slice(&b))) {
        if (rtxn_find(r, &q->txn) == t) {
            rtxn_free(r, now, t);
            span_status why = fits ? SPAN_OVERLOADED : SPAN_TOO_LARGE;
            replica_vote_no(r, q, why);
            replica_refuse(r, q, why,
                           fits ? "" : "its locks and writes in the range do not fit a log entry");
        }
    }
    buf_deinit(&b);
}

/* ---- coordinator ---- */

static void take_participants(struct rtxn *t, const struct range_request *q)
{
    t->participant_count = q->participant_count;
    t->participants = span_calloc(q->participant_count + 1, sizeof *t->participants);
    for (size_t i = 0; i < q->participant_count; i++) {
        buf_set(&t->participants[i].anchor, q->participants[i].anchor);
        t->participants[i].range = q->participants[i].range;
        t->participants[i].node = q->participants[i].node;
    }
    t->votes_missing = q->participant_count;
}

/* Rule C8, C11: participants may have prepared already, so a refusal becomes an abort record, which
 * is then answered. */
static void coordinate_refused(struct replica *r, const struct tt_now *now,
                               const struct range_request *q, span_status why)
{
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (t == NULL) {
        t = rtxn_new(r, &q->txn, &q->age, RTXN_COORDINATING);
    }
    t->state = RTXN_COORDINATING; /* it may hold locks here still */
    heap_remove(&r->timers, &t->timer);
    answer_to(t, q);
    if (t->participants == NULL) {
        take_participants(t, q);
    }
    buf_set(&t->anchor, q->anchor);
    replica_abort_coordinated(r, now, t, why);
}

void replica_op_coordinate(struct replica *r, const struct tt_now *now, struct slice body,
                           const struct range_request *q)
{
    if (seen_before(r, q)) {
        return;
    }
    if (q->txn.begin_ns <= r->watermark.ns) { /* rule C3: no record can be needed any more */
        replica_refuse(r, q, SPAN_ABORTED, "");
        return;
    }
    struct rtxn *t = NULL;
    span_status st = q->budget_ns == 0 ? SPAN_DEADLINE : ready_to_commit(r, now, body, q, &t);
    if (st == SPAN_WOULD_WAIT) {
        return;
    }
    if (st != SPAN_OK) {
        coordinate_refused(r, now, q, st);
        return;
    }
    t->state = RTXN_COORDINATING;
    answer_to(t, q);
    t->seen = q->seen;
    t->latest = now->tt.latest;
    t->deadline_ns = now->mono_ns + q->budget_ns;
    take_participants(t, q);
    buf_set(&t->request, body);
    buf_set(&t->anchor, q->anchor);
    heap_insert(&r->timers, &t->timer, t->deadline_ns);
    for (size_t i = 0; i < t->early_count; i++) {
        struct rvote_early *e = &t->early[i];
        struct txn_vote v = {.txn = q->txn,
                             .participant = buf_slice(&e->participant),
                             .yes = e->yes,
                             .prepare_ts = e->prepare_ts,
                             .status = e->status};
        replica_on_vote(r, now, &v);
        if (rtxn_find(r, &v.txn) != t || t->state != RTXN_COORDINATING) {
            return;
        }
    }
    replica_try_decide(r, now, t);
}

/* ---- without writes, rollback, status ---- */

/* COMMIT of a transaction that wrote nothing: at q->read_ts every read of it here is still current,
 * because its locks were held all the time in this term; the floor keeps later writes above. */
void replica_op_validate(struct replica *r, const struct tt_now *now, struct slice body,
                         const struct range_request *q)
{
    span_status st = replica_admit_txn(r, q);
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (st == SPAN_OK && (t == NULL || t->state != RTXN_HOLDING || t->owner.waiting_count > 0)) {
        st = SPAN_LOCKS_LOST;
    }
    if (st == SPAN_OK && q->read_ts.ns > now->tt.latest.ns + SKEW_NS_MAX) {
        st = SPAN_IN_FUTURE;
    }
    if (st != SPAN_OK) {
        replica_refuse(r, q, st, "");
        return;
    }
    if (q->read_ts.ns >= raft_lease_end(r->raft).ns) {
        replica_park(r, now, body, q, RPARK_LEASE, NULL);
        return;
    }
    r->floor = tt_max(r->floor, q->read_ts);
    rtxn_forget(r, now, &q->txn, SPAN_ABORTED);
    rtxn_free(r, now, t);
    struct range_response resp = {.status = SPAN_OK};
    replica_respond(r, q, &resp);
}

void replica_op_release(struct replica *r, const struct tt_now *now, const struct range_request *q)
{
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (t == NULL || t->state == RTXN_HOLDING) {
        rtxn_forget(r, now, &q->txn, SPAN_ABORTED);
        if (t != NULL) {
            rtxn_free(r, now, t);
        }
    }
    if (q->request_id != 0) {
        struct range_response resp = {.status = SPAN_OK};
        replica_respond(r, q, &resp);
    }
}

void replica_op_status(struct replica *r, const struct tt_now *now, const struct range_request *q)
{
    struct range_response resp = {.status = SPAN_OK, .txn_state = TXN_STATE_RUNNING};
    const struct outcome *o = outcome_table_get(r->outcomes, &q->txn);
    struct rtxn *t = rtxn_find(r, &q->txn);
    if (o != NULL) {
        resp.txn_state = tt_is_none(o->ts) ? TXN_STATE_ABORTED : TXN_STATE_COMMITTED;
        resp.ts = o->ts;
    } else if (t != NULL && t->state == RTXN_DECIDED) {
        resp.txn_state = TXN_STATE_COMMITTED;
        resp.ts = t->ts;
    } else if (t != NULL) {
        resp.txn_state = TXN_STATE_RUNNING;
    } else if (q->txn.begin_ns <= r->watermark.ns) {
        resp.txn_state = TXN_STATE_EXPIRED;
    } else if (q->txn.begin_ns > now->tt.latest.ns + SKEW_NS_MAX) {
        replica_refuse(r, q, SPAN_INVALID, "no transaction of that id can have begun yet");
        return;
    } else {
        /* Rule C3: first the abort record, then the answer, so that a late commit can not follow.
         */
        replica_propose_abort(r, now, &q->txn, q->anchor, slice_of(NULL, 0), 0);
        t = rtxn_find(r, &q->txn);
        if (t != NULL) {
            answer_to(t, q);
            return;
        }
        replica_refuse(r, q, SPAN_UNAVAILABLE, "");
        return;
    }
    replica_respond(r, q, &resp);
}
