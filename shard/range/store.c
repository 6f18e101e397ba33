/* The store: replicas by id and by key, routing of messages, turns, timers, recovery. Heartbeats
 * and balance: liveness.c. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "shard/range/store_impl.h"

#define UNFIT_PATIENCE_NS (3 * LEASE_RENEW_NS)

struct store *store_new(const struct store_config *cfg)
{
    struct store *s = SPAN_NEW(struct store);
    s->cfg = *cfg;
    s->balance = true;
    s->turn = 1;
    map64_init(&s->replicas);
    map64_init(&s->orphans);
    map64_init(&s->embryos);
    map64_init(&s->absorbed);
    heap_init(&s->wakes);
    list_init(&s->dirty);
    list_init(&s->touched);
    raft_update_init(&s->update);
    return s;
}

static void orphan_free(struct orphan *o)
{
    for (size_t i = 0; i < o->entry_count; i++) {
        raft_blob_unref(o->entries[i].payload);
    }
    span_free(o->entries);
    span_free(o);
}

void store_free(struct store *s)
{
    if (s == NULL) {
        return;
    }
    size_t pos = 0;
    struct replica *r;
    heap_deinit(&s->wakes);
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        replica_free(r);
    }
    pos = 0;
    while ((r = map64_next(&s->embryos, &pos, NULL)) != NULL) {
        replica_free(r);
    }
    pos = 0;
    while ((r = map64_next(&s->absorbed, &pos, NULL)) != NULL) {
        replica_free(r);
    }
    map64_deinit(&s->absorbed);
    pos = 0;
    struct orphan *o;
    while ((o = map64_next(&s->orphans, &pos, NULL)) != NULL) {
        orphan_free(o);
    }
    map64_deinit(&s->replicas);
    map64_deinit(&s->orphans);
    map64_deinit(&s->embryos);
    raft_update_deinit(&s->update);
    arena_deinit(&s->request_arena);
    arena_deinit(&s->apply_arena);
    arena_deinit(&s->message_arena);
    buf_deinit(&s->scratch);
    buf_deinit(&s->row_bytes);
    buf_deinit(&s->local);
    buf_deinit(&s->local_running);
    for (size_t i = 0; i < s->removal_count; i++) {
        span_free(s->removals[i].dir);
    }
    span_free(s->removals);
    span_free(s->pending);
    span_free(s->by_key);
    span_free(s->descriptors);
    span_free(s);
}

/* ---- services for replicas ---- */

const struct store_config *store_cfg(const struct store *s)
{
    return &s->cfg;
}

const struct tt_now *store_now(const struct store *s)
{
    return s->now;
}

struct arena *store_request_arena(struct store *s)
{
    return &s->request_arena;
}

struct arena *store_apply_arena(struct store *s)
{
    return &s->apply_arena;
}

struct raft_update *store_update(struct store *s)
{
    return &s->update;
}

struct buf *store_scratch(struct store *s)
{
    buf_clear(&s->scratch);
    return &s->scratch;
}

struct buf *store_row_bytes(struct store *s)
{
    buf_clear(&s->row_bytes);
    return &s->row_bytes;
}

struct buf *store_local(struct store *s)
{
    return &s->local;
}

struct buf *store_out(struct store *s, node_id to, enum store_class cls)
{
    if (to == s->cfg.self) {
        return &s->local;
    }
    return s->cfg.io.send(s->cfg.io.ctx, to, cls);
}

node_id store_route(const struct store *s, struct slice anchor, node_id hint, unsigned tries)
{
    const struct replica *r = store_replica_at(s, anchor);
    if (r != NULL && !r->broken) {
        node_id leader = r->leading ? s->cfg.self : raft_leader(r->raft);
        if (leader != 0 && (leader != s->cfg.self || r->leading)) {
            return leader;
        }
    }
    if (hint != 0 && tries % 2 == 0) {
        return hint;
    }
    return s->cfg.nodes[tries / 2 % s->cfg.node_count];
}

struct replica *store_replica(const struct store *s, range_id id)
{
    return map64_get(&s->replicas, id);
}

struct replica *store_replica_at(const struct store *s, struct slice key)
{
    size_t lo = 0;
    size_t hi = s->by_key_count;
    while (lo < hi) { /* first whose start is above the key */
        size_t mid = (lo + hi) / 2;
        if (slice_cmp(buf_slice(&s->by_key[mid]->start), key) <= 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (lo == 0) {
        return NULL;
    }
    struct replica *r = s->by_key[lo - 1];
    return replica_covers(r, key) ? r : NULL;
}

void store_add_replica(struct store *s, struct replica *r)
{
    void *old = map64_put(&s->replicas, r->id, r);
    INVARIANT(old == NULL);
    s->by_key = span_realloc(s->by_key, (s->by_key_count + 1) * sizeof *s->by_key);
    size_t at = s->by_key_count++;
    while (at > 0 && slice_cmp(buf_slice(&s->by_key[at - 1]->start), buf_slice(&r->start)) > 0) {
        s->by_key[at] = s->by_key[at - 1];
        at--;
    }
    s->by_key[at] = r;
    store_descriptors_changed(s);
}

void store_descriptors_changed(struct store *s)
{
    s->descriptors_version++;
}

uint64_t store_descriptors_version(const struct store *s)
{
    return s->descriptors_version;
}

size_t store_descriptors_of(struct store *s, struct range_descriptor **out)
{
    s->descriptors = span_realloc(s->descriptors, (s->by_key_count + 1) * sizeof *s->descriptors);
    for (size_t i = 0; i < s->by_key_count; i++) {
        replica_descriptor(s->by_key[i], &s->descriptors[i]);
    }
    *out = s->descriptors;
    return s->by_key_count;
}

size_t store_descriptors(const struct store *s, struct arena *a, struct range_descriptor **out)
{
    *out = arena_alloc(a, (s->by_key_count + 1) * sizeof **out);
    for (size_t i = 0; i < s->by_key_count; i++) {
        replica_descriptor(s->by_key[i], &(*out)[i]);
    }
    return s->by_key_count;
}

void store_mark_dirty(struct store *s, struct replica *r)
{
    if (list_is_empty(&r->dirty)) {
        list_push_back(&s->dirty, &r->dirty);
    }
    store_touch(s, r);
}

void store_touch(struct store *s, struct replica *r)
{
    if (list_is_empty(&r->touched)) {
        list_push_back(&s->touched, &r->touched);
    }
}

void store_wake_at(struct store *s, struct replica *r, uint64_t mono_ns)
{
    if (mono_ns == UINT64_MAX) {
        heap_remove(&s->wakes, &r->wake);
    } else if (!heap_node_in(&r->wake) || r->wake.key != mono_ns) {
        heap_insert(&s->wakes, &r->wake, mono_ns);
    }
}

void store_note_persist(struct store *s, struct replica *r, uint64_t persist_seq, bool lazy)
{
    if (s->pending_count == s->pending_cap) {
        s->pending_cap = s->pending_cap == 0 ? 64 : s->pending_cap * 2;
        s->pending = span_realloc(s->pending, s->pending_cap * sizeof *s->pending);
    }
    s->pending[s->pending_count++] = (struct pending_persist){s->turn, r->id, persist_seq};
    if (!lazy) {
        s->turn_persists = true;
    } else if (s->lazy_until_ns == 0) {
        s->lazy_until_ns = s->now->mono_ns + STORE_LAZY_NS;
    }
}

void store_persist_now(struct store *s)
{
    s->turn_persists = s->turn_persists || s->lazy_until_ns != 0;
}

void store_note_birth(struct store *s, struct replica *left)
{
    left->births++;
    store_note_persist(s, left, 0, false);
}

static void remove_later(struct store *s, const struct engine_options *files, bool aside)
{
    s->removals = span_realloc(s->removals, (s->removal_count + 1) * sizeof *s->removals);
    s->removals[s->removal_count++] = (struct pending_removal){
        s->turn, span_strdup(files->dir), files->range_id, files->generation, aside};
    s->turn_persists = true;
}

void store_remove_after_persist(struct store *s, struct replica *r,
                                const struct engine_options *files)
{
    (void)r;
    remove_later(s, files, false);
}

void store_aside_after_persist(struct store *s, const struct engine_options *files)
{
    remove_later(s, files, true);
}

void store_born(struct store *s, struct replica *r)
{
    s->wants_tick = true;
    store_mark_dirty(s, r);
    r->raft_deadline_ns = 0;
    r->heard_ns = s->now->mono_ns;
}

/* ---- messages ---- */

/* It is in no map and no list any more. */
static void take_out(struct store *s, struct replica *r)
{
    for (size_t i = 0; i < s->pending_count; i++) {
        if (s->pending[i].range == r->id) {
            s->pending[i].range = 0; /* of this life: a later one counts anew */
        }
    }
    (void)map64_remove(&s->replicas, r->id);
    size_t at = 0;
    while (s->by_key[at] != r) {
        at++;
    }
    memmove(&s->by_key[at], &s->by_key[at + 1], (s->by_key_count - at - 1) * sizeof *s->by_key);
    s->by_key_count--;
    heap_remove(&s->wakes, &r->wake);
    list_remove(&r->dirty);
    list_remove(&r->touched);
    store_descriptors_changed(s);
}

/* Its files go once the log says so. What it voted is kept for ever, with the fact that it was here
 * (rules F1, F2). */
static void forget_replica(struct store *s, struct replica *r)
{
    store_orphan_leave(s, r);
    struct engine_options files = {
        .dir = s->cfg.dir, .range_id = r->id, .generation = r->file_generation, .vfs = s->cfg.vfs};
    store_remove_after_persist(s, r, &files);
    replica_free(r);
}

/* The replica is no member any more. */
static void remove_replica(struct store *s, struct replica *r)
{
    SPAN_LOG(INFO, "replica removed: it is no member of its range any more", "range=%llu",
             (unsigned long long)r->id);
    replica_retire(r);
    take_out(s, r);
    forget_replica(s, r);
}

void store_leaves(struct store *s)
{
    s->leaving++;
}

void store_leave(struct store *s, struct replica *r)
{
    if (!r->out && !r->damaged) {
        r->out = true;
        s->leaving++;
    }
}

void store_absorb(struct store *s, const struct tt_now *now, struct replica *r,
                  const struct replica *left, uint64_t index)
{
    if (r->out || r->damaged) {
        r->out = false;
        r->damaged = false;
        s->leaving--;
    }
    r->absorbed_by = left->id;
    r->absorbed_at = index;
    take_out(s, r);
    replica_leader_stop(r, now);
    replica_retire(r);
    replica_snapshot_stop(r);
    list_remove(&r->touched);
    size_t pos = 0;
    struct replica *other;
    while ((other = map64_next(&s->absorbed, &pos, NULL)) != NULL) {
        if (other->absorbed_by == r->id) { /* what it took in itself */
            other->absorbed_by = left->id;
            other->absorbed_at = index;
        }
    }
    map64_put(&s->absorbed, r->id, r);
}

/* Those whose rows are durable where they were taken in, or that nobody here needs. */
static void drop_absorbed(struct store *s)
{
    for (;;) {
        size_t pos = 0;
        struct replica *r;
        while ((r = map64_next(&s->absorbed, &pos, NULL)) != NULL) {
            const struct replica *left = store_replica(s, r->absorbed_by);
            bool safe = left == NULL || engine_applied_durable(left->engine) >= r->absorbed_at;
            if (safe && !r->flushing) {
                break;
            }
        }
        if (r == NULL) {
            return;
        }
        (void)map64_remove(&s->absorbed, r->id);
        forget_replica(s, r);
    }
}

/* Flushes under way go on after a merge. */
static struct replica *flushed_replica(const struct store *s, range_id id)
{
    struct replica *r = store_replica(s, id);
    return r != NULL ? r : map64_get(&s->absorbed, id);
}

static void remove_leaving(struct store *s, const struct tt_now *now)
{
    for (size_t i = s->by_key_count; s->leaving > 0 && i-- > 0;) {
        struct replica *r = s->by_key[i];
        if (r->flushing || !(r->out || r->damaged)) {
            continue;
        }
        s->leaving--;
        if (r->out) {
            remove_replica(s, r);
        } else {
            store_throw_away(s, now, r);
            take_out(s, r);
            replica_free(r);
        }
    }
}

/* A settled replica may touch others (a split makes one): until none is left. */
static void settle(struct store *s, const struct tt_now *now)
{
    while (!list_is_empty(&s->touched)) {
        struct replica *r = LIST_ENTRY(s->touched.next, struct replica, touched);
        list_remove(&r->touched);
        if (tt_is_none(r->stand_release)) {
            replica_settle(r, now);
            continue;
        }
        struct raft_event ev = {.type = RAFT_EV_TICK};
        replica_raft(r, now, &ev);
        ev = (struct raft_event){.type = RAFT_EV_CAMPAIGN, .u.campaign.release = r->stand_release};
        r->stand_release = tt_ts_of(0);
        replica_raft(r, now, &ev);
        replica_settle(r, now);
    }
    if (s->leaving > 0) {
        remove_leaving(s, now);
    }
    if (s->absorbed.count > 0) {
        drop_absorbed(s);
    }
}

static void bad_message(struct store *s, node_id from, uint8_t kind)
{
    s->bad_messages++;
    SPAN_LOG(WARN, "dropped a malformed message", "from=%u kind=%u", from, kind);
}

static void refuse_unknown_range(struct store *s, const struct range_request *q)
{
    struct range_descriptor *all;
    struct range_response resp = {.request_id = q->request_id,
                                  .op = q->op,
                                  .status = SPAN_STALE_DESCRIPTOR,
                                  .range = q->range};
    resp.descriptor_count = store_descriptors_of(s, &all);
    resp.descriptors = all;
    msg_encode_response(store_out(s, q->gateway, STORE_CONTROL), &resp);
}

static void on_request(struct store *s, const struct tt_now *now, node_id from, struct slice body)
{
    struct range_request q;
    arena_clear(&s->request_arena);
    if (msg_decode_request(body, &s->request_arena, &q) != SPAN_OK || q.gateway != from) {
        bad_message(s, from, MSG_REQUEST);
        return;
    }
    struct replica *r = store_replica(s, q.range);
    if (r == NULL) {
        refuse_unknown_range(s, &q);
        return;
    }
    store_touch(s, r);
    replica_request(r, now, body, &q);
}

static void on_raft(struct store *s, const struct tt_now *now, node_id from, struct slice body)
{
    range_id id;
    struct slice bytes;
    struct raft_msg m;
    if (msg_decode_range_bytes(body, &id, &bytes) != SPAN_OK) {
        bad_message(s, from, MSG_RAFT);
        return;
    }
    struct replica *r = store_replica(s, id);
    if (r == NULL) {
        return; /* rule F1: a replica is never born by a message */
    }
    if (raft_msg_decode(bytes, &m) != SPAN_OK) {
        bad_message(s, from, MSG_RAFT);
    } else {
        struct raft_event ev = {.type = RAFT_EV_MESSAGE, .from = from, .u.msg = &m};
        if (m.type == RAFT_MSG_APPEND) {
            replica_heard(r, now);
        }
        replica_raft(r, now, &ev);
    }
    raft_msg_deinit(&m);
}

/* Messages of 2PC go to whoever leads the range of the key; a node that does not passes them on. */
struct replica *store_leader_of(struct store *s, struct slice key, uint8_t *hops, node_id *forward)
{
    struct replica *r = store_replica_at(s, key);
    *forward = 0;
    if (r == NULL || r->broken) {
        return NULL;
    }
    if (r->leading) {
        return r->serving ? r : NULL;
    }
    node_id leader = raft_leader(r->raft);
    if (*hops < 2 && leader != 0 && leader != s->cfg.self) {
        (*hops)++;
        *forward = leader;
    }
    return NULL;
}

static void on_2pc(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                   struct slice body)
{
    struct txn_vote vote;
    struct txn_outcome outcome;
    struct txn_outcome_ack ack;
    struct txn_query query;
    span_status st = SPAN_PROTOCOL;
    struct slice anchor = {0};
    uint8_t *hops = NULL;
    switch (kind) {
    case MSG_VOTE:
        st = msg_decode_vote(body, &vote);
        anchor = vote.coordinator;
        hops = &vote.hops;
        break;
    case MSG_OUTCOME:
        st = msg_decode_outcome(body, &outcome);
        anchor = outcome.participant;
        hops = &outcome.hops;
        break;
    case MSG_OUTCOME_ACK:
        st = msg_decode_outcome_ack(body, &ack);
        anchor = ack.coordinator;
        hops = &ack.hops;
        break;
    default:
        st = msg_decode_query(body, &query);
        anchor = query.coordinator;
        hops = &query.hops;
        break;
    }
    if (st != SPAN_OK) {
        bad_message(s, from, kind);
        return;
    }
    node_id forward;
    struct replica *r = store_leader_of(s, anchor, hops, &forward);
    if (r != NULL && replica_is_sealed(r)) {
        return; /* sent again, to whoever has the anchor then */
    }
    if (r == NULL) {
        if (forward != 0) {
            struct buf *out = store_out(s, forward, STORE_CONTROL);
            if (kind == MSG_VOTE) {
                msg_encode_vote(out, &vote);
            } else if (kind == MSG_OUTCOME) {
                msg_encode_outcome(out, &outcome);
            } else if (kind == MSG_OUTCOME_ACK) {
                msg_encode_outcome_ack(out, &ack);
            } else {
                msg_encode_query(out, kind, &query);
            }
        }
        return;
    }
    store_touch(s, r);
    if (kind == MSG_VOTE) {
        replica_on_vote(r, now, &vote);
    } else if (kind == MSG_OUTCOME) {
        replica_on_outcome(r, now, &outcome);
    } else if (kind == MSG_OUTCOME_ACK) {
        replica_on_outcome_ack(r, now, &ack);
    } else if (kind == MSG_TXN_QUERY) {
        replica_on_query(r, now, &query);
    } else {
        replica_on_wound(r, now, &query);
    }
}

static void on_keepalive(struct store *s, const struct tt_now *now, node_id from, struct slice body)
{
    struct keepalive k;
    arena_clear(&s->message_arena);
    if (msg_decode_keepalive(body, &s->message_arena, &k) != SPAN_OK) {
        bad_message(s, from, MSG_KEEPALIVE);
        return;
    }
    size_t pos = 0;
    struct replica *r;
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        if (!r->leading) {
            continue;
        }
        for (size_t i = 0; i < k.count; i++) {
            struct rtxn *t = rtxn_find(r, &k.txns[i]);
            if (t != NULL && t->incarnation == k.incarnation) {
                t->heard_ns = now->mono_ns;
            }
        }
    }
}

void store_embryo_drop(struct store *s, range_id id)
{
    replica_free(map64_remove(&s->embryos, id)); /* its unfinished file goes with it */
}

bool store_embryo_known(const struct store *s, range_id id)
{
    return map64_get(&s->embryos, id) != NULL;
}

void store_embryo_born(struct store *s, struct replica *r)
{
    void *was = map64_remove(&s->embryos, r->id);
    INVARIANT(was == r);
    store_add_replica(s, r);
    store_born(s, r);
}

bool store_files_are_going(const struct store *s, range_id id)
{
    for (size_t i = 0; i < s->removal_count; i++) {
        if (s->removals[i].range == id) {
            return true;
        }
    }
    return false;
}

/* A replica here builds the file that this range's would be, for a split it has not applied. */
static bool split_builds(const struct store *s, range_id id)
{
    for (size_t i = 0; i < s->by_key_count; i++) {
        if (replica_split_in_the_way(s->by_key[i], id)) {
            return true;
        }
    }
    return false;
}

bool store_is_merged(const struct store *s, range_id id)
{
    bool merged = map64_get(&s->absorbed, id) != NULL;
    for (size_t i = 0; i < s->by_key_count && !merged; i++) {
        merged = replica_has_merged(s->by_key[i], id);
    }
    return merged;
}

bool store_knows_range(const struct store *s, range_id id)
{
    return store_replica(s, id) != NULL || map64_get(&s->orphans, id) != NULL ||
           store_is_merged(s, id);
}

/* Rule F1: a replica is born by a split entry or a snapshot; by the second where the split's entry
 * was never seen. */
static void on_embryo_snapshot(struct store *s, const struct tt_now *now, node_id from, range_id id,
                               struct slice bytes)
{
    struct replica *r = map64_get(&s->embryos, id);
    if (r == NULL) {
        if (s->by_key_count + s->embryos.count >= LIMIT_RANGES || store_files_are_going(s, id) ||
            split_builds(s, id) || store_is_merged(s, id)) {
            return;
        }
        r = replica_new(s, id);
        r->file_generation = store_orphan_generation(s, id);
        map64_put(&s->embryos, id, r);
    }
    replica_on_snapshot(r, now, from, bytes);
    if (map64_get(&s->embryos, id) == r && !replica_is_receiving(r)) {
        store_embryo_drop(s, id);
    }
}

/* Rule H10. A node whose disk is too slow hands over and does not stand, but only while there is
 * somebody better: when one slow disk is under all of them, leading slowly beats nobody leading.
 * Others' heartbeats get the time to say that they are slow, too. */
static void review_handover(struct store *s, const struct tt_now *now)
{
    bool unfit = s->unfit && s->unfit_since_ns + UNFIT_PATIENCE_NS <= now->mono_ns &&
                 store_other_is_fit(s, now);
    bool asked = !store_node_is_active(s, s->cfg.self) && store_other_is_fit(s, now);
    bool hands_over = s->draining || unfit || asked;
    if (hands_over == s->hands_over) {
        return;
    }
    s->hands_over = hands_over;
    size_t pos = 0;
    struct replica *r;
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        struct raft_event ev = {.type = RAFT_EV_TICK}; /* its deadline depends on it */
        raft_set_may_lead(r->raft, !hands_over);
        replica_raft(r, now, &ev);
        store_touch(s, r);
    }
}

/* Streams that ended without a word. */
static void expire_embryos(struct store *s, const struct tt_now *now)
{
    size_t pos = 0;
    struct replica *r;
    while ((r = map64_next(&s->embryos, &pos, NULL)) != NULL) {
        replica_snapshot_tick(r, now);
        if (!replica_is_receiving(r)) {
            store_embryo_drop(s, r->id);
        }
    }
}

static void on_snapshot(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                        struct slice body)
{
    range_id id;
    struct slice bytes;
    if (msg_decode_range_bytes(body, &id, &bytes) != SPAN_OK) {
        bad_message(s, from, kind);
        return;
    }
    struct replica *r = store_replica(s, id);
    if (r == NULL && kind == MSG_SNAPSHOT) {
        on_embryo_snapshot(s, now, from, id, bytes);
        return;
    }
    if (r == NULL || r->broken) {
        return;
    }
    store_touch(s, r);
    if (kind == MSG_SNAPSHOT) {
        replica_on_snapshot(r, now, from, bytes);
    } else {
        replica_on_snapshot_ack(r, now, from, bytes);
    }
}

static void on_probe(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                     struct slice body)
{
    range_id id;
    struct slice bytes;
    span_status st = msg_decode_range_bytes(body, &id, &bytes);
    struct cursor c = cursor_of(bytes);
    uint64_t number = st == SPAN_OK ? dec_u64(&c) : 0;
    if (st != SPAN_OK || !cursor_done(&c) || number == 0) {
        bad_message(s, from, kind);
        return;
    }
    struct replica *r = store_replica(s, id);
    if (kind == MSG_PROBE) {
        for (size_t i = 0; i < s->by_key_count && r == NULL; i++) {
            /* Of a range that became a part of another: that one's members take it in. */
            r = replica_has_merged(s->by_key[i], id) ? s->by_key[i] : NULL;
        }
        if (r != NULL) {
            replica_on_probe(r, now, from, id, number);
        }
        return;
    }
    if (r == NULL) {
        if (kind == MSG_GONE) {
            store_rebuild_gone(s, id, number);
        }
        return;
    }
    if (kind == MSG_REBUILD) {
        replica_on_rebuild(r, now, from, number);
    } else if (r->probe == number && !r->leading) {
        store_leave(s, r);
    }
}

static void dispatch(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                     struct slice body)
{
    switch ((enum msg_kind)kind) {
    case MSG_RAFT:
        on_raft(s, now, from, body);
        break;
    case MSG_HEARTBEAT:
        store_on_heartbeat(s, now, from, body);
        break;
    case MSG_HEARTBEAT_ACK:
        store_on_heartbeat_ack(s, now, from, body);
        break;
    case MSG_SNAPSHOT:
    case MSG_SNAPSHOT_ACK:
        on_snapshot(s, now, from, kind, body);
        break;
    case MSG_REQUEST:
        on_request(s, now, from, body);
        break;
    case MSG_KEEPALIVE:
        on_keepalive(s, now, from, body);
        break;
    case MSG_VOTE:
    case MSG_OUTCOME:
    case MSG_OUTCOME_ACK:
    case MSG_TXN_QUERY:
    case MSG_WOUND:
        on_2pc(s, now, from, kind, body);
        break;
    case MSG_PROBE:
    case MSG_GONE:
    case MSG_REBUILD:
        on_probe(s, now, from, kind, body);
        break;
    case MSG_MERGE:
        store_on_merge(s, now, from, body);
        break;
    case MSG_RESPONSE:
    case MSG_WOUNDED:
    case MSG_NODE_REQUEST:
    case MSG_NODE_RESPONSE:
        s->cfg.io.to_gateway(s->cfg.io.ctx, now, from, kind, body);
        break;
    default:
        bad_message(s, from, kind);
        break;
    }
}

void store_message(struct store *s, const struct tt_now *now, node_id from, uint8_t kind,
                   struct slice body)
{
    s->now = now;
    dispatch(s, now, from, kind, body);
    settle(s, now);
}

static void run_local(struct store *s, const struct tt_now *now)
{
    while (s->local.size > 0) {
        buf_clear(&s->local_running);
        struct buf swap = s->local_running;
        s->local_running = s->local;
        s->local = swap;
        size_t at = 0;
        uint8_t kind;
        struct slice body;
        while (msg_next(buf_slice(&s->local_running), &at, &kind, &body) == SPAN_OK) {
            dispatch(s, now, s->cfg.self, kind, body);
            settle(s, now);
        }
    }
}

/* ---- turns ---- */

void store_persisted(struct store *s, const struct tt_now *now, uint64_t turn)
{
    s->now = now;
    size_t n = 0;
    /* New records may be added while these are handled: always by index, never by pointer. */
    while (n < s->pending_count && s->pending[n].turn <= turn) {
        struct pending_persist p = s->pending[n++];
        struct replica *r = store_replica(s, p.range);
        if (r != NULL && p.seq == 0) {
            r->births--;
            store_touch(s, r);
        } else if (r != NULL) {
            struct raft_event ev = {.type = RAFT_EV_PERSISTED, .u.persist_seq = p.seq};
            replica_raft(r, now, &ev);
        }
    }
    if (n > 0) {
        memmove(s->pending, s->pending + n, (s->pending_count - n) * sizeof *s->pending);
    }
    s->pending_count -= n;
    size_t kept = 0;
    for (size_t i = 0; i < s->removal_count; i++) {
        struct pending_removal *p = &s->removals[i];
        if (p->turn > turn) {
            s->removals[kept++] = *p;
            continue;
        }
        struct engine_options opt = {
            .dir = p->dir, .range_id = p->range, .generation = p->generation, .vfs = s->cfg.vfs};
        struct span_error err = {0};
        span_status st = p->aside ? engine_set_aside(&opt, &err) : engine_remove_files(&opt, &err);
        if (st != SPAN_OK) {
            SPAN_LOG(WARN, "old file can not be removed", "error=\"%s\"", err.text);
        }
        span_free(p->dir);
    }
    s->removal_count = kept;
    settle(s, now);
}

static void flush_raft(struct store *s, const struct tt_now *now)
{
    while (!list_is_empty(&s->dirty)) {
        struct replica *r = LIST_ENTRY(s->dirty.next, struct replica, dirty);
        list_remove(&r->dirty);
        if (!r->broken) {
            replica_flush_raft(r, now);
        }
        replica_schedule(r, now);
    }
}

uint64_t store_turn_end(struct store *s, const struct tt_now *now)
{
    s->now = now;
    run_local(s, now);
    flush_raft(s, now);
    bool lazy_due = s->lazy_until_ns != 0 && s->lazy_until_ns <= now->mono_ns;
    if (!s->turn_persists && !lazy_due) {
        return 0;
    }
    s->turn_persists = false;
    s->lazy_until_ns = 0;
    return s->turn++;
}

void store_tick(struct store *s, const struct tt_now *now)
{
    s->now = now;
    s->wants_tick = false;
    struct heap_node *n;
    while ((n = heap_min(&s->wakes)) != NULL && n->key <= now->mono_ns) {
        struct replica *r = (struct replica *)(void *)((char *)n - offsetof(struct replica, wake));
        heap_remove(&s->wakes, n);
        replica_tick(r, now);
        store_touch(s, r);
        settle(s, now);
    }
    store_heartbeats(s, now);
    review_handover(s, now);
    store_balance(s, now);
    store_placement(s, now);
    store_probes(s, now);
    store_rebuild_probes(s, now);
    store_autosplit(s, now);
    expire_embryos(s, now);
    settle(s, now);
}

uint64_t store_deadline_ns(const struct store *s)
{
    if (s->wants_tick) {
        return 0;
    }
    uint64_t at = s->heartbeat_at_ns;
    if (s->lazy_until_ns != 0 && s->lazy_until_ns < at) {
        at = s->lazy_until_ns;
    }
    const struct heap_node *n = heap_min(&s->wakes);
    if (n != NULL && n->key < at) {
        at = n->key;
    }
    return at;
}

void store_flush_done(struct store *s, const struct tt_now *now, range_id range,
                      struct engine_job *job)
{
    s->now = now;
    struct replica *r = flushed_replica(s, range);
    INVARIANT(r != NULL);
    replica_flush_done(r, now, job);
    if (r->absorbed_by == 0) {
        store_touch(s, r);
    }
    settle(s, now);
}

void store_flush_abandon(struct store *s, range_id range, struct engine_job *job)
{
    struct replica *r = flushed_replica(s, range);
    struct engine_flush_result res;
    while (r != NULL && job != NULL) {
        job = engine_flush_done(r->engine, job, &res);
    }
}

void store_peer_lost(struct store *s, const struct tt_now *now, node_id peer)
{
    s->now = now;
    size_t pos = 0;
    struct replica *r;
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        struct raft_event ev = {.type = RAFT_EV_PEER_LOST, .from = peer};
        replica_raft(r, now, &ev);
        if (r->leading) {
            replica_gateway_lost(r, now, peer);
        }
    }
    settle(s, now);
}

/* ---- settings ---- */

void store_set_lease(struct store *s, uint64_t lease_ns)
{
    s->cfg.lease_ns = lease_ns;
    size_t pos = 0;
    struct replica *r;
    while ((r = map64_next(&s->replicas, &pos, NULL)) != NULL) {
        raft_set_lease_ns(r->raft, lease_ns);
    }
}

void store_set_balance(struct store *s, bool on)
{
    s->balance = on;
}

bool store_hands_over(const struct store *s)
{
    return s->hands_over;
}

void store_drain(struct store *s, const struct tt_now *now)
{
    s->now = now;
    s->balance = false;
    s->draining = true;
    review_handover(s, now);
    settle(s, now);
}

void store_set_unfit(struct store *s, const struct tt_now *now, bool unfit)
{
    if (s->unfit != unfit) {
        s->now = now;
        s->unfit = unfit;
        s->unfit_since_ns = now->mono_ns;
        review_handover(s, now);
        settle(s, now);
    }
}

size_t store_broken_count(const struct store *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->by_key_count; i++) {
        n += s->by_key[i]->broken ? 1 : 0;
    }
    return n;
}

size_t store_leader_count(const struct store *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->by_key_count; i++) {
        n += s->by_key[i]->leading ? 1 : 0;
    }
    return n;
}

bool store_is_ready(const struct store *s)
{
    const struct replica *r = store_replica(s, 1);
    if (r == NULL) { /* elsewhere: there is somebody to ask */
        return s->now != NULL && store_other_is_fit(s, s->now);
    }
    return !r->broken && raft_leader(r->raft) != 0;
}

size_t store_range_count(const struct store *s)
{
    return s->by_key_count;
}

void store_want_flush(struct store *s, const struct tt_now *now, range_id range)
{
    s->now = now;
    const struct replica *gone = map64_get(&s->absorbed, range);
    range = gone != NULL ? gone->absorbed_by : range;
    for (size_t i = 0; i < s->by_key_count; i++) {
        if (range == 0 || s->by_key[i]->id == range) {
            s->by_key[i]->flush_wanted = true;
            store_touch(s, s->by_key[i]);
        }
    }
    settle(s, now);
}
