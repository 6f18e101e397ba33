/* Two neighbours become one: the left range takes in the right one (rule F3).
 *
 *   Both have the same members, and the same node leads both. That node drives:
 *
 *   DRAINS   new commits are held back on both sides until no record is in flight (rule C2)
 *   FREEZES  CMD_FREEZE in the right's log: once applied nobody serves there, chooses a timestamp
 * or proposes anything; until every member holds the entry durably ENDS     CMD_MERGE in the left's
 * log, with a floor above all that either side gave out: every replica takes in the right side's
 * state from the replica on its own node
 *
 * Who decides. CMD_MERGE names the left's generation as it was at the beginning (the token), and is
 * void under any other. So the left's log alone says whether the merge happens: a CMD_MERGE that
 * says "undo" raises the generation, and no merge of that token can follow. The right side, frozen,
 * asks the left (found by its start key, because it may itself have been split or taken in since)
 * until it has disappeared or hears that the merge will never be; then it thaws by a CMD_FREEZE
 * that says "undo". A leader of the left that is asked about a merge it does not drive undoes it
 * first, as a coordinator without a record does. Whoever crashes, somebody goes on asking.
 *
 * On one node. CMD_MERGE was proposed when all members held CMD_FREEZE durably, so the right side's
 * log is here, though it may not know yet that it is committed: the left's entry tells it. The
 * right's rows go to the left's memory table; its replica leaves the maps at once, its files and
 * records when the left's flush covers the entry (store_absorb). A crash in between finds both
 * sides and applies the entry again. A replica that has the entry and not the right side (it came
 * and went as a member, or its disk was replaced) asks its leader for a snapshot from behind it. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/store_impl.h"

#include <stdio.h>

#define DRAIN_NS     (100 * MS_NS) /* rule C2: then it is put off */
#define FREEZE_NS    (200 * MS_NS) /* for all members to hold the freeze */
#define ANSWERED_NS  (500 * MS_NS)
#define ASK_FIRST_NS (250 * MS_NS) /* longer than the driver needs */
#define ASK_NEXT_NS  (10 * MS_NS)
#define ASK_MAX_NS   (200 * MS_NS)
#define NEAR_ENTRIES 1000

static const char meta_frozen[] = "frz";
static const char meta_merged[] = "m/";

/* MSG_MERGE: {range, version, word ...}. */
enum merge_word {
    WORD_HAND_OVER = 1, /* left's node -> leader of the right: lead it here */
    WORD_ASK,           /* frozen right -> left: will it be? */
    WORD_NEVER,         /* the answer: no, and it is replicated */
    WORD_DONE,          /* the answer: it is done; `member`: your node is to take it in */
    WORD_SNAPSHOT,      /* left, to its leader: the right side is not here */
};

struct merge_msg {
    range_id range; /* the right side; WORD_SNAPSHOT: the left */
    uint8_t word;
    uint8_t hops;
    bool member;
    node_id node; /* who asks */
    range_id left;
    uint64_t token;
    struct slice left_start;
    struct slice right_start;
};

static void send_word(struct store *s, node_id to, const struct merge_msg *m)
{
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u8(&b, m->word);
    enc_u8(&b, m->hops);
    enc_bool(&b, m->member);
    enc_u32(&b, m->node);
    enc_u64(&b, m->left);
    enc_u64(&b, m->token);
    enc_bytes(&b, m->left_start);
    enc_bytes(&b, m->right_start);
    msg_encode_range_bytes(store_out(s, to, STORE_CONTROL), MSG_MERGE, m->range, buf_slice(&b));
    buf_deinit(&b);
}

static bool decode_word(struct slice body, struct merge_msg *m)
{
    struct slice bytes;
    if (msg_decode_range_bytes(body, &m->range, &bytes) != SPAN_OK) {
        return false;
    }
    struct cursor c = cursor_of(bytes);
    uint8_t version = dec_u8(&c);
    m->word = dec_u8(&c);
    m->hops = dec_u8(&c);
    m->member = dec_bool(&c);
    m->node = dec_u32(&c);
    m->left = dec_u64(&c);
    m->token = dec_u64(&c);
    m->left_start = dec_bytes(&c);
    m->right_start = dec_bytes(&c);
    return cursor_done(&c) && version == 1 && m->node <= LIMIT_PEERS;
}

/* ---- the request ---- */

bool replica_is_changing(const struct replica *r)
{
    return r->split_key.size > 0 || r->merge_right != 0 || r->merge_left != 0 || r->frozen;
}

bool replica_is_sealed(const struct replica *r)
{
    return r->frozen || ((r->merge_right != 0 || r->merge_left != 0) && r->releasing);
}

static void let_go(struct replica *r)
{
    if (r != NULL) {
        r->rerun_lease = true; /* what was held back */
        store_touch(r->store, r);
    }
}

static void merge_end(struct replica *r, span_status st, const char *text)
{
    struct arena a = {0};
    struct range_request q;
    struct replica *right = store_replica(r->store, r->merge_right);
    if (right != NULL && right->merge_left == r->id) {
        right->merge_left = 0;
        let_go(right);
    }
    r->merge_right = 0;
    let_go(r);
    if (msg_decode_request(buf_slice(&r->merge_request), &a, &q) == SPAN_OK) {
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
    buf_clear(&r->merge_request);
}

void replica_merge_cancel(struct replica *r)
{
    r->undo_index = 0;
    if (r->merge_right != 0) {
        bool maybe = r->merge_step == MERGE_ENDS;
        merge_end(r, maybe ? SPAN_UNAVAILABLE : SPAN_NOT_LEADER,
                  "leadership was lost during the merge; look whether it happened");
    }
    if (r->merge_left != 0) {
        struct replica *left = store_replica(r->store, r->merge_left);
        r->merge_left = 0;
        if (left != NULL) {
            store_touch(r->store, left); /* it sees that this side is led elsewhere */
        }
    }
}

bool replica_has_merged(const struct replica *r, range_id range)
{
    for (size_t i = 0; i < r->merged_count; i++) {
        if (r->merged[i].range == range) {
            return true;
        }
    }
    return false;
}

/* Both have the same voters and no learner. */
static bool same_members(const struct replica *a, const struct replica *b)
{
    const struct raft_conf *x = raft_conf(a->raft, NULL);
    const struct raft_conf *y = raft_conf(b->raft, NULL);
    bool same =
        x->count == y->count && x->count == raft_conf_voters(x) && y->count == raft_conf_voters(y);
    for (size_t i = 0; same && i < x->count; i++) {
        same = raft_conf_is_voter(y, x->members[i].node);
    }
    return same;
}

/* All of the range's members answer, and hold its log up to `index`. */
static bool all_hold(const struct replica *r, const struct tt_now *now, raft_index index)
{
    const struct raft_conf *conf = raft_conf(r->raft, NULL);
    for (size_t i = 0; i < conf->count; i++) {
        struct raft_peer_info info;
        node_id node = conf->members[i].node;
        if (node != store_cfg(r->store)->self &&
            (!raft_peer(r->raft, node, &info) || info.match < index ||
             info.answered_mono_ns + ANSWERED_NS <= now->mono_ns)) {
            return false;
        }
    }
    return true;
}

static raft_index nearly_all(const struct replica *r)
{
    raft_index last = raft_last_index(r->raft);
    return last > NEAR_ENTRIES ? last - NEAR_ENTRIES : 0;
}

/* Why the two can not be merged, whatever is tried again; NULL: nothing. */
static const char *refusal(const struct replica *r, const struct replica *right, char *text,
                           size_t size)
{
    if (r->end.size == 0 || !slice_eq(buf_slice(&r->end), buf_slice(&right->start))) {
        return "they are no neighbours: the second must begin where the first one ends";
    }
    if (!same_members(r, right)) {
        return "their replicas are on different nodes; bring them together first, with "
               "spanlite range move";
    }
    uint64_t bytes = engine_content_bytes(right->engine);
    if (bytes > RANGE_MERGE_BYTES) {
        (void)snprintf(text, size,
                       "the right one holds %llu KiB, and both would stand still while they are "
                       "copied; at most %llu KiB are",
                       (unsigned long long)(bytes / KIB),
                       (unsigned long long)(RANGE_MERGE_BYTES / KIB));
        return text;
    }
    return NULL;
}

/* Why not now; NULL: nothing. */
static const char *obstacle(struct replica *r, struct replica *right, const struct tt_now *now)
{
    if (!right->leading) {
        struct merge_msg m = {
            .range = right->id, .word = WORD_HAND_OVER, .node = store_cfg(r->store)->self};
        node_id leader = raft_leader(right->raft);
        if (leader != 0 && leader != m.node) {
            send_word(r->store, leader, &m);
        }
        return "the right one is led by another node, which is asked to hand it over; try again";
    }
    if (replica_is_changing(r) || replica_is_changing(right) || r->transfer_to != 0 ||
        right->transfer_to != 0 || replica_member_busy(r) || replica_member_busy(right) ||
        replica_generation_moves(r) || replica_generation_moves(right)) {
        return "one of them is being split, merged, moved or handed over; try again";
    }
    if (!replica_may_serve(right, now)) {
        return "the right one does not serve just now; try again";
    }
    if (!all_hold(r, now, nearly_all(r)) || !all_hold(right, now, nearly_all(right))) {
        return "a member of theirs does not answer or is far behind; try again when it is well";
    }
    if (engine_is_trimming(r->engine) || r->births > 0) {
        r->flush_wanted = true;
        return "rows that a split cut off the left one are still being removed; try again";
    }
    return NULL;
}

void replica_op_merge(struct replica *r, const struct tt_now *now, struct slice body,
                      const struct range_request *q)
{
    if (replica_has_merged(r, q->new_range)) {
        struct range_response resp = {.status = SPAN_OK}; /* the answer was lost */
        replica_respond(r, q, &resp);
        return;
    }
    struct replica *right = store_replica(r->store, q->new_range);
    if (r->id == 1 || q->new_range == 1) {
        replica_refuse(r, q, SPAN_INVALID, "range 1 holds the system's tables and stays alone");
        return;
    }
    if (right == NULL || right == r || right->broken) {
        replica_refuse(r, q, SPAN_INVALID,
                       "the node that leads the first one has no replica of the second; bring "
                       "them together first, with spanlite range move");
        return;
    }
    char text[160];
    const char *why = obstacle(r, right, now);
    span_status st = why == NULL ? SPAN_OK : SPAN_OVERLOADED;
    if (why == NULL && (why = refusal(r, right, text, sizeof text)) != NULL) {
        st = SPAN_INVALID;
    }
    if (st != SPAN_OK) {
        replica_refuse(r, q, st, why);
        return;
    }
    buf_set(&r->merge_request, body);
    r->merge_right = right->id;
    r->merge_step = MERGE_DRAINS;
    r->merge_deadline_ns = now->mono_ns + DRAIN_NS;
    right->merge_left = r->id;
    replica_merge_step(r, now);
}

/* ---- driving it ---- */

static bool knows_more(const struct replica *r, const struct txn_id *txn)
{
    const struct rtxn *t = r == NULL ? NULL : rtxn_find(r, txn);
    return t != NULL && t->state != RTXN_HOLDING;
}

bool replica_merge_holds_back(const struct replica *r, const struct range_request *q)
{
    if (r->merge_right == 0 && r->merge_left == 0) {
        return false;
    }
    /* What one side is busy with, the other must let pass, or both wait for each other. */
    const struct replica *other =
        store_replica(r->store, r->merge_right != 0 ? r->merge_right : r->merge_left);
    return !knows_more(r, &q->txn) && !knows_more(other, &q->txn);
}

/* Decided transactions may be left: they go along. */
static bool is_drained(const struct replica *r)
{
    if (PLANTED(MERGE_WAITS_FOR_NOBODY)) {
        return true;
    }
    if (!list_is_empty(&r->flight)) {
        return false;
    }
    size_t pos = 0;
    const struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        if (t->state != RTXN_HOLDING && t->state != RTXN_DECIDED) {
            return false;
        }
    }
    return true;
}

/* Locks that no record holds are lost with the right side (rule F5). */
static void drop_locks(struct replica *right, const struct tt_now *now)
{
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&right->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_HOLDING) {
            rtxn_wound(right, now, t, SPAN_LOCKS_LOST);
        }
    }
}

static void step_drain(struct replica *r, struct replica *right, const struct tt_now *now)
{
    char text[160];
    bool ready = is_drained(r) && is_drained(right) && replica_may_serve(r, now) &&
                 replica_may_serve(right, now) && !replica_generation_moves(r) &&
                 !replica_generation_moves(right) && right->transfer_to == 0;
    if (now->mono_ns >= r->merge_deadline_ns) {
        merge_end(r, SPAN_OVERLOADED,
                  "the merge was put off: transactions in flight did not end; try again");
        return;
    }
    if (!ready) {
        return;
    }
    if (refusal(r, right, text, sizeof text) != NULL) {
        merge_end(r, SPAN_OVERLOADED, "one of them changed meanwhile; try again");
        return;
    }
    drop_locks(right, now);
    r->merge_step = MERGE_FREEZES;
    r->merge_token = r->generation;
    r->merge_deadline_ns = now->mono_ns + FREEZE_NS;
    right->releasing = true; /* no timestamp from here on */
    struct cmd_freeze c = {
        .left = r->id, .token = r->merge_token, .left_start = buf_slice(&r->start)};
    struct buf b = {0};
    cmd_encode_freeze(&b, &c);
    if (!replica_propose(right, now, CMD_FREEZE, buf_slice(&b)) && r->merge_right == right->id) {
        right->releasing = false;
        merge_end(r, SPAN_OVERLOADED, "the log is full; try again");
    }
    buf_deinit(&b);
}

static void step_freeze(struct replica *r, struct replica *right, const struct tt_now *now)
{
    bool lost = r->generation != r->merge_token || now->mono_ns >= r->merge_deadline_ns;
    bool frozen =
        right->frozen && right->frozen_left == r->id && right->frozen_token == r->merge_token;
    if (lost) {
        right->frozen_ask_ns = now->mono_ns; /* and hears that it will not be */
        merge_end(r, SPAN_OVERLOADED,
                  "the merge was given up: a member did not answer in time; try again");
        return;
    }
    if (!frozen || !all_hold(right, now, right->frozen_index) || !is_drained(r) ||
        !replica_may_serve(r, now) || replica_generation_moves(r)) {
        return;
    }
    /* Nothing above it was given out by either side: the right one is frozen under this very
     * leader, the left one gives out none until the entry is applied. */
    struct tt_ts floor = tt_max(r->floor, right->floor);
    uint64_t generation = r->generation > right->generation ? r->generation : right->generation;
    struct cmd_merge c = {.right = right->id,
                          .token = r->merge_token,
                          .generation = generation + 1,
                          .freeze_index = right->frozen_index,
                          .freeze_term = right->frozen_term,
                          .floor = floor};
    struct buf b = {0};
    cmd_encode_merge(&b, &c);
    r->merge_step = MERGE_ENDS;
    r->releasing = true;
    r->floor = tt_max(r->floor, floor);
    if (!replica_propose(r, now, CMD_MERGE, buf_slice(&b)) && r->leading) {
        r->releasing = false;
        right->frozen_ask_ns = now->mono_ns;
        merge_end(r, SPAN_OVERLOADED, "the log is full; try again");
    }
    buf_deinit(&b);
}

void replica_merge_step(struct replica *r, const struct tt_now *now)
{
    if (r->merge_right == 0 || r->merge_step == MERGE_ENDS) {
        return;
    }
    struct replica *right = store_replica(r->store, r->merge_right);
    if (right == NULL || !right->leading || right->broken || right->merge_left != r->id) {
        merge_end(r, SPAN_OVERLOADED, "the right one's leadership was lost; try again");
    } else if (r->merge_step == MERGE_DRAINS) {
        step_drain(r, right, now);
    } else {
        step_freeze(r, right, now);
    }
}

/* ---- the frozen side asks ---- */

void replica_frozen_step(struct replica *r, const struct tt_now *now)
{
    if (!r->leading || !r->frozen || !r->serving || now->mono_ns < r->frozen_ask_ns) {
        return;
    }
    uint64_t wait = ASK_NEXT_NS * (r->frozen_tries + 1);
    r->frozen_ask_ns = now->mono_ns + (wait < ASK_MAX_NS ? wait : ASK_MAX_NS);
    if (PLANTED(FROZEN_TIMES_OUT)) {
        struct cmd_freeze c = {.undo = true, .left = r->frozen_left, .token = r->frozen_token};
        struct buf b = {0};
        cmd_encode_freeze(&b, &c);
        (void)replica_propose(r, now, CMD_FREEZE, buf_slice(&b));
        buf_deinit(&b);
        return;
    }
    struct merge_msg m = {.range = r->id,
                          .word = WORD_ASK,
                          .node = store_cfg(r->store)->self,
                          .left = r->frozen_left,
                          .token = r->frozen_token,
                          .left_start = buf_slice(&r->frozen_start),
                          .right_start = buf_slice(&r->start)};
    send_word(r->store, store_route(r->store, m.left_start, 0, 2 * r->frozen_tries), &m);
    r->frozen_tries++;
}

/* At a leader of what covers the left side's start. */
static void on_ask(struct replica *r, const struct tt_now *now, const struct merge_msg *m)
{
    if (!replica_may_serve(r, now)) {
        return;
    }
    struct merge_msg answer = {
        .range = m->range, .word = WORD_NEVER, .left = m->left, .token = m->token};
    if (replica_covers(r, m->right_start)) {
        answer.word = WORD_DONE;
        answer.member = raft_conf_has(raft_conf(r->raft, NULL), m->node) ||
                        raft_conf_has(raft_committed_conf(r->raft, NULL), m->node);
        send_word(r->store, m->node, &answer);
        return;
    }
    if (r->id != m->left || r->generation > m->token) {
        send_word(r->store, m->node, &answer);
        return;
    }
    if (r->generation < m->token || r->merge_right == m->range || replica_generation_moves(r)) {
        return; /* it is being driven, or ended: asked again */
    }
    struct cmd_merge c = {
        .undo = true, .right = m->range, .token = m->token, .generation = m->token + 1};
    struct buf b = {0};
    cmd_encode_merge(&b, &c);
    r->undo_index = raft_last_index(r->raft) + 1;
    if (!replica_propose(r, now, CMD_MERGE, buf_slice(&b))) {
        r->undo_index = 0;
    }
    buf_deinit(&b);
}

static void on_never(struct replica *r, const struct tt_now *now, const struct merge_msg *m)
{
    if (!r->leading || !r->frozen || !r->serving || r->frozen_left != m->left ||
        r->frozen_token != m->token) {
        return;
    }
    struct cmd_freeze c = {.undo = true,
                           .left = m->left,
                           .token = m->token,
                           .left_start = buf_slice(&r->frozen_start)};
    struct buf b = {0};
    cmd_encode_freeze(&b, &c);
    r->frozen_ask_ns = now->mono_ns + ASK_MAX_NS;
    (void)replica_propose(r, now, CMD_FREEZE, buf_slice(&b));
    buf_deinit(&b);
}

/* It is done, and this node is not to take it in: it is a member of neither any more. */
static void on_done(struct replica *r, const struct tt_now *now, const struct merge_msg *m)
{
    if (r->leading && r->frozen && r->frozen_token == m->token && r->frozen_left == m->left &&
        !m->member && !r->out) {
        replica_leader_stop(r, now);
        store_leave(r->store, r);
    }
}

void store_on_merge(struct store *s, const struct tt_now *now, node_id from, struct slice body)
{
    struct merge_msg m;
    if (!decode_word(body, &m)) {
        s->bad_messages++;
        SPAN_LOG(WARN, "dropped a malformed message", "from=%u kind=%u", from, MSG_MERGE);
        return;
    }
    node_id forward = 0;
    struct replica *r = m.word == WORD_ASK ? store_leader_of(s, m.left_start, &m.hops, &forward)
                                           : store_replica(s, m.range);
    if (forward != 0) {
        send_word(s, forward, &m);
    }
    if (r == NULL || r->broken) {
        return;
    }
    store_touch(s, r);
    switch ((enum merge_word)m.word) {
    case WORD_HAND_OVER:
        if (replica_may_serve(r, now) && !replica_is_changing(r) && !replica_member_busy(r) &&
            r->transfer_to == 0 && raft_conf_is_voter(raft_conf(r->raft, NULL), m.node) &&
            m.node != s->cfg.self) {
            r->transfer_to = m.node;
        }
        break;
    case WORD_ASK:
        on_ask(r, now, &m);
        break;
    case WORD_NEVER:
        on_never(r, now, &m);
        break;
    case WORD_DONE:
        on_done(r, now, &m);
        break;
    case WORD_SNAPSHOT:
        if (r->leading && raft_conf_has(raft_conf(r->raft, NULL), from)) {
            replica_snapshot_wanted(r, now, from);
        }
        break;
    }
}

/* ---- every replica: what is stored ---- */

struct slice replica_merged_row(char key[MERGED_KEY_BYTES], struct buf *value, range_id range,
                                uint64_t index)
{
    int n = snprintf(key, MERGED_KEY_BYTES, "%s%016llx", meta_merged, (unsigned long long)range);
    buf_clear(value);
    enc_u8(value, 1);
    enc_u64(value, range);
    enc_u64(value, index);
    return slice_of(key, (size_t)n);
}

static void put_merged(struct replica *r, range_id range, uint64_t index)
{
    char key[MERGED_KEY_BYTES];
    struct buf b = {0};
    struct slice k = replica_merged_row(key, &b, range, index);
    if (engine_meta_put(r->engine, k, buf_slice(&b)) != SPAN_OK) {
        replica_break(r, "record of a merge", SPAN_IO);
    }
    buf_deinit(&b);
    r->merged = span_realloc(r->merged, (r->merged_count + 1) * sizeof *r->merged);
    r->merged[r->merged_count++] = (struct merged_range){range, index};
}

struct load_merge {
    struct replica *r;
    bool bad;
};

static bool load_merged(void *ctx, struct slice key, struct slice value)
{
    struct load_merge *l = ctx;
    struct replica *r = l->r;
    struct cursor c = cursor_of(value);
    uint8_t version = dec_u8(&c);
    struct merged_range m = {.range = dec_u64(&c)};
    m.index = dec_u64(&c);
    (void)key;
    l->bad = !cursor_done(&c) || version != 1;
    r->merged = span_realloc(r->merged, (r->merged_count + 1) * sizeof *r->merged);
    r->merged[r->merged_count++] = m;
    return !l->bad;
}

span_status replica_load_merge(struct replica *r)
{
    struct load_merge l = {.r = r};
    struct slice v;
    replica_forget_merge(r);
    span_status st = engine_meta_scan(r->engine, slice_str(meta_merged), load_merged, &l);
    if (st != SPAN_OK || l.bad) {
        return SPAN_CORRUPT;
    }
    if (engine_meta_get(r->engine, slice_str(meta_frozen), &v) != SPAN_OK) {
        return SPAN_OK;
    }
    struct cursor c = cursor_of(v);
    uint8_t version = dec_u8(&c);
    r->frozen = true;
    r->frozen_left = dec_u64(&c);
    r->frozen_token = dec_u64(&c);
    r->frozen_index = dec_u64(&c);
    r->frozen_term = dec_u64(&c);
    buf_set(&r->frozen_start, dec_bytes(&c));
    return cursor_done(&c) && version == 1 ? SPAN_OK : SPAN_CORRUPT;
}

void replica_forget_merge(struct replica *r)
{
    span_free(r->merged);
    r->merged = NULL;
    r->merged_count = 0;
    r->frozen = false;
    buf_deinit(&r->frozen_start);
}

void replica_drop_merged(struct replica *r, const struct tt_now *now)
{
    for (size_t i = 0; i < r->merged_count; i++) {
        struct replica *right = store_replica(r->store, r->merged[i].range);
        store_embryo_drop(r->store, r->merged[i].range);
        store_rebuild_drop(r->store, r->merged[i].range);
        if (right != NULL) {
            store_absorb(r->store, now, right, r, r->merged[i].index);
        }
    }
}

/* ---- applying ---- */

static span_status thaw(struct replica *r, const struct cmd_freeze *c)
{
    if (!r->frozen || r->frozen_token != c->token || r->frozen_left != c->left) {
        return SPAN_OK; /* said twice */
    }
    SPAN_LOG(INFO, "merge undone", "range=%llu", (unsigned long long)r->id);
    r->frozen = false;
    r->rerun_lease = true;
    return engine_meta_delete(r->engine, slice_str(meta_frozen));
}

span_status replica_apply_freeze(struct replica *r, const struct tt_now *now,
                                 const struct cmd_freeze *c, const struct raft_entry *e)
{
    if (c->undo) {
        return thaw(r, c);
    }
    if (r->frozen || (!list_is_empty(&r->flight) && !PLANTED(MERGE_WAITS_FOR_NOBODY))) {
        return SPAN_CORRUPT; /* rule C2: nobody is prepared or in flight */
    }
    replica_split_forget(r); /* of a split that was given up */
    r->frozen = true;
    r->frozen_left = c->left;
    r->frozen_token = c->token;
    r->frozen_index = e->index;
    r->frozen_term = e->term;
    buf_set(&r->frozen_start, c->left_start);
    r->frozen_ask_ns = now->mono_ns + (PLANTED(FROZEN_TIMES_OUT) ? 2 * MS_NS : ASK_FIRST_NS);
    r->frozen_tries = 0;
    if (r->leading) {
        r->releasing = false; /* nothing is given out now because it is frozen */
    }
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u64(&b, r->frozen_left);
    enc_u64(&b, r->frozen_token);
    enc_u64(&b, r->frozen_index);
    enc_u64(&b, r->frozen_term);
    enc_bytes(&b, buf_slice(&r->frozen_start));
    span_status st = engine_meta_put(r->engine, slice_str(meta_frozen), buf_slice(&b));
    buf_deinit(&b);
    return st;
}

struct take_ctx {
    struct replica *r;
    span_status st;
};

static void take_outcome(void *ctx, const struct outcome *o)
{
    struct take_ctx *x = ctx;
    if (outcome_table_add(x->r->outcomes, &o->txn, o->ts) != SPAN_OK) {
        x->st = SPAN_CORRUPT; /* it ended otherwise there */
    }
}

/* Decided transactions whose participants have not all heard of it. */
static span_status take_decided(struct replica *r, const struct tt_now *now,
                                const struct replica *right)
{
    size_t pos = 0;
    const struct rtxn *t;
    while ((t = mapb_next(&right->txns, &pos, NULL)) != NULL) {
        if (t->state == RTXN_HOLDING) {
            continue;
        }
        struct rtxn *have = rtxn_find(r, &t->owner.txn);
        if (t->state != RTXN_DECIDED || (have != NULL && have->state != RTXN_HOLDING)) {
            return SPAN_CORRUPT;
        }
        if (have != NULL) {
            rtxn_wound(r, now, have, SPAN_LOCKS_LOST);
        }
        struct rtxn *mine = NULL;
        span_status st = replica_take_decided(r, buf_slice(&t->record), &mine);
        if (st != SPAN_OK) {
            return SPAN_CORRUPT;
        }
        if (r->serving) {
            replica_send_outcomes(r, mine, false);
            mine->retry_ns = ASK_AGAIN_NS;
            heap_insert(&r->timers, &mine->timer, now->mono_ns + ASK_AFTER_NS);
        }
    }
    return SPAN_OK;
}

static void take_schema(struct replica *r, struct replica *right)
{
    size_t pos = 0;
    uint64_t table;
    const struct schema_version *theirs;
    while ((theirs = map64_next(&right->schema, &pos, &table)) != NULL) {
        struct schema_version *mine = map64_get(&r->schema, table);
        if (mine == NULL) {
            mine = SPAN_NEW(struct schema_version);
            map64_put(&r->schema, table, mine);
        }
        if (theirs->since.ns > mine->since.ns) {
            *mine = *theirs;
        }
    }
}

/* Everything but the rows. */
static span_status take_state(struct replica *r, const struct tt_now *now, struct replica *right,
                              const struct cmd_merge *c, uint64_t index)
{
    struct take_ctx x = {r, SPAN_OK};
    outcome_table_each(right->outcomes, take_outcome, &x);
    span_status st = x.st == SPAN_OK ? take_decided(r, now, right) : x.st;
    if (st != SPAN_OK) {
        return st;
    }
    take_schema(r, right);
    LIST_EACH(it, &right->gone)
    {
        const struct rgone *g = LIST_ENTRY(it, struct rgone, node);
        if (r->leading) {
            rtxn_forget(r, now, &g->txn, g->why); /* rule C12 */
        }
    }
    for (size_t i = 0; i < right->merged_count; i++) {
        put_merged(r, right->merged[i].range, index);
    }
    put_merged(r, right->id, index);
    r->watermark = tt_max(r->watermark, right->watermark);
    /* Rule A4: nothing behind this entry takes effect at or below its floor, on either side. */
    replica_learn(r, c->floor);
    r->closed = tt_max(r->closed, c->floor);
    buf_set(&r->end, buf_slice(&right->end));
    r->generation = c->generation;
    replica_meta_descriptor_put(r);
    return r->broken ? SPAN_IO : SPAN_OK;
}

/* The right side at this node, as of the entry that froze it; NULL: not yet, or not here. */
static struct replica *frozen_right(struct replica *r, const struct tt_now *now,
                                    const struct cmd_merge *c)
{
    struct replica *right = store_replica(r->store, c->right);
    if (right == NULL || right->broken || right->damaged) {
        return NULL;
    }
    if (raft_applied(right->raft) < c->freeze_index) {
        struct raft_event ev = {.type = RAFT_EV_COMMITTED,
                                .u.known = {.index = c->freeze_index, .term = c->freeze_term}};
        replica_raft(right, now, &ev);
    }
    bool there = raft_applied(right->raft) >= c->freeze_index && right->frozen &&
                 right->frozen_left == r->id && right->frozen_token == c->token;
    return there ? right : NULL;
}

static span_status merge_later(struct replica *r, const struct replica *right)
{
    struct merge_msg m = {.range = r->id, .word = WORD_SNAPSHOT, .node = store_cfg(r->store)->self};
    node_id leader = raft_leader(r->raft);
    if (right == NULL && leader != 0 && leader != m.node) {
        send_word(r->store, leader, &m);
    }
    r->flush_wanted = true;
    if (r->leading && r->merge_right != 0 && r->merge_step == MERGE_ENDS) {
        /* It is decided; another one leads on, for whom all is there. */
        merge_end(r, SPAN_UNAVAILABLE, "the merge goes on under another leader");
    }
    return SPAN_WOULD_WAIT;
}

static void merge_void(struct replica *r)
{
    if (r->leading && r->merge_right != 0 && r->merge_step == MERGE_ENDS) {
        struct replica *right = store_replica(r->store, r->merge_right);
        r->releasing = false;
        if (right != NULL) {
            right->frozen_ask_ns = 0;
        }
        merge_end(r, SPAN_OVERLOADED, "one of them changed meanwhile; try again");
    }
}

span_status replica_apply_merge(struct replica *r, const struct tt_now *now,
                                const struct cmd_merge *c, uint64_t index)
{
    if (c->token != r->generation) {
        merge_void(r);
        return SPAN_OK;
    }
    if (c->undo) {
        r->generation = c->generation;
        replica_meta_descriptor_put(r);
        store_descriptors_changed(r->store);
        return r->broken ? SPAN_IO : SPAN_OK;
    }
    if (!list_is_empty(&r->flight) && !PLANTED(MERGE_WAITS_FOR_NOBODY)) {
        return SPAN_CORRUPT; /* rule C2 */
    }
    struct replica *right = frozen_right(r, now, c);
    if (right == NULL || engine_is_trimming(r->engine)) {
        return merge_later(r, right);
    }
    struct span_error err = {0};
    span_status st = engine_merge(r->engine, right->engine, &err);
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "merge failed", "range=%llu error=\"%s\"", (unsigned long long)r->id,
                 err.text);
        r->flush_wanted = true;
        if (st == SPAN_CORRUPT) { /* of the right side's file: this one gets a snapshot */
            replica_damaged(right, err.text);
            store_touch(r->store, right);
        }
        return merge_later(r, right);
    }
    st = take_state(r, now, right, c, index);
    if (st != SPAN_OK) {
        return st;
    }
    SPAN_LOG(INFO, "merged", "range=%llu right=%llu", (unsigned long long)r->id,
             (unsigned long long)right->id);
    replica_autosplit_reset(r);
    replica_split_forget(r); /* of a split that was given up: its right side is a larger one now */
    r->flush_wanted = true;  /* the right side's files wait for it */
    store_absorb(r->store, now, right, r, index);
    if (r->leading && r->merge_right == c->right && r->merge_step == MERGE_ENDS) {
        r->releasing = false;
        merge_end(r, SPAN_OK, "");
    }
    return SPAN_OK;
}
