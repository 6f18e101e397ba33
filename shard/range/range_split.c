/* Splitting a range at a key: [start, end) becomes [start, key) under the old id and [key, end)
 * under a new one.
 *
 *   every replica of a large range, ahead of it:  OP_SPLIT -> CMD_SPLIT_AHEAD -> applied -> the
 * flusher builds the right side's file (engine_split_ahead) while the range goes on; heartbeats'
 * answers tell the leader who is ready, and when all are that can be heard, it goes on. A hint and
 * nothing more: a replica that has no file when the split is committed has it built then and
 * applies nothing meanwhile.
 *
 *   leader:  OP_SPLIT -> new records are held back -> when none is in flight (rule C2): locks that
 * reach the right side go (F5), no timestamp is given out any more -> CMD_SPLIT proposed with the
 * floor -> applied -> both sides serve every replica, when it applies CMD_SPLIT: the right side's
 * file is made from the left's (engine_split, synced), with the right side's replicated state; the
 * right side's Raft starts with an empty log, the left's promise and term 1; the left's descriptor
 * shrinks. Replayed after a crash, a complete right file and its hard state are kept (rule F1).
 *
 * Between proposing and applying the leader gives out no timestamp, so its floor in the command
 * bounds everything read or written on the right before; the node that led the left stands for the
 * right at once by a release of that floor. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

#define SPLIT_PATIENCE_NS (2 * SEC_NS)
#define SPLIT_NOW_BYTES   (256 * KIB)   /* of a range whose split copies while it is applied */
#define AHEAD_PATIENCE_NS (20 * SEC_NS) /* for the own file */
#define AHEAD_OTHERS_NS   (5 * SEC_NS)  /* for those of the other members, from then on */
#define AHEAD_KEEP_NS     (30 * SEC_NS) /* a file that no split came for */
#define AHEAD_MEMORY      (64 * MIB)    /* not flushed because of it */

static void answer_split(struct replica *r, span_status st, const char *text)
{
    struct arena a = {0};
    struct range_request q;
    if (r->split_request.size > 0 &&
        msg_decode_request(buf_slice(&r->split_request), &a, &q) == SPAN_OK) {
        if (st == SPAN_OK) {
            struct range_descriptor *all;
            struct range_response resp = {.status = SPAN_OK};
            resp.descriptor_count = store_descriptors_of(r->store, &all);
            resp.descriptors = all;
            replica_respond(r, &q, &resp);
        } else {
            replica_refuse(r, &q, st, text);
        }
    }
    arena_deinit(&a);
    buf_clear(&r->split_key);
    buf_clear(&r->split_request);
    r->split_proposed = false;
    r->split_ahead = false;
    r->rerun_lease = true; /* what was held back */
}

/* May be the first key of a right side. Local keys (0x00...) belong to every range and can not. */
static bool is_inner_key(const struct replica *r, struct slice key)
{
    return key.size > 0 && key.data[0] != 0 && slice_cmp(key, buf_slice(&r->start)) > 0 &&
           replica_covers(r, key);
}

void replica_split_cancel(struct replica *r)
{
    if (r->split_key.size > 0) {
        answer_split(r, r->split_proposed ? SPAN_UNAVAILABLE : SPAN_NOT_LEADER,
                     "leadership was lost during the split; look whether it happened");
    }
}

/* Copying the right side takes long enough to be done ahead. */
static bool is_large(const struct replica *r)
{
    uint64_t most = store_cfg(r->store)->split_now_bytes;
    bool trimming = false;
    if (most == UINT64_MAX) {
        return false;
    }
    uint64_t bytes = engine_file_bytes(r->engine, &trimming) + engine_memory_bytes(r->engine);
    return bytes > (most != 0 ? most : SPLIT_NOW_BYTES);
}

void replica_op_split(struct replica *r, const struct tt_now *now, struct slice body,
                      const struct range_request *q)
{
    if (q->span_count != 1 || q->new_range == 0 || q->spans[0].span.start.size == 0) {
        replica_refuse(r, q, SPAN_INVALID, "a split needs a key and the new range's id");
        return;
    }
    struct slice key = q->spans[0].span.start;
    if (!is_inner_key(r, key) && !slice_eq(key, buf_slice(&r->start))) {
        replica_refuse(r, q, SPAN_INVALID, "the key lies outside the range");
        return;
    }
    if (slice_eq(key, buf_slice(&r->start))) {
        struct range_response resp = {.status = SPAN_OK}; /* a boundary already */
        replica_respond(r, q, &resp);
        return;
    }
    if (replica_is_changing(r) || r->transfer_to != 0) {
        replica_refuse(r, q, SPAN_OVERLOADED,
                       "the range is being split, merged or handed over; try again");
        return;
    }
    if (replica_member_busy(r)) {
        replica_refuse(r, q, SPAN_OVERLOADED, "the range's members are being changed; try again");
        return;
    }
    if (store_knows_range(r->store, q->new_range)) { /* also that of a split that a merge undid */
        replica_refuse(r, q, SPAN_EXISTS, "the new range's id is in use");
        return;
    }
    buf_set(&r->split_key, key);
    buf_set(&r->split_request, body);
    r->split_proposed = false;
    r->split_ahead = is_large(r);
    r->split_announced = false;
    r->split_tell = r->split_ahead;
    r->split_ready_ns = 0;
    r->split_ready_count = 0;
    r->split_deadline_ns = now->mono_ns + (r->split_ahead ? AHEAD_PATIENCE_NS : SPLIT_PATIENCE_NS);
    replica_split_step(r, now);
}

/* ---- ahead of it ---- */

static void note_step(const struct replica *r, range_id right, const char *step)
{
    SPAN_LOG(INFO, "splits", "range=%llu right=%llu step=%s", (unsigned long long)r->id,
             (unsigned long long)right, step);
}

static void begin_ahead(struct replica *r, const struct tt_now *now, const struct cmd_split *c)
{
    enum engine_ahead was = engine_split_ahead_state(r->engine, c->key, c->right);
    if (was != ENGINE_AHEAD_BUILDING && was != ENGINE_AHEAD_READY) {
        engine_split_ahead(r->engine, c->key, c->right, 1);
    }
    r->ahead_until_ns = now->mono_ns + AHEAD_KEEP_NS;
    r->flush_wanted = true;
    r->flush_at_ns = now->mono_ns;
    store_mark_dirty(r->store, r);
}

void replica_split_forget(struct replica *r)
{
    engine_split_forget(r->engine);
    r->ahead_until_ns = 0;
    r->flush_wanted = true;
}

void replica_apply_split_ahead(struct replica *r, const struct tt_now *now,
                               const struct cmd_split *c, uint64_t index)
{
    /* Replayed: whatever became of it did so long ago. */
    if (index > r->restored_last && is_inner_key(r, c->key) &&
        store_replica(r->store, c->right) == NULL && !store_orphan_known(r->store, c->right) &&
        !store_orphan_gone(r->store, c->right) && !store_orphan_damaged(r->store, c->right) &&
        !store_embryo_known(r->store, c->right) && !store_is_merged(r->store, c->right)) {
        begin_ahead(r, now, c);
    }
}

void replica_split_tick(struct replica *r, const struct tt_now *now)
{
    if (r->ahead_until_ns != 0 && r->engine != NULL &&
        (now->mono_ns >= r->ahead_until_ns || engine_memory_bytes(r->engine) > AHEAD_MEMORY)) {
        replica_split_forget(r);
    }
}

bool replica_split_is_ready(const struct replica *r)
{
    return r->ahead_until_ns != 0 && r->engine != NULL && engine_split_ahead_is_ready(r->engine);
}

void replica_split_peer_ready(struct replica *r, node_id node)
{
    if (!r->leading || !r->split_ahead || !r->split_announced) {
        return;
    }
    for (size_t i = 0; i < r->split_ready_count; i++) {
        if (r->split_ready[i] == node) {
            return;
        }
    }
    if (r->split_ready_count < LIMIT_REPLICAS) {
        r->split_ready[r->split_ready_count++] = node;
    }
}

bool replica_split_in_the_way(struct replica *r, range_id right)
{
    bool running = false;
    if (r->engine == NULL || engine_split_ahead_range(r->engine, &running) != right) {
        return false;
    }
    if (running || r->apply_wait_from != 0) {
        return true;
    }
    replica_split_forget(r);
    return false;
}

/* Every member that can be heard. */
static bool others_are_ready(const struct replica *r, const struct tt_now *now)
{
    for (size_t m = 0; m < r->member_count; m++) {
        bool ready = r->members[m] == store_cfg(r->store)->self ||
                     store_node_is_silent(r->store, now, r->members[m]);
        for (size_t i = 0; i < r->split_ready_count && !ready; i++) {
            ready = r->split_ready[i] == r->members[m];
        }
        if (!ready) {
            return false;
        }
    }
    return true;
}

static void announce(struct replica *r, const struct tt_now *now, range_id right)
{
    struct cmd_split c = {
        .key = buf_slice(&r->split_key), .right = right, .generation = r->generation + 1};
    struct buf b = {0};
    cmd_encode_split(&b, &c);
    note_step(r, right, "ahead");
    if (replica_propose(r, now, CMD_SPLIT_AHEAD, buf_slice(&b))) {
        r->split_announced = true;
    }
    buf_deinit(&b);
}

/* True: go on with the split. */
static bool ahead_step(struct replica *r, const struct tt_now *now)
{
    struct arena a = {0};
    struct range_request q;
    span_status st = msg_decode_request(buf_slice(&r->split_request), &a, &q);
    INVARIANT(st == SPAN_OK);
    range_id right = q.new_range;
    arena_deinit(&a);
    if (!r->split_announced && replica_may_serve(r, now)) {
        announce(r, now, right);
        return false;
    }
    enum engine_ahead state = engine_split_ahead_state(r->engine, buf_slice(&r->split_key), right);
    if (state == ENGINE_AHEAD_READY) {
        if (r->split_ready_ns == 0) {
            note_step(r, right, "ready");
            r->split_ready_ns = now->mono_ns;
        }
        if (others_are_ready(r, now) || now->mono_ns >= r->split_ready_ns + AHEAD_OTHERS_NS) {
            r->split_ahead = false;
            r->split_deadline_ns = now->mono_ns + SPLIT_PATIENCE_NS;
            return true;
        }
    } else if (state == ENGINE_AHEAD_FAILED) {
        bool full = engine_split_ahead_status(r->engine) == SPAN_NO_SPACE;
        replica_split_forget(r);
        answer_split(r, full ? SPAN_NO_SPACE : SPAN_OVERLOADED,
                     full ? "there is no room for the right side's file"
                          : "the right side's file could not be built; try again");
    } else if (now->mono_ns >= r->split_deadline_ns) {
        answer_split(r, SPAN_OVERLOADED,
                     "the split was put off: the right side's file takes too long; try again");
    }
    return false;
}

/* Rule F5, the simple form: transactions with a lock on the right side are dropped there, and told.
 */
static void drop_right_locks(struct replica *r, const struct tt_now *now)
{
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_HOLDING && lock_owner_reaches(&t->owner, buf_slice(&r->split_key))) {
            rtxn_wound(r, now, t, SPAN_LOCKS_LOST);
        }
    }
}

static bool records_in_flight(const struct replica *r)
{
    if (!list_is_empty(&r->flight) && !PLANTED(SPLIT_WAITS_FOR_NOBODY)) {
        return true;
    }
    size_t pos = 0;
    const struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_COORDINATING || t->state == RTXN_DECIDING) {
            return true;
        }
        /* Acknowledgements are addressed by anchor: a decision whose anchor moves to the right must
         * be over (rule C2). */
        if (t->state == RTXN_DECIDED && t->retry_ns != 0 &&
            slice_cmp(buf_slice(&t->anchor), buf_slice(&r->split_key)) >= 0) {
            return true;
        }
    }
    return false;
}

/* Not applied, and a command that names the generation would come too late. */
bool replica_generation_moves(const struct replica *r)
{
    raft_index newest;
    (void)raft_conf(r->raft, &newest);
    return raft_applied(r->raft) < newest || raft_applied(r->raft) < r->undo_index;
}

void replica_split_step(struct replica *r, const struct tt_now *now)
{
    if (r->split_key.size == 0 || r->split_proposed || (r->split_ahead && !ahead_step(r, now))) {
        return;
    }
    if (!replica_may_serve(r, now) || records_in_flight(r) || replica_generation_moves(r)) {
        if (now->mono_ns >= r->split_deadline_ns) {
            answer_split(r, SPAN_OVERLOADED,
                         "the split was put off: transactions in flight did not end; try again");
        }
        return;
    }
    struct arena a = {0};
    struct range_request q;
    span_status st = msg_decode_request(buf_slice(&r->split_request), &a, &q);
    INVARIANT(st == SPAN_OK);
    drop_right_locks(r, now);
    replica_propose_resolved(r, now);
    if (!r->leading) { /* proposing ended the leadership, and the split with it */
        arena_deinit(&a);
        return;
    }
    note_step(r, q.new_range, "propose");
    r->split_proposed = true;
    r->releasing = true; /* no timestamp from here until it is applied */
    struct cmd_split c = {.key = buf_slice(&r->split_key),
                          .right = q.new_range,
                          .generation = r->generation + 1,
                          .floor = r->floor};
    struct buf b = {0};
    cmd_encode_split(&b, &c);
    if (!replica_propose(r, now, CMD_SPLIT, buf_slice(&b)) && r->leading) {
        r->releasing = false;
        answer_split(r, SPAN_OVERLOADED, "the log is full; try again");
    }
    buf_deinit(&b);
    arena_deinit(&a);
}

/* ---- apply ---- */

struct right_meta {
    struct engine_meta_row *rows;
    size_t count;
    struct arena arena;
};

/* Copies both. */
static void add_row(struct right_meta *m, struct slice key, const struct buf *value)
{
    if (m->count % 16 == 0) {
        m->rows = span_realloc(m->rows, (m->count + 16) * sizeof *m->rows);
    }
    uint8_t *k = arena_alloc(&m->arena, key.size + 1);
    uint8_t *v = arena_alloc(&m->arena, value->size + 1);
    memcpy(k, key.data, key.size);
    memcpy(v, value->data, value->size);
    m->rows[m->count++] = (struct engine_meta_row){slice_of(k, key.size), slice_of(v, value->size)};
}

static void right_meta_deinit(struct right_meta *m)
{
    span_free(m->rows);
    arena_deinit(&m->arena);
}

struct encode_outcomes {
    struct outcome_table *copy;
    span_status st;
};

static void copy_outcome(void *ctx, const struct outcome *o)
{
    struct encode_outcomes *x = ctx;
    if (outcome_table_add(x->copy, &o->txn, o->ts) != SPAN_OK) {
        x->st = SPAN_CORRUPT;
    }
}

/* The right side's replicated state. Outcomes go to both sides (rule C2: a question by anchor key
 * finds them on either). */
static span_status right_state(struct replica *r, const struct cmd_split *c, struct right_meta *m)
{
    struct range_descriptor d;
    replica_descriptor(r, &d);
    d.range = c->right;
    d.generation = c->generation;
    d.start = c->key;
    d.leader = 0;
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_descriptor(&b, &d);
    add_row(m, slice_str("desc"), &b);
    buf_clear(&b);
    enc_u8(&b, 1);
    enc_u64(&b, r->watermark.ns);
    enc_u64(&b, tt_max(r->applied_ts, c->floor).ns);
    add_row(m, slice_str("vals"), &b);
    for (size_t i = 0; i < r->merged_count; i++) { /* by no entry of its own log */
        char key[MERGED_KEY_BYTES];
        struct slice k = replica_merged_row(key, &b, r->merged[i].range, 0);
        add_row(m, k, &b);
    }
    struct encode_outcomes x = {outcome_table_new(), SPAN_OK};
    outcome_table_each(r->outcomes, copy_outcome, &x);
    uint64_t block;
    for (buf_clear(&b); (block = outcome_table_seal(x.copy, &b)) != 0; buf_clear(&b)) {
        char key[OUTCOME_KEY_BYTES];
        add_row(m, replica_outcome_key(key, block), &b);
    }
    outcome_table_free(x.copy);
    buf_deinit(&b);
    return x.st;
}

static struct replica *make_right(struct replica *r, const struct tt_now *now,
                                  const struct cmd_split *c, bool existed)
{
    (void)now;
    struct replica *right = replica_new(r->store, c->right);
    struct span_error err = {0};
    right->file_generation = 1;
    span_status st = replica_open_engine(right, false, &err);
    if (st == SPAN_OK) {
        st = replica_load_meta(right, &err);
    }
    if (st == SPAN_OK) {
        /* Term 1 stands for the left's leadership: its promise is inherited, its release opens
         * term 2. Kept hard state wins (F1). */
        struct replica_birth birth = {
            .hard_state = {.term = 1}, .fresh = !existed, .promised = raft_promised(r->raft)};
        store_orphan_state(r->store, c->right, &birth);
        st = replica_start_raft(right, &birth, &err);
        store_orphan_drop(r->store, c->right);
    }
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "right side of a split can not start", "range=%llu error=\"%s\"",
                 (unsigned long long)c->right, err.text);
        replica_free(right);
        return NULL;
    }
    right->applied_ts = tt_max(right->applied_ts, c->floor);
    return right;
}

/* A committed split of a large range whose right side is not built yet: WOULD_WAIT until the
 * flusher has done it, so that this node's other ranges go on. At start-up nobody waits for them.
 */
static span_status wait_for_right(struct replica *r, const struct tt_now *now,
                                  const struct cmd_split *c, uint64_t index)
{
    if (index <= r->restored_last || r->split_built == c->right) {
        return SPAN_OK;
    }
    /* The members would hear that it is committed with the next heartbeat, and the right side needs
     * a majority of them. Let them apply it while this one does. */
    if (r->leading && r->split_proposed && r->split_tell) {
        r->split_tell = false;
        store_heartbeat_now(r->store);
        return SPAN_WOULD_WAIT;
    }
    enum engine_ahead state = engine_split_ahead_state(r->engine, c->key, c->right);
    if (state == ENGINE_AHEAD_NONE && r->ahead_tried != c->right && is_large(r)) {
        begin_ahead(r, now, c);
        r->ahead_tried = c->right;
        state = ENGINE_AHEAD_BUILDING;
    }
    return state == ENGINE_AHEAD_BUILDING ? SPAN_WOULD_WAIT : SPAN_OK;
}

span_status replica_apply_split(struct replica *r, const struct tt_now *now,
                                const struct cmd_split *c, uint64_t index)
{
    if (!is_inner_key(r, c->key) || c->generation <= r->generation ||
        (!list_is_empty(&r->flight) && /* rule C2: nobody is prepared or in flight */
         !PLANTED(SPLIT_WAITS_FOR_NOBODY))) {
        return SPAN_CORRUPT;
    }
    bool led = r->leading && r->split_proposed;
    store_embryo_drop(r->store, c->right); /* a snapshot of it that was on its way here */
    struct replica *right = store_replica(r->store, c->right);
    span_status st = SPAN_OK;
    struct right_meta m = {0};
    /* Replayed by a node that has left the right side since, or where it has become a part of
     * another range: it must not come back with an empty log (rule F1). */
    bool gone = right == NULL &&
                (store_orphan_gone(r->store, c->right) ||
                 store_orphan_damaged(r->store, c->right) || store_is_merged(r->store, c->right));
    if (right == NULL && !gone) {
        st = wait_for_right(r, now, c, index);
        if (st == SPAN_OK && r->split_built != c->right) {
            st = right_state(r, c, &m);
        }
        struct engine_split_spec spec = {.key = c->key,
                                         .right_range_id = c->right,
                                         .right_generation = 1,
                                         .right_applied = 0,
                                         .meta = m.rows,
                                         .meta_count = m.count};
        struct span_error err = {0};
        if (st == SPAN_OK && r->split_built != c->right) {
            st = engine_split(r->engine, &spec, &err);
            r->split_built = st == SPAN_OK ? c->right : 0;
        }
        if (st != SPAN_OK && st != SPAN_WOULD_WAIT) {
            SPAN_LOG(ERROR, "split failed", "range=%llu error=\"%s\"", (unsigned long long)r->id,
                     err.text);
        }
        right_meta_deinit(&m);
        if (st != SPAN_OK) {
            return st;
        }
        /* Replayed after a crash it may have run before, and have promised something (B3). */
        right = make_right(r, now, c,
                           store_orphan_known(r->store, c->right) || index <= r->restored_last);
        if (right == NULL) {
            return SPAN_IO;
        }
        replica_persist_birth(right, false);
        store_note_birth(r->store, r);
    } else {
        st = engine_set_bounds(r->engine, buf_slice(&r->start), c->key);
        if (st != SPAN_OK) {
            return st;
        }
    }
    note_step(r, c->right, "done");
    buf_set(&r->end, c->key);
    r->ahead_until_ns = 0;
    replica_autosplit_reset(r);
    r->generation = c->generation;
    replica_meta_descriptor_put(r);
    if (right != NULL && store_replica(r->store, c->right) == NULL) {
        store_add_replica(r->store, right);
    }
    if (led) {
        r->releasing = false;
        if (right != NULL) {
            right->stand_release = tt_max(r->floor, c->floor);
        }
        answer_split(r, SPAN_OK, "");
    }
    if (right != NULL) {
        store_born(r->store, right);
    }
    store_descriptors_changed(r->store);
    return SPAN_OK;
}
