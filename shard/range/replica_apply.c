/* Committed entries, on every replica in the same order, and what a leader answers when its own are
 * applied. Nothing here depends on being the leader but answers, locks and timers: the replicated
 * state is the same everywhere. A malformed or contradictory entry is corruption of this range and
 * takes the replica out, not the process. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

#define OUTCOME_GRACE_NS (60 * SEC_NS)

struct slice replica_txn_key(uint8_t out[META_KEY_BYTES], char kind, const struct txn_id *id)
{
    out[0] = (uint8_t)kind;
    out[1] = '/';
    for (int i = 0; i < 8; i++) {
        out[2 + i] = (uint8_t)(id->begin_ns >> (56 - 8 * i));
    }
    for (int i = 0; i < 4; i++) {
        out[10 + i] = (uint8_t)(id->node >> (24 - 8 * i));
        out[14 + i] = (uint8_t)(id->seq >> (24 - 8 * i));
    }
    return slice_of(out, META_KEY_BYTES);
}

/* A range-local schema version row takes effect in memory, too. */
static void note_schema(struct replica *r, const struct txn_write *w, struct tt_ts ts)
{
    struct cursor k = cursor_of(w->key);
    (void)dec_u8(&k);
    if (dec_u8(&k) != 's') {
        return;
    }
    uint32_t table = dec_u32(&k);
    struct cursor v = cursor_of(w->value);
    uint64_t version = w->tombstone ? 0 : dec_u64(&v);
    if (!cursor_done(&k)) {
        return;
    }
    struct schema_version *s = map64_get(&r->schema, table);
    if (s == NULL) {
        s = SPAN_NEW(struct schema_version);
        map64_put(&r->schema, table, s);
    }
    s->version = version;
    s->since = ts;
}

static span_status put_writes(struct replica *r, const struct txn_write *writes, size_t n,
                              struct tt_ts ts)
{
    for (size_t i = 0; i < n; i++) {
        const struct txn_write *w = &writes[i];
        span_status st = w->tombstone ? engine_delete(r->engine, w->key, ts)
                                      : engine_put(r->engine, w->key, ts, w->value);
        if (st != SPAN_OK) {
            return st;
        }
        if (w->key.size > 0 && w->key.data[0] == 0) {
            note_schema(r, w, ts);
        }
    }
    return SPAN_OK;
}

/* The commit request that led to this record, if this leader has one, gets its answer. */
static void answer_commit(struct replica *r, const struct rtxn *t, bool commit)
{
    if (!r->leading || t->gateway == 0 || t->request_id == 0) {
        return;
    }
    struct range_request q = {
        .op = t->op, .request_id = t->request_id, .gateway = t->gateway, .txn = t->owner.txn};
    struct range_response resp = {.status = commit ? SPAN_OK : SPAN_ABORTED,
                                  .ts = commit ? t->ts : tt_ts_of(0)};
    if (!commit && t->too_large) { /* as final as ABORTED; to try it again is of no use */
        resp.status = SPAN_TOO_LARGE;
        resp.text = slice_str("the locks and writes of a participant do not fit a log entry");
    }
    if (t->op == OP_STATUS) {
        resp.text = slice_of(NULL, 0);
        resp.status = SPAN_OK;
        resp.txn_state = commit ? TXN_STATE_COMMITTED : TXN_STATE_ABORTED;
    }
    replica_respond(r, &q, &resp);
}

static span_status apply_open(struct replica *r, struct slice payload)
{
    struct cmd_open c;
    span_status st = cmd_decode_open(payload, &c);
    if (st == SPAN_OK) {
        replica_learn(r, c.floor);
    }
    return st;
}

static span_status apply_commit(struct replica *r, const struct tt_now *now, struct slice payload,
                                struct arena *a)
{
    struct cmd_commit c;
    span_status st = cmd_decode_commit(payload, a, &c);
    if (st == SPAN_OK) {
        st = outcome_table_add(r->outcomes, &c.txn, c.ts);
    }
    if (st == SPAN_OK) {
        st = put_writes(r, c.writes, c.write_count, c.ts);
    }
    if (st != SPAN_OK) {
        return st;
    }
    replica_learn(r, c.ts);
    struct rtxn *t = rtxn_find(r, &c.txn);
    if (t != NULL && t->state != RTXN_COMMITTING) {
        return SPAN_CORRUPT; /* prepared here, too */
    }
    if (t != NULL) {
        answer_commit(r, t, true);
        rtxn_free(r, now, t);
    }
    return SPAN_OK;
}

static span_status apply_prepare(struct replica *r, const struct tt_now *now, struct slice payload,
                                 struct arena *a)
{
    struct cmd_prepare c;
    span_status st = cmd_decode_prepare(payload, a, &c);
    if (st != SPAN_OK) {
        return st;
    }
    if (outcome_table_get(r->outcomes, &c.txn) != NULL) {
        return SPAN_EXISTS;
    }
    replica_learn(r, c.prepare_ts);
    struct rtxn *t = rtxn_find(r, &c.txn);
    if (t != NULL && t->state == RTXN_HOLDING) { /* of a leadership before */
        return SPAN_EXISTS;
    }
    if (t == NULL) {
        t = rtxn_new(r, &c.txn, &c.age, RTXN_PREPARED);
        t->owner.unwoundable = true;
        t->ts = c.prepare_ts;
        buf_set(&t->coordinator, c.coordinator);
        buf_set(&t->anchor, c.anchor);
        t->coordinator_node = c.coordinator_node;
        rtxn_keys_set(t, c.writes, c.write_count);
        rtxn_flight(r, t, true);
    }
    buf_set(&t->record, payload);
    if (t->state == RTXN_PREPARING) {
        t->state = RTXN_PREPARED;
        t->retry_ns = ASK_AGAIN_NS;
        heap_insert(&r->timers, &t->timer, now->mono_ns + ASK_AFTER_NS);
        replica_send_vote(r, t, true, SPAN_OK);
    }
    return SPAN_OK;
}

/* A decision with participants is kept until all have it (C3); an abort need not be, nothing means
 * aborted. Without its writes, which are rows now. */
static void keep_decision(struct rtxn *t, const struct cmd_decision *c)
{
    struct cmd_decision kept = *c;
    kept.write_count = 0;
    buf_clear(&t->record);
    cmd_encode_decision(&t->record, &kept);
}

/* A transaction's row in the engine goes with it, if a flush ever wrote one. */
static span_status drop_row(struct replica *r, const struct rtxn *t, char kind)
{
    uint8_t key[META_KEY_BYTES];
    return t->stored ? engine_meta_delete(r->engine, replica_txn_key(key, kind, &t->owner.txn))
                     : SPAN_OK;
}

/* An abort record that was proposed before a split was applied and lies behind it in the log: its
 * anchor is the right side's now, which knows nothing of it and may decide otherwise (rule C2), so
 * it has no effect and nobody is told. Whoever asked asks again, there. */
static span_status void_decision(struct replica *r, const struct tt_now *now,
                                 const struct cmd_decision *c)
{
    struct rtxn *t = rtxn_find(r, &c->txn);
    if (c->commit || (t != NULL && t->state != RTXN_DECIDING)) {
        return SPAN_CORRUPT; /* nothing is decided while a split is in the log */
    }
    if (t != NULL) {
        replica_unknown(r, t);
        rtxn_free(r, now, t);
    }
    return SPAN_OK;
}

static span_status apply_decision(struct replica *r, const struct tt_now *now, struct slice payload,
                                  struct arena *a)
{
    struct cmd_decision c;
    span_status st = cmd_decode_decision(payload, a, &c);
    if (st == SPAN_OK && !replica_covers(r, c.anchor)) {
        return void_decision(r, now, &c);
    }
    if (st == SPAN_OK && !(PLANTED(DECISION_DROPPED) && c.commit)) {
        st = outcome_table_add(r->outcomes, &c.txn, c.commit ? c.ts : tt_ts_of(0));
    }
    if (st == SPAN_OK) {
        st = put_writes(r, c.writes, c.write_count, c.ts);
    }
    if (st != SPAN_OK) {
        return st;
    }
    struct rtxn *t = rtxn_find(r, &c.txn);
    if (c.commit) {
        replica_learn(r, c.ts);
        if (t == NULL) {
            t = rtxn_new(r, &c.txn, &c.txn, RTXN_DECIDED);
            buf_set(&t->anchor, c.anchor);
            t->participant_count = c.participant_count;
            t->participants = span_calloc(c.participant_count + 1, sizeof *t->participants);
            for (size_t i = 0; i < c.participant_count; i++) {
                buf_set(&t->participants[i].anchor, c.participants[i].anchor);
                t->participants[i].range = c.participants[i].range;
                t->participants[i].node = c.participants[i].node;
            }
        }
        t->ts = c.ts;
        keep_decision(t, &c);
    }
    if (t == NULL) {
        return SPAN_OK;
    }
    bool mine = t->state == RTXN_DECIDING;
    if (mine) {
        answer_commit(r, t, c.commit);
        replica_send_outcomes(r, t, true);
    }
    if (!c.commit) {
        rtxn_free(r, now, t);
        return SPAN_OK;
    }
    t->state = RTXN_DECIDED;
    rtxn_flight(r, t, false);
    lock_table_release(r->locks, &t->owner);
    r->rerun_locks = true;
    buf_deinit(&t->request);
    if (mine) {
        t->retry_ns = ASK_AGAIN_NS;
        heap_insert(&r->timers, &t->timer, now->mono_ns + ASK_AFTER_NS);
    }
    return SPAN_OK;
}

static span_status apply_outcome(struct replica *r, const struct tt_now *now, struct slice payload,
                                 struct arena *a)
{
    struct cmd_outcome c;
    span_status st = cmd_decode_outcome(payload, &c);
    if (st != SPAN_OK) {
        return st;
    }
    struct rtxn *t = rtxn_find(r, &c.txn);
    if (t == NULL || t->record.size == 0) {
        return SPAN_CORRUPT; /* an outcome of what was never prepared */
    }
    struct cmd_prepare p;
    st = cmd_decode_prepare(buf_slice(&t->record), a, &p);
    if (st == SPAN_OK) {
        st = outcome_table_add(r->outcomes, &c.txn, c.commit ? c.ts : tt_ts_of(0));
    }
    if (st == SPAN_OK && c.commit) {
        st = put_writes(r, p.writes, p.write_count, c.ts);
    }
    if (st == SPAN_OK) {
        st = drop_row(r, t, 'p');
    }
    if (st != SPAN_OK) {
        return st;
    }
    if (c.commit) {
        replica_learn(r, c.ts); /* rule A1, also where the transaction only read */
    }
    if (t->state == RTXN_FINISHING) {
        struct txn_outcome_ack m = {.coordinator = buf_slice(&t->coordinator),
                                    .txn = c.txn,
                                    .participant = buf_slice(&t->anchor)};
        msg_encode_outcome_ack(store_out(r->store, t->coordinator_node, STORE_CONTROL), &m);
    }
    rtxn_free(r, now, t);
    return SPAN_OK;
}

static span_status apply_resolved(struct replica *r, const struct tt_now *now, struct slice payload,
                                  struct arena *a)
{
    struct cmd_resolved c;
    span_status st = cmd_decode_resolved(payload, a, &c);
    for (size_t i = 0; st == SPAN_OK && i < c.count; i++) {
        struct rtxn *t = rtxn_find(r, &c.txns[i]);
        if (t != NULL && t->state == RTXN_DECIDED) {
            st = drop_row(r, t, 'd');
            rtxn_free(r, now, t);
        }
    }
    return st;
}

struct expire_ctx {
    struct replica *r;
    span_status st;
};

static void block_gone(void *ctx, uint64_t number)
{
    struct expire_ctx *x = ctx;
    char key[OUTCOME_KEY_BYTES];
    span_status st = engine_meta_delete(x->r->engine, replica_outcome_key(key, number));
    if (st != SPAN_OK) {
        x->st = st;
    }
}

static span_status apply_maintain(struct replica *r, struct slice payload)
{
    struct cmd_maintain c;
    span_status st = cmd_decode_maintain(payload, &c);
    if (st != SPAN_OK) {
        return st;
    }
    r->watermark = tt_max(r->watermark, c.watermark);
    engine_set_horizon(r->engine, c.horizon);
    struct expire_ctx x = {r, SPAN_OK};
    /* Longer than what is admitted: a commit sent again after its answer was lost finds the outcome
     * although its transaction has become too old to begin anything (rules C3, C11). */
    uint64_t w = r->watermark.ns;
    outcome_table_expire(r->outcomes, tt_ts_of(w > OUTCOME_GRACE_NS ? w - OUTCOME_GRACE_NS : 0),
                         block_gone, &x);
    return x.st;
}

span_status replica_apply(struct replica *r, const struct tt_now *now, const struct raft_entry *e)
{
    struct slice payload = raft_blob_slice(e->payload);
    struct arena *a = store_apply_arena(r->store);
    arena_clear(a);
    switch (e->type) {
    case RAFT_ENTRY_CONF:
        return replica_apply_conf(r, payload);
    case CMD_OPEN:
        return apply_open(r, payload);
    case CMD_COMMIT1:
        return apply_commit(r, now, payload, a);
    case CMD_PREPARE:
        return apply_prepare(r, now, payload, a);
    case CMD_DECISION:
        return apply_decision(r, now, payload, a);
    case CMD_OUTCOME:
        return apply_outcome(r, now, payload, a);
    case CMD_RESOLVED:
        return apply_resolved(r, now, payload, a);
    case CMD_MAINTAIN:
        return apply_maintain(r, payload);
    case CMD_SPLIT: {
        struct cmd_split c;
        span_status st = cmd_decode_split(payload, &c);
        return st == SPAN_OK ? replica_apply_split(r, now, &c, e->index) : st;
    }
    case CMD_SPLIT_AHEAD: {
        struct cmd_split c;
        span_status st = cmd_decode_split(payload, &c);
        if (st == SPAN_OK) {
            replica_apply_split_ahead(r, now, &c, e->index);
        }
        return st;
    }
    case CMD_FREEZE: {
        struct cmd_freeze c;
        span_status st = cmd_decode_freeze(payload, &c);
        return st == SPAN_OK ? replica_apply_freeze(r, now, &c, e) : st;
    }
    case CMD_MERGE: {
        struct cmd_merge c;
        span_status st = cmd_decode_merge(payload, &c);
        return st == SPAN_OK ? replica_apply_merge(r, now, &c, e->index) : st;
    }
    default:
        return SPAN_CORRUPT;
    }
}

struct tt_ts replica_entry_guard(uint8_t type, struct slice payload)
{
    /* Rule A7: everything but outcomes, which are decided already. The timestamp is the command's
     * own. A first floor may be an old lease end, which lies up to a lease ahead. */
    if (type == CMD_COMMIT1 || type == CMD_PREPARE || type == CMD_DECISION) {
        return cmd_peek_ts(type, payload);
    }
    return tt_ts_of(0);
}
