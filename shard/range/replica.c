/* Life of a replica and everything around Raft: one step of it, carrying out its update,
 * leadership, timers. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/store_impl.h"

#define APPLY_RETRY_NS (200 * MS_NS) /* a split that found no room */
#define AHEAD_RETRY_NS (MS_NS / 2)   /* one that waits for its right side */
#define MERGE_RETRY_NS (10 * MS_NS)  /* a merge whose right side is not there yet */

struct replica *replica_new(struct store *s, range_id id)
{
    struct replica *r = SPAN_NEW(struct replica);
    r->store = s;
    r->id = id;
    r->outcomes = outcome_table_new();
    r->locks = lock_table_new();
    map64_init(&r->schema);
    mapb_init(&r->txns);
    mapb_init(&r->gone_by_id);
    list_init(&r->flight);
    list_init(&r->gone);
    list_init(&r->wait_flight);
    list_init(&r->wait_lease);
    list_init(&r->dirty);
    list_init(&r->touched);
    heap_init(&r->deadlines);
    heap_init(&r->timers);
    r->raft_deadline_ns = UINT64_MAX;
    return r;
}

static void parked_free_list(struct replica *r, struct list *l)
{
    LIST_EACH_SAFE(it, tmp, l)
    {
        struct rparked *p = LIST_ENTRY(it, struct rparked, node);
        list_remove(it);
        heap_remove(&r->deadlines, &p->timer);
        buf_deinit(&p->body);
        span_free(p);
    }
}

void replica_free(struct replica *r)
{
    if (r == NULL) {
        return;
    }
    static const struct tt_now never;
    replica_snapshot_stop(r);
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        parked_free_list(r, &t->parked);
        rtxn_free(r, &never, t);
    }
    parked_free_list(r, &r->wait_flight);
    parked_free_list(r, &r->wait_lease);
    LIST_EACH_SAFE(it, tmp, &r->gone)
    {
        list_remove(it);
        span_free(LIST_ENTRY(it, struct rgone, node));
    }
    pos = 0;
    struct schema_version *v;
    while ((v = map64_next(&r->schema, &pos, NULL)) != NULL) {
        span_free(v);
    }
    list_remove(&r->dirty);
    list_remove(&r->touched);
    map64_deinit(&r->schema);
    mapb_deinit(&r->txns);
    mapb_deinit(&r->gone_by_id);
    heap_deinit(&r->deadlines);
    heap_deinit(&r->timers);
    lock_table_free(r->locks);
    outcome_table_free(r->outcomes);
    raft_free(r->raft);
    while (r->ahead_job != NULL) {
        struct engine_flush_result ignored;
        r->ahead_job = engine_flush_done(r->engine, r->ahead_job, &ignored);
    }
    engine_close(r->engine);
    buf_deinit(&r->start);
    buf_deinit(&r->end);
    buf_deinit(&r->resolved);
    buf_deinit(&r->split_key);
    buf_deinit(&r->split_request);
    buf_deinit(&r->member_request);
    buf_deinit(&r->cut_at);
    buf_deinit(&r->merge_request);
    replica_forget_merge(r);
    span_free(r);
}

void replica_break(struct replica *r, const char *what, span_status st)
{
    if (!r->broken) {
        SPAN_LOG(ERROR, "replica is out: it can not go on from its data",
                 "range=%llu what=\"%s\" status=%s", (unsigned long long)r->id, what,
                 span_status_name(st));
        r->broken = true;
    }
}

bool replica_covers(const struct replica *r, struct slice key)
{
    if (key.size > 0 && key.data[0] == 0) {
        return true; /* range-local */
    }
    return slice_cmp(key, buf_slice(&r->start)) >= 0 &&
           (r->end.size == 0 || slice_cmp(key, buf_slice(&r->end)) < 0);
}

bool replica_covers_span(const struct replica *r, const struct span *span)
{
    if (span->point) {
        return replica_covers(r, span->start);
    }
    if (slice_cmp(span->start, buf_slice(&r->start)) < 0) {
        return false;
    }
    if (r->end.size == 0) {
        return true;
    }
    return span->end.size != 0 && slice_cmp(span->end, buf_slice(&r->end)) <= 0;
}

void replica_descriptor(const struct replica *r, struct range_descriptor *d)
{
    *d = (struct range_descriptor){
        .range = r->id,
        .generation = r->generation,
        .start = buf_slice(&r->start),
        .end = buf_slice(&r->end),
        .member_count = r->member_count,
        .leader = r->broken ? 0 : raft_leader(r->raft),
    };
    memcpy(d->members, r->members, sizeof d->members);
}

uint64_t replica_mono_of(const struct tt_now *now, struct tt_ts t)
{
    return t.ns <= now->tt.earliest.ns ? now->mono_ns
                                       : now->mono_ns + (t.ns - now->tt.earliest.ns) + 1;
}

void replica_learn(struct replica *r, struct tt_ts ts)
{
    r->applied_ts = tt_max(r->applied_ts, ts);
    r->floor = PLANTED(FLOOR_MISSES_OUTCOME) ? r->floor : tt_max(r->floor, ts);
}

bool replica_may_serve(const struct replica *r, const struct tt_now *now)
{
    if (r->apply_wait_from != 0 && r->apply_wait_merge) {
        return false; /* what it would propose lies behind a merge that it has not seen */
    }
    return r->serving && !r->releasing && !r->frozen && !r->broken && raft_is_ready(r->raft, now);
}

struct tt_ts replica_safe_time(const struct replica *r)
{
    struct tt_ts t = r->closed;
    if (PLANTED(SAFE_TIME_IGNORES_PREPARED)) {
        return t;
    }
    LIST_EACH(it, &r->flight)
    {
        const struct rtxn *x = LIST_ENTRY(it, struct rtxn, in_state);
        if (x->ts.ns <= t.ns) {
            t.ns = x->ts.ns - 1;
        }
    }
    return t;
}

/* ---- raft ---- */

static void send_raft(struct replica *r, const struct raft_msg *m)
{
    struct buf *scratch = store_scratch(r->store);
    raft_msg_encode(scratch, m);
    bool bulk = m->type == RAFT_MSG_APPEND && scratch->size > 64 * KIB;
    msg_encode_range_bytes(store_out(r->store, m->to, bulk ? STORE_BULK : STORE_CONTROL), MSG_RAFT,
                           r->id, buf_slice(scratch));
}

static void persist(struct replica *r, const struct raft_update *up)
{
    const struct store_io *io = &store_cfg(r->store)->io;
    if (up->hard_state_changed) {
        struct buf *b = store_scratch(r->store);
        enc_u8(b, 1);
        enc_u64(b, up->hard_state.term);
        enc_u32(b, PLANTED(VOTE_NOT_PERSISTED) ? 0 : up->hard_state.voted_for);
        io->sticky(io->ctx, r->id, STICKY_HARD_STATE, buf_slice(b));
    }
    for (size_t i = 0; i < up->entry_count; i++) {
        const struct raft_entry *e = &up->entries[i];
        io->entry(io->ctx, r->id, e->index, e->term, e->type, raft_blob_slice(e->payload));
    }
    store_note_persist(r->store, r, up->persist_seq, r->lazy_step);
}

/* A split makes a file, and the disk may be full or failing just now; a merge needs its right side
 * here. What is committed stays so: it is tried again until it succeeds, and somebody else leads
 * meanwhile. */
static void apply_later(struct replica *r, const struct tt_now *now, uint64_t from, uint64_t to,
                        bool ahead, bool merge)
{
    r->apply_wait_from = from;
    r->apply_wait_to = to;
    r->apply_wait_ahead = ahead;
    r->apply_wait_merge = merge;
    r->apply_retry_ns = now->mono_ns + (ahead   ? AHEAD_RETRY_NS
                                        : merge ? MERGE_RETRY_NS
                                                : APPLY_RETRY_NS);
    if (ahead) {
        return; /* the flusher is at it */
    }
    if (r->leading && r->transfer_to == 0) {
        r->transfer_to = raft_transfer_target(r->raft);
    }
}

static void apply_range(struct replica *r, const struct tt_now *now, uint64_t from, uint64_t to)
{
    if (r->apply_wait_from != 0) {
        r->apply_wait_to = to;
        return;
    }
    for (uint64_t i = from; i <= to && !r->broken; i++) {
        const struct raft_entry *e = raft_entry_at(r->raft, i);
        INVARIANT(e != NULL);
        span_status st = replica_apply(r, now, e);
        bool wait = st == SPAN_WOULD_WAIT;
        bool split = e->type == CMD_SPLIT && (st == SPAN_NO_SPACE || st == SPAN_IO || wait);
        bool merge = e->type == CMD_MERGE && (st == SPAN_IO || wait);
        if (split || merge) {
            apply_later(r, now, i, to, split && wait, merge);
            if (i == from) {
                return;
            }
            to = i - 1;
            break;
        }
        if (st != SPAN_OK) {
            replica_break(r, "apply", st);
            return;
        }
        engine_set_applied(r->engine, i);
    }
    if (r->closed_index != 0 && to >= r->closed_index) {
        r->closed = tt_max(r->closed, r->closed_next);
        r->closed_index = 0;
    }
    struct raft_update *up = store_update(r->store);
    struct raft_event ev = {.type = RAFT_EV_APPLIED, .now = *now, .u.index = to};
    if (raft_step(r->raft, &ev, up) != SPAN_OK) {
        replica_break(r, "raft", SPAN_INTERNAL);
    }
    r->raft_deadline_ns = up->deadline_mono_ns;
}

/* The update is the store's one scratch update: everything needed after the next raft call is taken
 * out of it first. */
static void carry_out(struct replica *r, const struct tt_now *now, const struct raft_update *up)
{
    if (up->persist_seq != 0) {
        persist(r, up);
    }
    for (size_t i = 0; i < up->msg_count; i++) {
        send_raft(r, &up->msgs[i]);
    }
    r->raft_deadline_ns = up->deadline_mono_ns;
    uint32_t snapshot_to[LIMIT_REPLICAS];
    size_t snapshots = up->snapshot_count;
    memcpy(snapshot_to, up->snapshot_to, sizeof snapshot_to);
    uint64_t from = up->apply_from;
    uint64_t to = up->apply_to;
    bool became = up->became_leader;
    bool stepped = up->stepped_down;
    bool handover = up->handover_wanted;
    struct tt_ts vote_floor = up->vote_floor;

    if (stepped) {
        replica_leader_stop(r, now);
    }
    if (from != 0) {
        apply_range(r, now, from, to);
    }
    if (became) {
        replica_leader_start(r, now, vote_floor);
    }
    if (handover && r->leading && r->transfer_to == 0) {
        r->transfer_to = raft_transfer_target(r->raft);
    }
    for (size_t i = 0; i < snapshots; i++) {
        replica_snapshot_wanted(r, now, snapshot_to[i]);
    }
}

void replica_raft(struct replica *r, const struct tt_now *now, struct raft_event *ev)
{
    if (r->broken && ev->type != RAFT_EV_PERSISTED) {
        return;
    }
    uint32_t leader = raft_leader(r->raft);
    struct raft_update *up = store_update(r->store);
    ev->now = *now;
    /* An acknowledgement alone does not make entries leave that can wait. */
    bool ack = ev->type == RAFT_EV_PERSISTED || ev->type == RAFT_EV_HEARTBEAT_ACK ||
               (ev->type == RAFT_EV_MESSAGE && ev->u.msg->type == RAFT_MSG_APPEND_ACK);
    r->urgent = r->urgent || !ack;
    span_status st = raft_step(r->raft, ev, up);
    store_mark_dirty(r->store, r);
    if (st != SPAN_OK) {
        r->raft_deadline_ns = up->deadline_mono_ns;
        if (st == SPAN_CORRUPT) {
            replica_break(r, "raft", st);
        } else if (st == SPAN_PROTOCOL) {
            SPAN_LOG(WARN, "dropped a Raft message that no correct peer sends",
                     "range=%llu from=%u", (unsigned long long)r->id, ev->from);
        }
        return;
    }
    carry_out(r, now, up);
    if (raft_leader(r->raft) != leader) {
        store_descriptors_changed(r->store);
    }
    if (r->leading && raft_lease_end(r->raft).ns != r->lease_seen.ns) {
        r->lease_seen = raft_lease_end(r->raft);
        r->rerun_lease = true;
    }
}

bool replica_propose(struct replica *r, const struct tt_now *now, uint8_t type,
                     struct slice payload)
{
    REQUIRE(r->leading);
    /* How a transaction ended is decided elsewhere for good, and its client has its answer: the
     * record may travel and be synced with the next one, unless somebody waits for its locks. */
    bool lazy = (type == CMD_OUTCOME || type == CMD_RESOLVED || type == CMD_MAINTAIN) &&
                lock_table_waiting(r->locks) == 0;
    if (!lazy) {
        r->urgent = true;
    } else if (r->lazy_until_ns == 0) {
        r->lazy_until_ns = now->mono_ns + STORE_LAZY_NS;
    }
    struct raft_proposal p = {.type = type, .payload = payload};
    struct raft_event ev = {
        .type = RAFT_EV_PROPOSE, .now = *now, .u.propose = {.items = &p, .count = 1}};
    struct raft_update *up = store_update(r->store);
    span_status st = raft_step(r->raft, &ev, up);
    store_mark_dirty(r->store, r);
    if (st != SPAN_OK) {
        SPAN_LOG(DEBUG, "proposal refused", "range=%llu status=%s", (unsigned long long)r->id,
                 span_status_name(st));
        r->raft_deadline_ns = up->deadline_mono_ns;
        return false;
    }
    r->lazy_step = lazy;
    carry_out(r, now, up);
    r->lazy_step = false;
    return r->leading;
}

span_status replica_propose_conf(struct replica *r, const struct tt_now *now,
                                 const struct raft_conf *conf)
{
    REQUIRE(r->leading);
    struct buf b = {0};
    raft_conf_encode(&b, conf);
    struct raft_proposal p = {.type = RAFT_ENTRY_CONF, .payload = buf_slice(&b)};
    struct raft_event ev = {
        .type = RAFT_EV_PROPOSE,
        .now = *now,
        .u.propose = {.items = &p, .count = 1, .floor = r->floor}}; /* rule B4 */
    struct raft_update *up = store_update(r->store);
    span_status st = raft_step(r->raft, &ev, up);
    buf_deinit(&b);
    store_mark_dirty(r->store, r);
    if (st != SPAN_OK) {
        r->raft_deadline_ns = up->deadline_mono_ns;
        return st;
    }
    r->urgent = true;
    carry_out(r, now, up);
    return SPAN_OK;
}

void replica_heard(struct replica *r, const struct tt_now *now)
{
    r->heard_ns = now->mono_ns;
    r->probe = 0;
}

void replica_heartbeat(struct replica *r, const struct tt_now *now, node_id from,
                       const struct heartbeat *hb, const struct heartbeat_range *line,
                       struct heartbeat_ack_range *ack)
{
    if (r->broken) {
        ack->known = true; /* of no term: there is a replica, a snapshot would not help it */
        return;
    }
    struct raft_event ev = {
        .type = RAFT_EV_HEARTBEAT,
        .now = *now,
        .from = from,
        .u.heartbeat = {.term = line->term,
                        .lease_end = line->lease ? hb->lease_end : tt_ts_of(0),
                        .last_index = line->last_index,
                        .commit = line->commit},
    };
    replica_heard(r, now);
    uint32_t leader = raft_leader(r->raft);
    struct raft_update *up = store_update(r->store);
    span_status st = raft_step(r->raft, &ev, up);
    store_mark_dirty(r->store, r);
    if (st != SPAN_OK) {
        r->raft_deadline_ns = up->deadline_mono_ns;
        if (st == SPAN_CORRUPT) {
            replica_break(r, "heartbeat", st);
        }
        return;
    }
    if (up->has_heartbeat_ack) {
        const struct raft_heartbeat_ack *a = &up->heartbeat_ack;
        ack->known = true;
        ack->term = a->term;
        ack->promised = a->promised;
        ack->match = a->match;
        ack->accepted = a->accepted;
        ack->last_index = a->last_index;
        ack->behind = a->behind;
        ack->ahead = replica_split_is_ready(r);
    }
    carry_out(r, now, up);
    if (raft_leader(r->raft) != leader) {
        store_descriptors_changed(r->store);
    }
    /* Rule A4: (closed, index) of the leader of this term holds once the index is applied. An
     * unfulfilled one is kept, or a follower that always lags a little would never close anything.
     */
    if (line->closed && line->term == raft_current_term(r->raft) && !r->leading) {
        if (raft_applied(r->raft) >= line->closed_index) {
            r->closed = tt_max(r->closed, hb->closed);
            r->closed_index = 0;
        } else if (r->closed_index == 0) {
            r->closed_next = hb->closed;
            r->closed_index = line->closed_index;
        }
    }
}

/* ---- leadership ---- */

void replica_leader_start(struct replica *r, const struct tt_now *now, struct tt_ts vote_floor)
{
    SPAN_LOG(INFO, "leads", "range=%llu term=%llu", (unsigned long long)r->id,
             (unsigned long long)raft_current_term(r->raft));
    r->leading = true;
    r->serving = false;
    r->releasing = false;
    r->transfer_to = 0;
    r->closed_index = 0;
    r->lease_seen = tt_ts_of(0);
    /* Rule A1: promised lease ends of the voters, own latest, everything in log and state. Entries
     * not yet applied are applied before the one proposed here (rule B6), and raise the floor as
     * they are. */
    r->floor = tt_max(tt_max(r->applied_ts, vote_floor), tt_max(now->tt.latest, r->closed));
    struct buf payload = {0};
    struct cmd_open c = {.floor = r->floor};
    cmd_encode_open(&payload, &c);
    r->open_index = raft_last_index(r->raft) + 1;
    (void)replica_propose(r, now, CMD_OPEN, buf_slice(&payload));
    buf_deinit(&payload);
    store_descriptors_changed(r->store);
}

/* Rule B6: locks of prepared transactions are rebuilt before anything is served. */
static void rebuild_locks(struct replica *r, const struct tt_now *now, struct rtxn *t)
{
    struct arena a = {0};
    struct cmd_prepare c;
    if (cmd_decode_prepare(buf_slice(&t->record), &a, &c) != SPAN_OK) {
        replica_break(r, "prepare record", SPAN_CORRUPT);
        arena_deinit(&a);
        return;
    }
    for (size_t i = 0; i < c.lock_count; i++) {
        struct lock_request q = {.owner = &t->owner,
                                 .span = c.locks[i].span,
                                 .mode = (enum lock_mode)c.locks[i].mode,
                                 .now_ns = now->mono_ns};
        enum lock_result res = lock_table_acquire(r->locks, &q, replica_wound_cb, r);
        INVARIANT(res == LOCK_GRANTED);
    }
    arena_deinit(&a);
}

static void start_serving(struct replica *r, const struct tt_now *now)
{
    r->serving = true;
    r->frozen_ask_ns = now->mono_ns;
    r->frozen_tries = 0;
    r->served_since_ns = now->mono_ns;
    r->rerun_lease = true;
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_PREPARED) {
            rebuild_locks(r, now, t);
            t->retry_ns = ASK_AGAIN_NS;
            heap_insert(&r->timers, &t->timer, now->mono_ns + 10 * MS_NS);
        } else if (t->state == RTXN_DECIDED) {
            /* Also those that were all acknowledged: that is not known to be replicated. */
            for (size_t i = 0; i < t->participant_count; i++) {
                t->participants[i].acked = false;
            }
            replica_send_outcomes(r, t, false);
            t->retry_ns = ASK_AGAIN_NS;
            heap_insert(&r->timers, &t->timer, now->mono_ns + ASK_AFTER_NS);
        }
    }
    SPAN_LOG(DEBUG, "serves", "range=%llu floor=%llu", (unsigned long long)r->id,
             (unsigned long long)r->floor.ns);
}

static void answer_parked(struct replica *r, struct list *l)
{
    struct list all;
    list_init(&all);
    LIST_EACH_SAFE(it, tmp, l)
    {
        list_remove(it);
        list_push_back(&all, it);
    }
    struct arena a = {0};
    LIST_EACH_SAFE(it, tmp, &all)
    {
        struct rparked *p = LIST_ENTRY(it, struct rparked, node);
        struct range_request q;
        if (msg_decode_request(buf_slice(&p->body), &a, &q) == SPAN_OK) {
            replica_refuse(r, &q, r->absorbed_by != 0 ? SPAN_STALE_DESCRIPTOR : SPAN_NOT_LEADER,
                           "");
        }
        arena_clear(&a);
    }
    arena_deinit(&a);
    parked_free_list(r, &all);
}

void replica_retire(struct replica *r)
{
    REQUIRE(!r->leading);
    answer_parked(r, &r->wait_flight);
    answer_parked(r, &r->wait_lease);
}

void replica_unknown(struct replica *r, const struct rtxn *t)
{
    if (t->gateway == 0 || t->request_id == 0) {
        return;
    }
    struct range_request q = {
        .op = t->op, .request_id = t->request_id, .gateway = t->gateway, .txn = t->owner.txn};
    replica_refuse(r, &q, SPAN_UNKNOWN_OUTCOME,
                   "leadership was lost while the record was in flight");
}

void replica_leader_stop(struct replica *r, const struct tt_now *now)
{
    if (!r->leading) {
        return;
    }
    SPAN_LOG(INFO, "leads no longer", "range=%llu term=%llu", (unsigned long long)r->id,
             (unsigned long long)raft_current_term(r->raft));
    r->leading = false;
    r->serving = false;
    r->releasing = false;
    r->transfer_to = 0;
    r->resolved_count = 0;
    buf_clear(&r->resolved);
    replica_split_cancel(r);
    replica_merge_cancel(r);
    replica_member_cancel(r);
    replica_autosplit_reset(r);
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        answer_parked(r, &t->parked);
        heap_remove(&r->timers, &t->timer);
        switch (t->state) {
        case RTXN_COMMITTING:
        case RTXN_DECIDING:
            replica_unknown(r, t); /* rule C11 */
            rtxn_free(r, now, t);
            break;
        case RTXN_HOLDING:
        case RTXN_COORDINATING:
        case RTXN_PREPARING:
            if (t->state == RTXN_COORDINATING) {
                replica_unknown(r, t); /* participants may be prepared: only a record can end it */
            }
            rtxn_free(r, now, t);
            break;
        case RTXN_FINISHING:
            if (t->record.size == 0) { /* its prepare record is not applied here yet */
                rtxn_free(r, now, t);
                break;
            }
            t->state = RTXN_PREPARED;
            t->owner.leaving = false;
            lock_table_release(r->locks, &t->owner);
            break;
        case RTXN_PREPARED:
            lock_table_release(r->locks, &t->owner);
            break;
        case RTXN_DECIDED:
            break;
        }
    }
    while (lock_table_take_granted(r->locks) != NULL) {
    }
    answer_parked(r, &r->wait_flight);
    answer_parked(r, &r->wait_lease);
    LIST_EACH_SAFE(it, tmp, &r->gone)
    {
        struct rgone *g = LIST_ENTRY(it, struct rgone, node);
        list_remove(it);
        mapb_remove(&r->gone_by_id, slice_of(&g->txn, sizeof g->txn));
        span_free(g);
    }
    store_descriptors_changed(r->store);
}

/* Lets go of the leadership: no new timestamps, then the release (rule B5). In-flight records do
 * not hinder it: their timestamps lie below the floor that travels. */
static void transfer_step(struct replica *r, const struct tt_now *now)
{
    if (r->transfer_to == 0 || !r->leading || raft_has_released(r->raft)) {
        return;
    }
    bool changing =
        (r->split_key.size > 0 && !r->split_ahead) || r->merge_right != 0 || r->merge_left != 0;
    /* One that can not serve because an entry waits to be applied here hands over, too. */
    bool stuck = r->apply_wait_from != 0 && r->apply_wait_merge;
    if ((stuck || (r->serving && raft_is_ready(r->raft, now))) && !changing) {
        r->releasing = true;
        struct raft_event ev = {.type = RAFT_EV_TRANSFER,
                                .u.transfer = {.target = r->transfer_to, .release = r->floor}};
        r->transfer_to = 0;
        replica_raft(r, now, &ev);
        if (r->leading && !raft_has_released(r->raft)) {
            r->releasing = false;
        }
        return;
    }
    r->transfer_to = 0; /* not serving: nothing to hand over */
}

/* ---- timers ---- */

static void expire_gone(struct replica *r, const struct tt_now *now)
{
    while (!list_is_empty(&r->gone)) {
        struct rgone *g = LIST_ENTRY(r->gone.next, struct rgone, node);
        if (g->until_ns > now->mono_ns) {
            return;
        }
        list_remove(&g->node);
        mapb_remove(&r->gone_by_id, slice_of(&g->txn, sizeof g->txn));
        span_free(g);
    }
}

void replica_propose_resolved(struct replica *r, const struct tt_now *now)
{
    if (r->resolved_count == 0 || !replica_may_serve(r, now)) {
        return;
    }
    struct buf b = {0};
    struct cmd_resolved c = {.count = r->resolved_count,
                             .txns = (struct txn_id *)(void *)r->resolved.data};
    cmd_encode_resolved(&b, &c);
    buf_clear(&r->resolved);
    r->resolved_count = 0;
    (void)replica_propose(r, now, CMD_RESOLVED, buf_slice(&b));
    buf_deinit(&b);
}

/* Rules C3 and H8: watermark and version horizon are replicated values that the leader raises now
 * and then, only while there is other work, so that an idle range stays idle. */
static void maintain(struct replica *r, const struct tt_now *now)
{
    if (now->mono_ns < r->maintain_at_ns) {
        return;
    }
    if (!replica_may_serve(r, now)) {
        r->maintain_at_ns = now->mono_ns + SEC_NS;
        return;
    }
    r->maintain_at_ns = now->mono_ns + 10 * SEC_NS;
    replica_propose_resolved(r, now);
    if (!r->leading || raft_last_index(r->raft) == r->maintain_index) {
        return;
    }
    uint64_t earliest = now->tt.earliest.ns;
    uint64_t window = store_cfg(r->store)->version_window_ns;
    struct cmd_maintain c = {
        .watermark = tt_ts_of(earliest > TXN_AGE_NS_MAX ? earliest - TXN_AGE_NS_MAX : 0),
        .horizon = tt_ts_of(earliest > window ? earliest - window : 0)};
    struct buf b = {0};
    cmd_encode_maintain(&b, &c);
    if (replica_propose(r, now, CMD_MAINTAIN, buf_slice(&b))) {
        r->maintain_index = raft_last_index(r->raft);
    }
    buf_deinit(&b);
}

static void run_timers(struct replica *r, const struct tt_now *now)
{
    struct heap_node *n;
    while ((n = heap_min(&r->timers)) != NULL && n->key <= now->mono_ns) {
        struct rtxn *t = (struct rtxn *)(void *)((char *)n - offsetof(struct rtxn, timer));
        heap_remove(&r->timers, n);
        replica_rtxn_timer(r, now, t);
    }
}

void replica_tick(struct replica *r, const struct tt_now *now)
{
    replica_flush_resume(r, now);
    r->look_ns = 0;
    if (r->apply_wait_from != 0 && r->apply_retry_ns <= now->mono_ns && !r->broken) {
        uint64_t from = r->apply_wait_from;
        r->apply_wait_from = 0;
        apply_range(r, now, from, r->apply_wait_to);
    }
    if (now->mono_ns >= r->raft_deadline_ns) {
        struct raft_event ev = {.type = RAFT_EV_TICK};
        replica_raft(r, now, &ev);
    }
    if (r->lazy_until_ns != 0 && r->lazy_until_ns <= now->mono_ns) {
        store_mark_dirty(r->store, r);
    }
    replica_expire_parked(r, now);
    run_timers(r, now);
    expire_gone(r, now);
    replica_snapshot_tick(r, now);
    replica_split_tick(r, now);
    if (r->leading) {
        replica_split_step(r, now);
        replica_merge_step(r, now);
        replica_frozen_step(r, now);
        replica_member_step(r, now);
        if (r->leading && r->resolved_count >= 64) {
            replica_propose_resolved(r, now);
        }
        if (r->leading) {
            maintain(r, now);
        }
    }
    replica_maybe_flush(r, now);
}

/* When a split or a merge under way is looked at next. While a right side is built ahead, and in a
 * merge, that is not "so long after now": the range is busy, and each event would put it off. */
static uint64_t look_at_change_ns(struct replica *r, const struct tt_now *now)
{
    bool splits = r->serving && r->split_key.size > 0 && !r->split_proposed;
    if (!splits && r->merge_right == 0) {
        return UINT64_MAX;
    }
    bool soon = splits && !r->split_ahead;
    if (soon || r->look_ns == 0) {
        r->look_ns = now->mono_ns + SPLIT_LOOK_NS;
    }
    return r->look_ns;
}

void replica_schedule(struct replica *r, const struct tt_now *now)
{
    uint64_t at = r->raft_deadline_ns;
    if (r->lazy_until_ns != 0 && r->lazy_until_ns < at) {
        at = r->lazy_until_ns;
    }
    if (r->apply_wait_from != 0 && r->apply_retry_ns < at) {
        at = r->apply_retry_ns;
    }
    if (r->ahead_job != NULL && r->ahead_job_at_ns < at) {
        at = r->ahead_job_at_ns;
    }
    if (r->ahead_until_ns != 0 && r->ahead_until_ns < at) {
        at = r->ahead_until_ns;
    }
    struct heap_node *n = heap_min(&r->deadlines);
    if (n != NULL && n->key < at) {
        at = n->key;
    }
    n = heap_min(&r->timers);
    if (n != NULL && n->key < at) {
        at = n->key;
    }
    if (!list_is_empty(&r->gone)) {
        uint64_t g = LIST_ENTRY(r->gone.next, struct rgone, node)->until_ns;
        at = g < at ? g : at;
    }
    if (r->serving) {
        bool work = r->resolved_count > 0 || raft_last_index(r->raft) != r->maintain_index;
        if (work && r->maintain_at_ns < at) {
            at = r->maintain_at_ns;
        }
        if (r->frozen && r->frozen_ask_ns < at) {
            at = r->frozen_ask_ns;
        }
    }
    uint64_t look = look_at_change_ns(r, now);
    if (look < at) {
        at = look;
    }
    if (r->leading && replica_member_busy(r) && now->mono_ns + MEMBER_LOOK_NS < at) {
        at = now->mono_ns + MEMBER_LOOK_NS;
    }
    if ((r->sending != NULL || r->receiving != NULL) && now->mono_ns + 250 * MS_NS < at) {
        at = now->mono_ns + 250 * MS_NS;
    }
    if (r->rerun_lease || r->rerun_locks || r->rerun_flight) {
        at = now->mono_ns; /* settle stopped after many rounds */
    }
    if (r->flush_wanted && replica_may_flush(r)) {
        uint64_t f = r->flush_at_ns > now->mono_ns ? r->flush_at_ns : now->mono_ns;
        at = f < at ? f : at;
    }
    /* Never in the past: whatever is still due after a tick is looked at again soon, not at once.
     */
    if (at <= now->mono_ns) {
        at = now->mono_ns + MS_NS / 5;
    }
    store_wake_at(r->store, r, at);
}

static void look_for_damage(struct replica *r, const struct tt_now *now)
{
    if (r->engine != NULL && engine_is_damaged(r->engine)) {
        replica_damaged(r, engine_error(r->engine)->text);
    }
    if (r->broken) {
        replica_leader_stop(r, now); /* nobody is kept waiting for what can not be done */
    }
}

void replica_settle(struct replica *r, const struct tt_now *now)
{
    /* Each list runs once per call: what is parked again waits for the next change, so this ends.
     */
    look_for_damage(r, now);
    run_timers(r, now); /* a wounded coordinator's abort record */
    for (int round = 0; round < 64; round++) {
        if (r->leading && r->transfer_to == 0 && store_hands_over(r->store) &&
            !raft_has_released(r->raft)) {
            r->transfer_to = store_handover_target(r->store, now, r->raft);
        }
        if (r->leading && r->transfer_to != 0) {
            transfer_step(r, now);
        }
        bool open = raft_applied(r->raft) >= r->open_index || PLANTED(SERVES_TOO_EARLY);
        if (r->leading && !r->serving && open && !r->broken) {
            start_serving(r, now);
        }
        bool any = false;
        if (r->rerun_lease) {
            r->rerun_lease = false;
            any = true;
            replica_decide_ready(r, now);
            replica_rerun(r, now, &r->wait_lease);
        }
        if (r->rerun_locks) {
            r->rerun_locks = false;
            any = true;
            replica_wake_granted(r, now);
        }
        if (r->rerun_flight) {
            r->rerun_flight = false;
            any = true;
            replica_rerun(r, now, &r->wait_flight);
        }
        if (!any) {
            break;
        }
    }
    if (r->resolved_count >= 256) {
        replica_propose_resolved(r, now);
    }
    struct replica *left = r->merge_left != 0 ? store_replica(r->store, r->merge_left) : r;
    if (left != NULL && left->merge_right != 0) {
        replica_merge_step(left, now);
    }
    replica_maybe_flush(r, now);
    look_for_damage(r, now); /* a request that ran again may have met it */
    replica_schedule(r, now);
}

void replica_hurry(struct replica *r)
{
    if (r->lazy_until_ns != 0) {
        r->urgent = true;
        store_mark_dirty(r->store, r);
        store_persist_now(r->store);
    }
}

void replica_flush_raft(struct replica *r, const struct tt_now *now)
{
    if (r->lazy_until_ns > now->mono_ns && !r->urgent) {
        return; /* replica_schedule wakes it */
    }
    r->lazy_until_ns = 0;
    r->urgent = false;
    struct raft_update *up = store_update(r->store);
    raft_flush(r->raft, now, up);
    for (size_t i = 0; i < up->msg_count; i++) {
        send_raft(r, &up->msgs[i]);
    }
    r->raft_deadline_ns = up->deadline_mono_ns;
    uint32_t snapshot_to[LIMIT_REPLICAS];
    size_t snapshots = up->snapshot_count;
    memcpy(snapshot_to, up->snapshot_to, sizeof snapshot_to);
    for (size_t i = 0; i < snapshots; i++) {
        replica_snapshot_wanted(r, now, snapshot_to[i]);
    }
}
