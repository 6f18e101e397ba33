/* Start-up of a store: the first two ranges of a new cluster, or everything that the WAL and the
 * files hold. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "shard/range/store_impl.h"

/* First user key: table KEY_USER_TABLE_MIN (sql/kv.h) under prefix 0x01. Range 1 lies below it and
 * holds the system's tables only, so that losing it never takes user data along (rule I1). */
static const uint8_t user_start[] = {0x01, 0x00, 0x00, 0x04, 0x00};

struct orphan *store_orphan_of(struct store *s, range_id id)
{
    struct orphan *o = map64_get(&s->orphans, id);
    if (o == NULL) {
        o = SPAN_NEW(struct orphan);
        map64_put(&s->orphans, id, o);
    }
    return o;
}

void store_orphan_clear(struct orphan *o)
{
    for (size_t i = 0; i < o->entry_count; i++) {
        raft_blob_unref(o->entries[i].payload);
    }
    o->entry_count = 0;
}

void store_orphan_add(struct orphan *o, const struct raft_entry *e)
{
    if (o->entry_count == o->entry_cap) {
        o->entry_cap = o->entry_cap == 0 ? 64 : o->entry_cap * 2;
        o->entries = span_realloc(o->entries, o->entry_cap * sizeof *o->entries);
    }
    o->entries[o->entry_count++] = *e;
}

bool store_orphan_gone(const struct store *s, range_id id)
{
    const struct orphan *o = map64_get(&s->orphans, id);
    return o != NULL && o->gone;
}

void store_orphan_gone_now(struct store *s, range_id id, struct raft_hard_state hs)
{
    const struct store_io *io = &s->cfg.io;
    struct orphan *o = store_orphan_of(s, id);
    store_orphan_clear(o);
    *o = (struct orphan){.hard_state = hs,
                         .has_hard_state = true,
                         .gone = true,
                         .entries = o->entries,
                         .entry_cap = o->entry_cap};
    if (io->tombstone != NULL) {
        io->tombstone(io->ctx, id);
    }
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_bool(&b, true);
    io->sticky(io->ctx, id, STICKY_GONE, buf_slice(&b));
    buf_clear(&b);
    enc_u8(&b, 1);
    enc_u64(&b, o->hard_state.term);
    enc_u32(&b, o->hard_state.voted_for);
    io->sticky(io->ctx, id, STICKY_HARD_STATE, buf_slice(&b));
    buf_deinit(&b);
}

void store_orphan_leave(struct store *s, const struct replica *r)
{
    store_orphan_gone_now(
        s, r->id, (struct raft_hard_state){raft_current_term(r->raft), raft_voted_for(r->raft)});
}

bool store_orphan_known(const struct store *s, range_id id)
{
    const struct orphan *o = map64_get(&s->orphans, id);
    return o != NULL && o->has_hard_state;
}

void store_orphan_state(struct store *s, range_id id, struct replica_birth *birth)
{
    const struct orphan *o = map64_get(&s->orphans, id);
    if (o == NULL) {
        return;
    }
    if (o->has_hard_state) {
        birth->hard_state = o->hard_state;
        birth->fresh = false;
    }
    birth->entries = o->entries;
    birth->entry_count = o->entry_count;
}

void store_orphan_drop(struct store *s, range_id id)
{
    struct orphan *o = map64_remove(&s->orphans, id);
    if (o != NULL) {
        store_orphan_clear(o);
        span_free(o->entries);
        span_free(o);
    }
}

span_status store_restore_sticky(struct store *s, range_id range, uint8_t kind,
                                 struct slice payload, struct span_error *err)
{
    struct orphan *o = store_orphan_of(s, range);
    struct cursor c = cursor_of(payload);
    uint8_t version = dec_u8(&c);
    if (kind == STICKY_HARD_STATE) {
        o->hard_state.term = dec_u64(&c);
        o->hard_state.voted_for = dec_u32(&c);
        o->has_hard_state = true;
    } else if (kind == STICKY_FILE) {
        uint64_t generation = dec_u64(&c);
        bool dropped = dec_bool(&c);
        /* The record is repeated at the head of every segment: only a new generation means that the
         * log was dropped. */
        if (dropped && generation != o->generation) {
            store_orphan_clear(o);
        }
        o->generation = generation;
    } else if (kind == STICKY_GONE) {
        o->gone = dec_bool(&c);
        if (o->gone) {
            store_orphan_clear(o);
            o->generation = 0;
            o->damaged = 0;
        }
    } else if (kind == STICKY_DAMAGED) {
        o->damaged = dec_u64(&c);
    } else {
        return span_fail(err, SPAN_CORRUPT, "range %llu: unknown record kind %u",
                         (unsigned long long)range, kind);
    }
    if (!cursor_done(&c) || version != 1) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: malformed record of kind %u",
                         (unsigned long long)range, kind);
    }
    return SPAN_OK;
}

span_status store_restore_entry(struct store *s, range_id range, uint64_t index, uint64_t term,
                                uint8_t type, struct slice payload, struct span_error *err)
{
    struct orphan *o = store_orphan_of(s, range);
    /* Rule H3: an append at index i replaces everything from i on. A gap can only lie below what
     * the file holds already: the log before it was cut; what came earlier is not needed. */
    while (o->entry_count > 0 && o->entries[o->entry_count - 1].index >= index) {
        raft_blob_unref(o->entries[--o->entry_count].payload);
    }
    if (o->entry_count > 0 && o->entries[o->entry_count - 1].index + 1 != index) {
        store_orphan_clear(o);
    }
    if (payload.size > LIMIT_ENTRY_BYTES) {
        return span_fail(err, SPAN_CORRUPT, "range %llu: entry %llu is larger than any may be",
                         (unsigned long long)range, (unsigned long long)index);
    }
    struct raft_entry e = {.index = index,
                           .term = term,
                           .type = type,
                           .payload = payload.size > 0 ? raft_blob_new(payload) : NULL};
    store_orphan_add(o, &e);
    return SPAN_OK;
}

void store_restore_tombstone(struct store *s, range_id range)
{
    store_orphan_drop(s, range);
}

bool store_restore_found(const struct store *s)
{
    return s->orphans.count > 0;
}

void store_join(struct store *s)
{
    s->joining = true;
}

struct file_list {
    struct store *s;

    struct {
        range_id range;
        uint64_t generation;
    } * items;

    size_t count;
};

static void list_file(void *ctx, uint64_t range, uint64_t generation)
{
    struct file_list *l = ctx;
    l->items = span_realloc(l->items, (l->count + 1) * sizeof *l->items);
    l->items[l->count].range = range;
    l->items[l->count++].generation = generation;
}

/* Files that no record names are what a crash left of a snapshot or a bootstrap. A range without
 * any record may be the right side of a split that will be replayed: its file is kept (it is
 * complete, or engine_split builds it anew). */
static span_status remove_strays(struct store *s, struct span_error *err)
{
    if (s->cfg.vfs != NULL) {
        return SPAN_OK;
    }
    struct file_list l = {.s = s};
    span_status st = engine_list_files(s->cfg.dir, list_file, &l, err);
    for (size_t i = 0; st == SPAN_OK && i < l.count; i++) {
        const struct orphan *o = map64_get(&s->orphans, l.items[i].range);
        if (o != NULL && (o->gone || o->generation != 0) &&
            o->generation != l.items[i].generation) {
            struct engine_options opt = {.dir = s->cfg.dir,
                                         .range_id = l.items[i].range,
                                         .generation = l.items[i].generation};
            st = engine_remove_files(&opt, err);
        }
    }
    span_free(l.items);
    return st;
}

static span_status restore_range(struct store *s, range_id id, struct orphan *o,
                                 struct span_error *err)
{
    if (o->damaged == o->generation) {
        store_damaged_at_start(s, id, err);
        return SPAN_OK;
    }
    struct replica *r = replica_new(s, id);
    r->file_generation = o->generation;
    span_status st = replica_open_engine(r, false, err);
    if (st == SPAN_OK) {
        st = replica_load_meta(r, err);
    }
    if (st == SPAN_CORRUPT && s->cfg.node_count > 1) { /* the others have what the file held */
        replica_free(r);
        store_damaged_at_start(s, id, err);
        return SPAN_OK;
    }
    if (st == SPAN_OK) {
        struct replica_birth birth = {.hard_state = o->hard_state,
                                      .fresh = false,
                                      .entries = o->entries,
                                      .entry_count = o->entry_count};
        st = replica_start_raft(r, &birth, err);
    }
    if (st != SPAN_OK) {
        replica_free(r);
        return st;
    }
    store_add_replica(s, r);
    store_born(s, r);
    return SPAN_OK;
}

span_status store_restore_end(struct store *s, const struct tt_now *now, struct span_error *err)
{
    s->now = now;
    span_status st = remove_strays(s, err);
    if (st != SPAN_OK) {
        return st;
    }
    /* Ascending ids: a deterministic order, and parents before their right sides. */
    uint64_t last = 0;
    for (;;) {
        size_t pos = 0;
        uint64_t id;
        uint64_t next = UINT64_MAX;
        const struct orphan *o;
        while ((o = map64_next(&s->orphans, &pos, &id)) != NULL) {
            if (o->generation != 0 && id > last && id < next) {
                next = id;
            }
        }
        if (next == UINT64_MAX) {
            break;
        }
        st = restore_range(s, next, map64_get(&s->orphans, next), err);
        if (st != SPAN_OK) {
            return st;
        }
        if (!store_orphan_damaged(s, next)) {
            store_orphan_drop(s, next);
        }
        last = next;
    }
    /* What a file says it took in was not removed before the crash. */
    for (size_t i = 0; i < s->by_key_count; i++) {
        replica_drop_merged(s->by_key[i], now); /* they lie behind it */
    }
    if (s->by_key_count == 0 && !s->joining && store_damaged(s, NULL, 0) == 0) {
        return span_fail(err, SPAN_CORRUPT, "%s: the log names no range", s->cfg.dir);
    }
    return SPAN_OK;
}

static span_status first_range(struct store *s, range_id id, struct slice start,
                               struct slice end_key, struct span_error *err)
{
    struct replica *r = replica_new(s, id);
    r->file_generation = 1;
    buf_set(&r->start, start);
    buf_set(&r->end, end_key);
    r->generation = 1;
    r->member_count = s->cfg.node_count < LIMIT_REPLICAS ? s->cfg.node_count : LIMIT_REPLICAS;
    for (size_t i = 0; i < r->member_count; i++) {
        r->members[i] = s->cfg.nodes[i];
    }
    struct engine_options opt = {
        .dir = s->cfg.dir, .range_id = id, .generation = 1, .vfs = s->cfg.vfs};
    span_status st = engine_remove_files(&opt, err); /* of a bootstrap that a crash cut off */
    if (st == SPAN_OK) {
        st = replica_open_engine(r, true, err);
    }
    if (st != SPAN_OK) {
        replica_free(r);
        return st;
    }
    struct replica_birth birth = {.fresh = true};
    st = replica_start_raft(r, &birth, err);
    if (st == SPAN_OK) {
        replica_meta_descriptor_put(r);
        engine_set_applied(r->engine, 0);
        st = engine_flush_now(r->engine, err);
    }
    if (st != SPAN_OK) {
        replica_free(r);
        return st;
    }
    store_add_replica(s, r);
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u64(&b, 1);
    enc_bool(&b, false);
    s->cfg.io.sticky(s->cfg.io.ctx, id, STICKY_FILE, buf_slice(&b));
    buf_deinit(&b);
    store_born(s, r);
    return SPAN_OK;
}

span_status store_bootstrap(struct store *s, const struct tt_now *now, struct span_error *err)
{
    s->now = now;
    s->turn_persists = true;
    struct slice split = slice_of(user_start, sizeof user_start);
    span_status st = first_range(s, 1, slice_of(NULL, 0), split, err);
    return st == SPAN_OK ? first_range(s, 2, split, slice_of(NULL, 0), err) : st;
}
