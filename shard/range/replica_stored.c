/* What of a replica lies in its engine beside the rows: descriptor, values, prepared and decided
 * transactions, outcomes. Written before a flush, taken back at a start and after a snapshot; and
 * what a flush that is done lets go of. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/store_impl.h"

#include <stdio.h>

/* Meta rows of the engine. Rows that begin with '~' belong to this replica alone and are no part of
 * the replicated state that digests compare. */
static const char meta_descriptor[] = "desc";
static const char meta_values[] = "vals";
static const char meta_raft[] = "~raft";
static const char meta_outcomes[] = "~o/";

struct slice replica_outcome_key(char out[OUTCOME_KEY_BYTES], uint64_t block)
{
    int n = snprintf(out, OUTCOME_KEY_BYTES, "%s%016llx", meta_outcomes, (unsigned long long)block);
    return slice_of(out, (size_t)n);
}

static const char meta_prepared[] = "p/";
static const char meta_decided[] = "d/";

void replica_meta_descriptor_put(struct replica *r)
{
    struct buf b = {0};
    struct range_descriptor d;
    replica_descriptor(r, &d);
    d.leader = 0;
    enc_u8(&b, 1);
    enc_descriptor(&b, &d);
    if (engine_meta_put(r->engine, slice_str(meta_descriptor), buf_slice(&b)) != SPAN_OK) {
        replica_break(r, "descriptor", SPAN_IO);
    }
    buf_deinit(&b);
}

static void descriptor_take(struct replica *r, const struct range_descriptor *d)
{
    buf_set(&r->start, d->start);
    buf_set(&r->end, d->end);
    r->generation = d->generation;
    r->member_count = d->member_count;
    memcpy(r->members, d->members, sizeof r->members);
}

/* Rows of prepared and decided transactions (rule H7): only of those that are still there when a
 * flush begins. */
static span_status put_txn_rows(struct replica *r)
{
    span_status st = SPAN_OK;
    size_t pos = 0;
    struct rtxn *t;
    while (st == SPAN_OK && (t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
        bool prepared = t->state == RTXN_PREPARED || t->state == RTXN_FINISHING;
        if (t->record.size == 0 || t->stored || !(prepared || t->state == RTXN_DECIDED)) {
            continue;
        }
        uint8_t key[META_KEY_BYTES];
        st = engine_meta_put(r->engine, replica_txn_key(key, prepared ? 'p' : 'd', &t->owner.txn),
                             buf_slice(&t->record));
        t->stored = true;
    }
    return st;
}

/* What replays from the engine's file alone; written before every flush. */
static void meta_before_flush(struct replica *r)
{
    struct buf b = {0};
    uint64_t applied = engine_applied(r->engine);
    raft_term term = 0;
    raft_index conf_index = 0;
    bool known = raft_term_at(r->raft, applied, &term);
    INVARIANT(known);
    const struct raft_conf *conf = raft_conf_at(r->raft, applied, &conf_index);
    enc_u8(&b, 1);
    enc_u64(&b, applied);
    enc_u64(&b, term);
    enc_u64(&b, conf_index);
    raft_conf_encode(&b, conf);
    span_status st = engine_meta_put(r->engine, slice_str(meta_raft), buf_slice(&b));
    buf_clear(&b);
    uint64_t block;
    while ((block = outcome_table_seal(r->outcomes, &b)) != 0) {
        char key[OUTCOME_KEY_BYTES];
        if (st == SPAN_OK) {
            st = engine_meta_put(r->engine, replica_outcome_key(key, block), buf_slice(&b));
        }
        buf_clear(&b);
    }
    enc_u8(&b, 1);
    enc_u64(&b, r->watermark.ns);
    enc_u64(&b, r->applied_ts.ns);
    if (st == SPAN_OK) {
        st = engine_meta_put(r->engine, slice_str(meta_values), buf_slice(&b));
    }
    if (st == SPAN_OK) {
        st = put_txn_rows(r);
    }
    buf_deinit(&b);
    if (st != SPAN_OK) {
        replica_break(r, "values before flush", st);
        return;
    }
    engine_set_applied(r->engine, applied);
}

/* Not before the right side of a split is on record in the log: a flush that covers the split's
 * entry lets that entry go. */
bool replica_may_flush(const struct replica *r)
{
    /* A split that waits may have cut the bounds already: not to be flushed before its index is.
     * One that waits for the flusher has not, nor has a merge. */
    bool waits = r->apply_wait_from != 0 && !r->apply_wait_ahead && !r->apply_wait_merge;
    return !r->flushing && !r->broken && !r->out && r->births == 0 && !waits &&
           engine_applied(r->engine) > 0 && !engine_split_ahead_is_ready(r->engine);
}

void replica_maybe_flush(struct replica *r, const struct tt_now *now)
{
    if (!replica_may_flush(r)) {
        return;
    }
    bool due =
        r->flush_wanted || engine_active_bytes(r->engine) >= store_cfg(r->store)->flush_bytes;
    if (!due || now->mono_ns < r->flush_at_ns) {
        return;
    }
    r->flush_wanted = false;
    meta_before_flush(r);
    if (r->broken) {
        return;
    }
    struct engine_job *job = engine_freeze(r->engine);
    if (job != NULL) {
        r->flushing = true;
        const struct store_io *io = &store_cfg(r->store)->io;
        io->flush(io->ctx, r->id, job);
    }
}

/* ---- loading ---- */

struct load_ctx {
    struct replica *r;
    span_status st;
    uint64_t *base_index;
    uint64_t *base_term;
};

static bool load_prepared(void *ctx, struct slice key, struct slice value)
{
    struct load_ctx *l = ctx;
    struct arena a = {0};
    struct cmd_prepare c;
    (void)key;
    l->st = cmd_decode_prepare(value, &a, &c);
    if (l->st == SPAN_OK) {
        struct rtxn *t = rtxn_new(l->r, &c.txn, &c.age, RTXN_PREPARED);
        t->owner.unwoundable = true;
        t->ts = c.prepare_ts;
        t->stored = true;
        buf_set(&t->record, value);
        buf_set(&t->coordinator, c.coordinator);
        buf_set(&t->anchor, c.anchor);
        t->coordinator_node = c.coordinator_node;
        rtxn_keys_set(t, c.writes, c.write_count);
        rtxn_flight(l->r, t, true);
    }
    arena_deinit(&a);
    return l->st == SPAN_OK;
}

span_status replica_take_decided(struct replica *r, struct slice record, struct rtxn **out)
{
    struct arena a = {0};
    struct cmd_decision c;
    span_status st = cmd_decode_decision(record, &a, &c);
    if (st == SPAN_OK) {
        struct rtxn *t = rtxn_new(r, &c.txn, &c.txn, RTXN_DECIDED);
        *out = t;
        t->ts = c.ts;
        buf_set(&t->record, record);
        buf_set(&t->anchor, c.anchor);
        t->participant_count = c.participant_count;
        t->participants = span_calloc(c.participant_count + 1, sizeof *t->participants);
        for (size_t i = 0; i < c.participant_count; i++) {
            buf_set(&t->participants[i].anchor, c.participants[i].anchor);
            t->participants[i].range = c.participants[i].range;
            t->participants[i].node = c.participants[i].node;
        }
    }
    arena_deinit(&a);
    return st;
}

static bool load_decided(void *ctx, struct slice key, struct slice value)
{
    struct load_ctx *l = ctx;
    struct rtxn *t = NULL;
    (void)key;
    l->st = replica_take_decided(l->r, value, &t);
    if (l->st == SPAN_OK) {
        t->stored = true;
    }
    return l->st == SPAN_OK;
}

static bool load_outcomes(void *ctx, struct slice key, struct slice value)
{
    struct load_ctx *l = ctx;
    uint64_t number = 0;
    for (size_t i = sizeof meta_outcomes - 1; i < key.size; i++) {
        uint8_t ch = key.data[i];
        number = number * 16 + (uint64_t)(ch <= '9' ? ch - '0' : ch - 'a' + 10);
    }
    l->st = outcome_table_load(l->r->outcomes, number, value);
    return l->st == SPAN_OK;
}

static bool load_schema(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    struct load_ctx *l = ctx;
    struct cursor k = cursor_of(key);
    struct cursor v = cursor_of(value);
    (void)dec_u8(&k);
    uint8_t kind = dec_u8(&k);
    uint32_t table = dec_u32(&k);
    uint64_t version = dec_u64(&v);
    if (kind == 's' && cursor_done(&k) && cursor_done(&v)) {
        struct schema_version *s = SPAN_NEW(struct schema_version);
        s->version = version;
        s->since = ts;
        span_free(map64_put(&l->r->schema, table, s));
    }
    return true;
}

span_status replica_load_meta(struct replica *r, struct span_error *err)
{
    struct load_ctx l = {.r = r, .st = SPAN_OK};
    struct slice v;
    span_status st = engine_meta_get(r->engine, slice_str(meta_descriptor), &v);
    if (st != SPAN_OK) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: its file holds no descriptor",
                         (unsigned long long)r->id);
    }
    struct cursor c = cursor_of(v);
    struct range_descriptor d;
    (void)dec_u8(&c);
    dec_descriptor(&c, &d);
    if (!cursor_done(&c) || d.range != r->id) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: malformed descriptor in its file",
                         (unsigned long long)r->id);
    }
    descriptor_take(r, &d);
    if (engine_meta_get(r->engine, slice_str(meta_values), &v) == SPAN_OK) {
        c = cursor_of(v);
        (void)dec_u8(&c);
        r->watermark = tt_ts_of(dec_u64(&c));
        r->applied_ts = tt_ts_of(dec_u64(&c));
    }
    r->applied_ts = tt_max(r->applied_ts, engine_max_ts(r->engine));

    static const struct {
        const char *prefix;
        engine_meta_fn *fn;
    } parts[] = {{meta_prepared, load_prepared},
                 {meta_decided, load_decided},
                 {meta_outcomes, load_outcomes}};

    bool drop = PLANTED(SNAPSHOT_DROPS_PREPARED) && r->receiving != NULL;
    for (size_t i = drop ? 1 : 0; i < sizeof parts / sizeof *parts; i++) {
        st = engine_meta_scan(r->engine, slice_str(parts[i].prefix), parts[i].fn, &l);
        if (st != SPAN_OK || l.st != SPAN_OK) {
            return span_fail(err, SPAN_CORRUPT, "range %llu: malformed record %s* in its file",
                             (unsigned long long)r->id, parts[i].prefix);
        }
    }
    st = replica_load_merge(r);
    if (st != SPAN_OK) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: malformed record of a merge in its file",
                         (unsigned long long)r->id);
    }
    static const uint8_t local_start[] = {0, 's'};
    static const uint8_t local_end[] = {0, 't'};
    struct engine_scan_spec spec = {
        .start = slice_of(local_start, 2), .end = slice_of(local_end, 2), .at = ENGINE_NEWEST};
    struct engine_scan_result res;
    return engine_scan(r->engine, &spec, load_schema, &l, &res);
}

/* Position of the log that the engine's content stands for; NOT_FOUND: a file from birth, index 0.
 */
span_status replica_installed_base(struct replica *r, raft_index *index, raft_term *term,
                                   raft_index *conf_index, struct raft_conf *conf)
{
    struct slice v;
    span_status st = engine_meta_get(r->engine, slice_str(meta_raft), &v);
    if (st != SPAN_OK) {
        return st;
    }
    struct cursor c = cursor_of(v);
    uint8_t version = dec_u8(&c);
    *index = dec_u64(&c);
    *term = dec_u64(&c);
    *conf_index = dec_u64(&c);
    if (!cursor_ok(&c) || version != 1 ||
        raft_conf_decode(dec_raw(&c, cursor_left(&c)), conf) != SPAN_OK) {
        return SPAN_CORRUPT;
    }
    return SPAN_OK;
}

#define CACHE_KIB_MIN 256
#define CACHE_KIB_MAX (8 * 1024) /* a larger one makes commits with page splits slow */

span_status replica_open_engine(struct replica *r, bool create, struct span_error *err)
{
    const struct store_config *cfg = store_cfg(r->store);
    /* A share of the node's cache as ranges are counted now: each file keeps what it got when it
     * was opened. */
    uint64_t share = cfg->cache_bytes / KIB / (store_range_count(r->store) + 1);
    share = share > CACHE_KIB_MAX ? CACHE_KIB_MAX : share;
    share = share < CACHE_KIB_MIN ? CACHE_KIB_MIN : share;
    struct engine_options opt = {.dir = cfg->dir,
                                 .range_id = r->id,
                                 .generation = r->file_generation,
                                 .vfs = cfg->vfs,
                                 .cache_kib = cfg->cache_bytes == 0 ? 0 : (uint32_t)share,
                                 .create = create};
    return engine_open(&opt, &r->engine, err);
}

/* Makes the Raft of a replica whose engine is open and loaded. entries: what the WAL holds,
 * ascending; those at or below the engine's index are skipped. */
span_status replica_start_raft(struct replica *r, const struct replica_birth *birth,
                               struct span_error *err)
{
    const struct store_config *cfg = store_cfg(r->store);
    struct raft_config rc = {
        .self = cfg->self,
        .range = r->id,
        .hard_state = birth->hard_state,
        .seed = cfg->seed ^ (r->id * 0x9e3779b97f4a7c15ULL) ^ cfg->self,
        .lease_ns = cfg->lease_ns,
        .fresh = birth->fresh,
        .promised = birth->promised,
        .entry_guard = replica_entry_guard,
        .append_bytes = cfg->append_bytes,
    };
    raft_conf_init(&rc.conf);
    for (size_t i = 0; i < r->member_count; i++) {
        if (raft_conf_set(&rc.conf, r->members[i], true) != SPAN_OK) {
            return span_fail(err, SPAN_CORRUPT, "range %llu: bad member list",
                             (unsigned long long)r->id);
        }
    }
    span_status st =
        replica_installed_base(r, &rc.base_index, &rc.base_term, &rc.conf_index, &rc.conf);
    if (st != SPAN_OK && st != SPAN_NOT_FOUND) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: malformed log position in its file",
                         (unsigned long long)r->id);
    }
    size_t skip = 0;
    while (skip < birth->entry_count && birth->entries[skip].index <= rc.base_index) {
        skip++;
    }
    rc.entries = birth->entries + skip;
    rc.entry_count = birth->entry_count - skip;
    rc.applied = rc.base_index;
    if (engine_applied_flushed(r->engine) != rc.base_index) {
        return span_fail(
            err, SPAN_CORRUPT, "range %llu: file is at index %llu, its own record says %llu",
            (unsigned long long)r->id, (unsigned long long)engine_applied_flushed(r->engine),
            (unsigned long long)rc.base_index);
    }
    if (PLANTED(APPLIED_TWICE) && skip > 1 && birth->entries[skip - 1].index == rc.base_index &&
        rc.conf_index < rc.base_index) {
        rc.base_index--;
        rc.base_term = birth->entries[skip - 2].term;
        rc.applied = rc.base_index;
        rc.entries--;
        rc.entry_count++;
    }
    st = raft_new(&rc, &r->raft, err);
    r->restored_last = st == SPAN_OK ? raft_last_index(r->raft) : 0;
    return st;
}

void replica_persist_birth(struct replica *r, bool log_dropped)
{
    const struct store_io *io = &store_cfg(r->store)->io;
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u64(&b, r->file_generation);
    enc_bool(&b, log_dropped);
    io->sticky(io->ctx, r->id, STICKY_FILE, buf_slice(&b));
    buf_clear(&b);
    enc_u8(&b, 1);
    enc_u64(&b, raft_current_term(r->raft));
    enc_u32(&b, raft_voted_for(r->raft));
    io->sticky(io->ctx, r->id, STICKY_HARD_STATE, buf_slice(&b));
    if (store_orphan_gone(r->store, r->id)) {
        buf_clear(&b);
        enc_u8(&b, 1);
        enc_bool(&b, false);
        io->sticky(io->ctx, r->id, STICKY_GONE, buf_slice(&b));
    }
    buf_deinit(&b);
}

/* ---- after a flush ---- */

/* Entries kept behind the flushed index for members that are a little late. */
#define LOG_TAIL_ENTRIES 2000
#define AHEAD_PACE_NS    (5 * MS_NS) /* between two pieces of a right side built ahead */
#define LOG_TAIL_BYTES   (16 * MIB)

static void cut_log(struct replica *r, uint64_t durable)
{
    uint64_t low = durable;
    uint64_t streams = replica_snapshot_floor(r);
    low = streams < low ? streams : low;
    const struct store_config *cfg = store_cfg(r->store);
    uint64_t tail = cfg->log_tail == 0 ? LOG_TAIL_ENTRIES : cfg->log_tail;
    if (PLANTED(LOG_NOT_RELEASED)) {
        return;
    }
    cfg->io.release(cfg->io.ctx, r->id, low);
    if (raft_log_bytes(r->raft) < LOG_TAIL_BYTES) {
        low = low > tail ? low - tail : 0;
    }
    if (low > 0) {
        raft_compact(r->raft, low);
    }
}

void replica_flush_resume(struct replica *r, const struct tt_now *now)
{
    if (r->ahead_job != NULL && r->ahead_job_at_ns <= now->mono_ns) {
        struct engine_job *job = r->ahead_job;
        const struct store_io *io = &store_cfg(r->store)->io;
        r->ahead_job = NULL;
        io->flush(io->ctx, r->id, job);
    }
}

void replica_flush_done(struct replica *r, const struct tt_now *now, struct engine_job *job)
{
    struct engine_flush_result res;
    struct engine_job *more = engine_flush_done(r->engine, job, &res);
    if (res.status != SPAN_OK && res.status != SPAN_CANCELED) {
        r->flush_at_ns = now->mono_ns + SEC_NS;
        r->flush_wanted = true;
        if (res.status == SPAN_CORRUPT) {
            replica_damaged(r, engine_error(r->engine)->text);
        }
    }
    if (more != NULL && res.pause) {
        r->ahead_job = more;
        r->ahead_job_at_ns = now->mono_ns + AHEAD_PACE_NS;
        return;
    }
    if (more != NULL) {
        const struct store_io *io = &store_cfg(r->store)->io;
        io->flush(io->ctx, r->id, more);
        return;
    }
    r->flushing = false;
    cut_log(r, res.durable);
    if (res.checkpoint_pinned) {
        replica_snapshot_pinned(r, now, res.wal_bytes);
    }
    if (res.work_left) {
        r->flush_wanted = true;
        r->flush_at_ns = now->mono_ns + SEC_NS;
    }
    replica_snapshot_install(r, now);
}
