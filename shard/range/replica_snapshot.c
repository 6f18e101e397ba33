/* Snapshots to a member that is behind the log, on the bulk link, one chunk in flight and
 * acknowledged.
 *
 *   sender: BEGIN(stream, index) CHUNK* (the last with `done`)   receiver: ACK(stream, seq, status)
 * after each
 *
 * The content is the engine's flushed state, so its index is that of the file (rule H5b); the log
 * behind it is still there, because it is only cut up to what is flushed and checkpointed, and
 * while a stream runs it is not cut beyond the stream's index. The receiver builds the file of the
 * next generation, which nothing uses until one WAL record names it (rule H5). A lost chunk or
 * acknowledgement is sent again by a timer; a stream of a leader of an older term is ignored.
 *
 * Birth (rule F1). A member that was away while the range was made by a split, and got the left
 * side's content by a snapshot from behind the split, never sees the split's entry. It answers the
 * leader's heartbeats with "no such replica"; after BIRTH_PATIENCE_NS the leader streams the range
 * to it, and the complete file makes the replica. It has promised nothing and knows nothing of what
 * it may have promised, so it waits like a restarted one before it votes (B3). */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

#define CHUNK_BYTES       (512 * KIB)
#define RESEND_NS         (500 * MS_NS)
#define STREAM_LOST_NS    (10 * SEC_NS)
#define SQLITE_WAL_MAX    (256 * MIB) /* of a file that streams pin (rule H5b) */
#define BIRTH_PATIENCE_NS (2 * SEC_NS)

enum snapshot_part {
    PART_CHUNK = 1,
    PART_REBUILD, /* the same with the number of the question that it answers (store_rebuild.c) */
};

struct replica_sending {
    struct replica_sending *next;
    node_id to;
    uint64_t stream;
    uint64_t seq;
    uint64_t index;
    uint64_t number; /* PART_REBUILD; else 0 */
    struct engine_snapshot *snapshot;
    struct buf chunk; /* the one not acknowledged */
    bool done;
    uint64_t sent_ns;
    uint64_t heard_ns;
};

struct replica_receiving {
    node_id from;
    uint64_t stream;
    uint64_t seq; /* next wanted */
    uint64_t generation;
    struct engine_restore *restore;
    bool complete;
    struct engine_snapshot_info info;
    uint64_t heard_ns;
};

static void sending_free(struct replica_sending *s)
{
    engine_snapshot_close(s->snapshot);
    buf_deinit(&s->chunk);
    span_free(s);
}

static void sending_end(struct replica *r, const struct tt_now *now, struct replica_sending *s,
                        bool ok)
{
    struct replica_sending **at = &r->sending;
    while (*at != s) {
        at = &(*at)->next;
    }
    *at = s->next;
    struct raft_event ev = {.type = ok ? RAFT_EV_SNAPSHOT_SENT : RAFT_EV_SNAPSHOT_FAILED,
                            .from = s->to,
                            .u.index = s->index};
    sending_free(s);
    replica_raft(r, now, &ev);
}

static void send_chunk(struct replica *r, const struct tt_now *now, struct replica_sending *s)
{
    struct buf *b = store_scratch(r->store);
    enc_u8(b, 1);
    enc_u8(b, s->number == 0 ? PART_CHUNK : PART_REBUILD);
    enc_u64(b, s->stream);
    enc_u64(b, s->seq);
    enc_u64(b, raft_current_term(r->raft));
    enc_u64(b, s->index);
    enc_bool(b, s->done);
    enc_bytes(b, buf_slice(&s->chunk));
    if (s->number != 0) {
        enc_u64(b, s->number);
    }
    msg_encode_range_bytes(store_out(r->store, s->to, STORE_BULK), MSG_SNAPSHOT, r->id,
                           buf_slice(b));
    s->sent_ns = now->mono_ns;
}

/* What a leader can not read it does not send, and must not go on with either. */
static void stream_failed(struct replica *r, span_status st, const struct span_error *err)
{
    SPAN_LOG(ERROR, "snapshot can not be read", "range=%llu error=\"%s\"",
             (unsigned long long)r->id, err->text);
    if (st == SPAN_CORRUPT) {
        replica_damaged(r, err->text);
        store_mark_dirty(r->store, r);
    }
}

static bool next_chunk(struct replica *r, const struct tt_now *now, struct replica_sending *s)
{
    struct span_error err = {0};
    buf_clear(&s->chunk);
    span_status st = engine_snapshot_next(s->snapshot, CHUNK_BYTES, &s->chunk, &s->done, &err);
    if (st != SPAN_OK) {
        stream_failed(r, st, &err);
        return false;
    }
    s->seq++;
    send_chunk(r, now, s);
    return true;
}

static uint64_t last_merge(const struct replica *r)
{
    uint64_t last = 0;
    for (size_t i = 0; i < r->merged_count; i++) {
        last = r->merged[i].index > last ? r->merged[i].index : last;
    }
    return last;
}

static struct replica_sending *stream_to(const struct replica *r, node_id to)
{
    struct replica_sending *s = r->sending;
    while (s != NULL && s->to != to) {
        s = s->next;
    }
    return s;
}

static void stream(struct replica *r, const struct tt_now *now, node_id to, uint64_t number)
{
    const struct store_config *cfg = store_cfg(r->store);
    struct engine_options opt = {
        .dir = cfg->dir, .range_id = r->id, .generation = r->file_generation, .vfs = cfg->vfs};
    struct replica_sending *s = SPAN_NEW(struct replica_sending);
    struct engine_snapshot_info info;
    struct span_error err = {0};
    s->to = to;
    s->number = number;
    s->next = r->sending;
    r->sending = s;
    s->heard_ns = now->mono_ns;
    s->stream = cfg->incarnation ^ span_mix64(now->mono_ns + to);
    span_status st = engine_snapshot_open(&opt, &s->snapshot, &info, &err);
    s->index = st == SPAN_OK ? info.applied : 0;
    SPAN_LOG(INFO, "sends a snapshot", "range=%llu to=%u index=%llu", (unsigned long long)r->id, to,
             (unsigned long long)s->index);
    if (st != SPAN_OK) {
        stream_failed(r, st, &err);
    }
    if (st != SPAN_OK || !next_chunk(r, now, s)) {
        sending_end(r, now, s, false);
    }
}

void replica_snapshot_wanted(struct replica *r, const struct tt_now *now, node_id to)
{
    if (stream_to(r, to) != NULL) {
        return;
    }
    if (engine_applied_flushed(r->engine) < last_merge(r)) {
        /* Its receiver would have to take in a right side that it may not have: not before the file
         * holds the merge. */
        struct raft_event ev = {.type = RAFT_EV_SNAPSHOT_FAILED, .from = to};
        r->flush_wanted = true;
        replica_raft(r, now, &ev);
        return;
    }
    stream(r, now, to, 0);
}

static struct replica_rebuild *rebuild_of(struct replica *r, node_id node)
{
    struct replica_rebuild *free_one = NULL;
    for (size_t i = 0; i < LIMIT_REPLICAS; i++) {
        struct replica_rebuild *b = &r->rebuilds[i];
        if (b->node == node) {
            return b;
        }
        if (b->node == 0 || !raft_conf_has(raft_conf(r->raft, NULL), b->node)) {
            free_one = b;
        }
    }
    if (free_one != NULL) {
        *free_one = (struct replica_rebuild){.node = node};
    }
    return free_one;
}

/* Asked again and again until the replica is there. */
void replica_on_rebuild(struct replica *r, const struct tt_now *now, node_id from, uint64_t number)
{
    if (!replica_may_serve(r, now) || !raft_conf_has(raft_conf(r->raft, NULL), from)) {
        return;
    }
    struct replica_rebuild *b = rebuild_of(r, from);
    struct replica_sending *s = stream_to(r, from);
    if (b == NULL || (s != NULL && s->number == number)) {
        return;
    }
    if (s != NULL) {
        sending_end(r, now, s, false); /* what it does not take any more */
    }
    if (b->number != number) {
        SPAN_LOG(WARN, "a member has lost its file to damage", "range=%llu node=%u",
                 (unsigned long long)r->id, from);
        b->number = number;
        b->need = PLANTED(REBUILD_FORGETS) ? 0 : raft_commit(r->raft);
    }
    if (engine_applied_flushed(r->engine) >= b->need) {
        stream(r, now, from, number);
        return;
    }
    r->flush_wanted = true;
    store_mark_dirty(r->store, r);
}

static struct replica_absent *absent_of(struct replica *r, node_id node)
{
    struct replica_absent *free_one = NULL;
    for (size_t i = 0; i < LIMIT_REPLICAS; i++) {
        if (r->absent[i].node == node) {
            return &r->absent[i];
        }
        if (!raft_conf_has(raft_conf(r->raft, NULL), r->absent[i].node)) {
            free_one = &r->absent[i];
        }
    }
    if (free_one != NULL) {
        *free_one = (struct replica_absent){.node = node};
    }
    return free_one;
}

void replica_peer_has(struct replica *r, const struct tt_now *now, node_id node, bool has)
{
    const struct raft_conf *conf = raft_conf(r->raft, NULL);
    struct replica_absent *a = raft_conf_has(conf, node) ? absent_of(r, node) : NULL;
    if (a == NULL) {
        return;
    }
    /* A new learner has nothing yet: at once. Else a split's entry may still be on its way. */
    bool learner = !raft_conf_is_voter(conf, node);
    if (has || !r->serving || r->frozen) { /* frozen: it may be gone there, taken in */
        a->since_ns = 0;
    } else if (a->since_ns == 0 && !learner) {
        a->since_ns = now->mono_ns;
    } else if (a->since_ns == 0 || a->since_ns + BIRTH_PATIENCE_NS <= now->mono_ns) {
        a->since_ns = now->mono_ns;
        replica_snapshot_wanted(r, now, node);
    }
}

static void send_ack(struct replica *r, node_id to, uint64_t stream, uint64_t seq, span_status st)
{
    struct buf *b = store_scratch(r->store);
    enc_u8(b, 1);
    enc_u64(b, stream);
    enc_u64(b, seq);
    enc_u16(b, (uint16_t)st);
    msg_encode_range_bytes(store_out(r->store, to, STORE_CONTROL), MSG_SNAPSHOT_ACK, r->id,
                           buf_slice(b));
}

void replica_on_snapshot_ack(struct replica *r, const struct tt_now *now, node_id from,
                             struct slice bytes)
{
    struct cursor c = cursor_of(bytes);
    uint8_t version = dec_u8(&c);
    uint64_t stream = dec_u64(&c);
    uint64_t seq = dec_u64(&c);
    span_status st = span_status_from_wire(dec_u16(&c));
    if (!cursor_done(&c) || version != 1) {
        return;
    }
    for (struct replica_sending *s = r->sending; s != NULL; s = s->next) {
        if (s->to != from || s->stream != stream) {
            continue;
        }
        s->heard_ns = now->mono_ns;
        if (st != SPAN_OK) {
            sending_end(r, now, s, false);
        } else if (seq == s->seq && s->done) {
            sending_end(r, now, s, true);
        } else if (seq == s->seq && !next_chunk(r, now, s)) {
            sending_end(r, now, s, false);
        }
        return;
    }
}

/* ---- receiver ---- */

static void receiving_free(struct replica *r)
{
    struct replica_receiving *v = r->receiving;
    if (v == NULL) {
        return;
    }
    if (v->restore != NULL) {
        engine_restore_abort(v->restore);
    }
    span_free(v);
    r->receiving = NULL;
}

static span_status begin(struct replica *r, node_id from, uint64_t stream)
{
    const struct store_config *cfg = store_cfg(r->store);
    receiving_free(r);
    struct replica_receiving *v = SPAN_NEW(struct replica_receiving);
    r->receiving = v;
    v->from = from;
    v->stream = stream;
    v->seq = 1;
    v->generation = r->file_generation + 1;
    struct engine_options opt = {.dir = cfg->dir,
                                 .range_id = r->id,
                                 .generation = v->generation,
                                 .vfs = cfg->vfs,
                                 .create = true};
    struct span_error err = {0};
    span_status st = engine_restore_begin(&opt, &v->restore, &err);
    if (st ==
        SPAN_EXISTS) { /* complete, but its WAL record was never written: nothing points to it */
        st = engine_remove_files(&opt, &err);
        if (st == SPAN_OK) {
            st = engine_restore_begin(&opt, &v->restore, &err);
        }
    }
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "snapshot can not be received", "range=%llu error=\"%s\"",
                 (unsigned long long)r->id, err.text);
    }
    return st;
}

static span_status feed(struct replica *r, struct slice chunk, bool done)
{
    struct replica_receiving *v = r->receiving;
    struct span_error err = {0};
    span_status st = engine_restore_feed(v->restore, chunk, &err);
    if (st == SPAN_OK && done) {
        st = engine_restore_finish(v->restore, &v->info, &err);
        v->restore = NULL;
        v->complete = st == SPAN_OK;
    }
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "snapshot refused", "range=%llu error=\"%s\"", (unsigned long long)r->id,
                 err.text);
    }
    return st;
}

void replica_on_snapshot(struct replica *r, const struct tt_now *now, node_id from,
                         struct slice bytes)
{
    struct cursor c = cursor_of(bytes);
    uint8_t version = dec_u8(&c);
    uint8_t part = dec_u8(&c);
    uint64_t stream = dec_u64(&c);
    uint64_t seq = dec_u64(&c);
    uint64_t term = dec_u64(&c);
    uint64_t index = dec_u64(&c);
    bool done = dec_bool(&c);
    struct slice chunk = dec_bytes(&c);
    uint64_t number = part == PART_REBUILD ? dec_u64(&c) : 0;
    if (!cursor_done(&c) || version != 1 || (part != PART_CHUNK && part != PART_REBUILD)) {
        return;
    }
    if (r->raft == NULL && !store_rebuild_takes(r->store, r->id, number, term)) {
        send_ack(r, from, stream, seq, SPAN_UNAVAILABLE);
        return;
    }
    if (r->raft != NULL &&
        (term < raft_current_term(r->raft) || r->leading || index <= raft_applied(r->raft))) {
        send_ack(r, from, stream, seq, index <= raft_applied(r->raft) ? SPAN_OK : SPAN_NOT_LEADER);
        return;
    }
    replica_heard(r, now);
    struct replica_receiving *v = r->receiving;
    span_status st = SPAN_OK;
    if (v == NULL || v->stream != stream) {
        if (seq != 1 || (v != NULL && v->complete)) {
            send_ack(r, from, stream, seq, SPAN_UNAVAILABLE);
            return;
        }
        st = begin(r, from, stream);
        v = r->receiving;
    }
    v->heard_ns = now->mono_ns;
    if (st == SPAN_OK && seq + 1 == v->seq && !v->complete) {
        send_ack(r, from, stream, seq, SPAN_OK); /* its acknowledgement was lost */
        return;
    }
    if (v->complete || (st == SPAN_OK && seq != v->seq)) {
        return;
    }
    if (st == SPAN_OK) {
        st = feed(r, chunk, done);
    }
    if (st != SPAN_OK) {
        receiving_free(r);
        send_ack(r, from, stream, seq, st);
        return;
    }
    v->seq++;
    if (v->complete) {
        replica_snapshot_install(r, now); /* acknowledges */
    } else {
        send_ack(r, from, stream, seq, SPAN_OK);
    }
}

/* Everything in memory is the old file's: it goes, and is loaded from the new one. */
static void forget_state(struct replica *r, const struct tt_now *now)
{
    size_t pos = 0;
    struct rtxn *t;
    while ((t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        rtxn_free(r, now, t);
    }
    while (lock_table_take_granted(r->locks) != NULL) {
    }
    pos = 0;
    struct schema_version *v;
    while ((v = map64_next(&r->schema, &pos, NULL)) != NULL) {
        span_free(v);
    }
    map64_deinit(&r->schema);
    map64_init(&r->schema);
    outcome_table_free(r->outcomes);
    r->outcomes = outcome_table_new();
    replica_forget_merge(r);
}

/* A complete file that is not wanted any more; the sender hears that the content is here. */
static void discard_received(struct replica *r)
{
    struct replica_receiving *v = r->receiving;
    const struct store_config *cfg = store_cfg(r->store);
    struct engine_options opt = {
        .dir = cfg->dir, .range_id = r->id, .generation = v->generation, .vfs = cfg->vfs};
    struct span_error err = {0};
    if (engine_remove_files(&opt, &err) != SPAN_OK) {
        SPAN_LOG(WARN, "received file can not be removed", "error=\"%s\"", err.text);
    }
    send_ack(r, v->from, v->stream, v->seq - 1, SPAN_OK);
    receiving_free(r);
}

/* Which of the log's entries count behind a file at (index, term): sets *dropped if none does, and
 * the entries of b to what is kept. A file that ends before they begin is of no use. */
static span_status keep_log(struct replica_birth *b, raft_index index, raft_term term,
                            bool *dropped, struct span_error *err)
{
    const struct raft_entry *first = b->entries;
    size_t n = b->entry_count;
    *dropped = n == 0 || first[n - 1].index < index || PLANTED(REBUILD_FORGETS);
    if (!*dropped && index + 1 < first->index) {
        return span_fail(err, SPAN_UNAVAILABLE,
                         "the snapshot ends at %llu, the log kept begins at %llu",
                         (unsigned long long)index, (unsigned long long)first->index);
    }
    if (!*dropped && index >= first->index) {
        /* Another entry was committed there: ours and all behind it never were, nor can be. */
        *dropped = first[index - first->index].term != term;
    }
    b->entry_count = *dropped ? 0 : n;
    return SPAN_OK;
}

static span_status birth_open(struct replica *r, bool *log_dropped, struct span_error *err)
{
    span_status st = replica_open_engine(r, false, err);
    if (st == SPAN_OK) {
        st = replica_load_meta(r, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    struct replica_birth b = {.hard_state = {.term = 1}};
    store_orphan_state(r->store, r->id, &b);
    b.fresh = false;
    if (!store_orphan_damaged(r->store, r->id)) {
        b.entry_count = 0; /* of a life that ended otherwise */
    }
    raft_index index = 0;
    raft_index conf_index;
    raft_term term = 0;
    struct raft_conf conf;
    st = replica_installed_base(r, &index, &term, &conf_index, &conf);
    if (st != SPAN_OK && st != SPAN_NOT_FOUND) {
        return span_fail(err, st, "range %llu: malformed log position", (unsigned long long)r->id);
    }
    if (term > b.hard_state.term) {
        b.hard_state = (struct raft_hard_state){.term = term};
    }
    st = keep_log(&b, index, term, log_dropped, err);
    if (st != SPAN_OK) {
        return st;
    }
    return replica_start_raft(r, &b, err);
}

/* The file of a replica that was not here yet is complete. */
static void birth(struct replica *r, const struct tt_now *now)
{
    struct replica_receiving *v = r->receiving;
    struct span_error err = {0};
    node_id from = v->from;
    uint64_t stream = v->stream;
    uint64_t seq = v->seq - 1;
    bool rebuilt = store_orphan_damaged(r->store, r->id);
    bool log_dropped = false;
    r->file_generation = v->generation;
    receiving_free(r);
    span_status st = birth_open(r, &log_dropped, &err);
    send_ack(r, from, stream, seq, st);
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "received range can not start", "range=%llu error=\"%s\"",
                 (unsigned long long)r->id, err.text);
        return; /* without a stream it is dropped */
    }
    SPAN_LOG(INFO, rebuilt ? "replica rebuilt from a snapshot" : "replica born by a snapshot",
             "range=%llu index=%llu log_to=%llu", (unsigned long long)r->id,
             (unsigned long long)raft_applied(r->raft),
             (unsigned long long)raft_last_index(r->raft));
    replica_persist_birth(r, rebuilt && log_dropped);
    store_orphan_drop(r->store, r->id);
    store_embryo_born(r->store, r);
    store_note_birth(r->store, r);
    replica_drop_merged(r, now);
}

void replica_snapshot_install(struct replica *r, const struct tt_now *now)
{
    struct replica_receiving *v = r->receiving;
    if (v == NULL || !v->complete || r->flushing || r->broken) {
        return; /* a flush of the old file is under way: called again when it is done */
    }
    if (r->raft == NULL) {
        birth(r, now);
        return;
    }
    uint64_t have =
        r->apply_wait_from != 0 && !r->apply_wait_merge ? r->apply_wait_to : raft_applied(r->raft);
    if (r->leading || v->info.applied <= have) {
        discard_received(r); /* the log came this far meanwhile, by another leader */
        return;
    }
    const struct store_config *cfg = store_cfg(r->store);
    struct engine_options old = {
        .dir = cfg->dir, .range_id = r->id, .generation = r->file_generation, .vfs = cfg->vfs};
    struct span_error err = {0};
    forget_state(r, now);
    engine_close(r->engine);
    r->engine = NULL;
    /* The snapshot is behind what waits, or behind the merge that waits, at least. */
    uint64_t left_to =
        r->apply_wait_from != 0 && r->apply_wait_to > v->info.applied ? r->apply_wait_to : 0;
    r->apply_wait_from = 0;
    r->file_generation = v->generation;
    span_status st = replica_open_engine(r, false, &err);
    if (st == SPAN_OK) {
        st = replica_load_meta(r, &err);
    }
    uint64_t stream = v->stream;
    uint64_t seq = v->seq - 1;
    node_id from = v->from;
    struct raft_event ev = {.type = RAFT_EV_SNAPSHOT_INSTALLED};
    bool dropped = false;
    if (st == SPAN_OK) {
        st = replica_installed_base(r, &ev.u.installed.index, &ev.u.installed.term,
                                    &ev.u.installed.conf_index, &ev.u.installed.conf);
    }
    v->complete = false;
    receiving_free(r);
    if (st != SPAN_OK) {
        SPAN_LOG(ERROR, "received snapshot can not be used", "range=%llu error=\"%s\"",
                 (unsigned long long)r->id, err.text);
        replica_break(r, "snapshot", st);
        return;
    }
    r->applied_ts = tt_max(r->applied_ts, engine_max_ts(r->engine));
    /* The record that switches files goes before what Raft then appends behind the snapshot.
     * Whether the old entries behind it stay is Raft's answer, so it is asked first; both land in
     * one WAL unit. */
    uint64_t last = raft_last_index(r->raft);
    raft_term at = 0;
    dropped = !(ev.u.installed.index <= last && raft_term_at(r->raft, ev.u.installed.index, &at) &&
                at == ev.u.installed.term);
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u64(&b, r->file_generation);
    enc_bool(&b, dropped);
    cfg->io.sticky(cfg->io.ctx, r->id, STICKY_FILE, buf_slice(&b));
    buf_deinit(&b);
    store_remove_after_persist(r->store, r, &old);
    if (left_to != 0) {
        r->apply_wait_from = ev.u.installed.index + 1;
        r->apply_wait_to = left_to;
        r->apply_retry_ns = now->mono_ns;
    }
    replica_raft(r, now, &ev);
    replica_drop_merged(r, now);
    SPAN_LOG(INFO, "installed a snapshot", "range=%llu index=%llu", (unsigned long long)r->id,
             (unsigned long long)ev.u.installed.index);
    send_ack(r, from, stream, seq, SPAN_OK);
    store_descriptors_changed(r->store);
}

void replica_snapshot_pinned(struct replica *r, const struct tt_now *now, uint64_t wal_bytes)
{
    while (wal_bytes > SQLITE_WAL_MAX && r->sending != NULL) {
        SPAN_LOG(WARN, "snapshot given up: it holds the file back", "range=%llu wal_bytes=%llu",
                 (unsigned long long)r->id, (unsigned long long)wal_bytes);
        sending_end(r, now, r->sending, false);
    }
}

void replica_snapshot_tick(struct replica *r, const struct tt_now *now)
{
    for (struct replica_sending *s = r->sending; s != NULL;) {
        struct replica_sending *next = s->next;
        if (!r->leading || s->heard_ns + STREAM_LOST_NS <= now->mono_ns) {
            sending_end(r, now, s, false);
        } else if (s->sent_ns + RESEND_NS <= now->mono_ns) {
            send_chunk(r, now, s);
        }
        s = next;
    }
    if (r->receiving != NULL && !r->receiving->complete &&
        r->receiving->heard_ns + STREAM_LOST_NS <= now->mono_ns) {
        receiving_free(r);
    }
}

bool replica_is_receiving(const struct replica *r)
{
    return r->receiving != NULL;
}

void replica_snapshot_stop(struct replica *r)
{
    while (r->sending != NULL) {
        struct replica_sending *s = r->sending;
        r->sending = s->next;
        sending_free(s);
    }
    receiving_free(r);
}

/* The log may be cut up to here while streams run: a receiver still needs what is behind its
 * stream's index (rule H5b). */
uint64_t replica_snapshot_floor(const struct replica *r)
{
    uint64_t low = UINT64_MAX;
    for (const struct replica_sending *s = r->sending; s != NULL; s = s->next) {
        low = s->index < low ? s->index : low;
    }
    return low;
}
