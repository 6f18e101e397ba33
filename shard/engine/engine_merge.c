/* Merge: what the right side holds goes into the left side's active memory generation, from where
 * the next flush writes it with the applied index, as it writes everything else. So a merge costs
 * no file and no sync, and a crash before that flush finds both sides as they were; see
 * engine_merge in engine.h.
 *
 *   right: history (k, ts asc) --.
 *          current (k)         --+--> per key, ascending in ts --> left: active generation
 *          memory generations  --'    (a version that ended with no successor: a tombstone)
 *
 * Local keys (0x00...) exist on both sides. What is newer than the left's newest version of such a
 * key was written where the key's table lay, on the right, and is taken; the rest is known. */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "shard/engine/engine_internal.h"

static const uint8_t first_user_key[] = {0x01};

/* A key's versions as they come out of the right side's file. */
struct taking {
    struct engine *e;
    struct buf key;  /* of the version before */
    uint64_t end_ts; /* where that one ended; 0: it did not */
    bool wanted;     /* the key's versions are taken, from `above` on */
    uint64_t above;
};

static bool is_same_bound(const struct engine *e, const struct engine *right)
{
    return e->state.end.size > 0 &&
           slice_eq(buf_slice(&e->state.end), buf_slice(&right->state.start));
}

bool engine_is_trimming(const struct engine *e)
{
    const struct file_state *file = &e->view.state;
    if (e->state.trim || !e->view.open || file->trim ||
        !slice_eq(buf_slice(&file->end), buf_slice(&e->state.end))) {
        return true;
    }
    LIST_EACH(it, &e->frozen)
    {
        const struct generation *g = LIST_ENTRY(it, struct generation, link);
        if (g->state.trim) {
            return true; /* it may hold what lay outside when it was the active one */
        }
    }
    return false;
}

uint64_t engine_content_bytes(struct engine *e)
{
    bool trimming = false;
    return engine_file_bytes(e, &trimming) + engine_memory_bytes(e);
}

static bool covers(const struct engine *e, struct slice key)
{
    return file_state_has_key(&e->state, key);
}

static void add(struct taking *t, struct slice key, uint64_t ts, struct slice value, bool tombstone)
{
    if (t->wanted && ts > t->above) {
        memtable_add(&t->e->active->rows, key, ts, value, tombstone);
    }
}

/* From where on the key's versions are taken. */
static span_status begin_key(struct taking *t, struct slice key)
{
    struct tt_ts newest = tt_ts_of(0);
    t->wanted = true;
    t->above = 0;
    if (key.data[0] != 0) {
        return SPAN_OK;
    }
    span_status st = engine_newest_ts(t->e, key, &newest);
    t->above = newest.ns;
    return st;
}

/* The versions of a key are over: the last one may have been deleted. */
static void end_key(struct taking *t)
{
    if (t->end_ts != 0) {
        add(t, buf_slice(&t->key), t->end_ts, (struct slice){0}, true);
    }
    t->end_ts = 0;
}

/* Versions of the file come in order of (key, ts); end_ts 0: it is current. */
static span_status take_version(struct taking *t, struct slice key, uint64_t ts, uint64_t end_ts,
                                struct slice value)
{
    span_status st = SPAN_OK;
    if (!slice_eq(key, buf_slice(&t->key))) {
        end_key(t);
        st = begin_key(t, key);
        buf_set(&t->key, key);
    } else if (t->end_ts != 0 && t->end_ts < ts) {
        end_key(t); /* deleted, and written again later */
    }
    if (st == SPAN_OK) {
        add(t, key, ts, value, false);
    }
    t->end_ts = end_ts;
    return st;
}

/* Both tables of the right side's file as one, in order of key and time. */
static const char file_sql[] = "SELECT k, ts, v, crc, end_ts FROM history"
                               " WHERE k >= ?1 AND k < ?2 AND end_ts > ?3"
                               " UNION ALL SELECT k, ts, v, crc, 0 FROM current"
                               " WHERE k >= ?1 AND k < ?2 ORDER BY 1, 2";

static span_status take_file(struct taking *t, struct engine *right, struct slice lo,
                             struct slice hi, uint64_t horizon, struct span_error *err)
{
    struct file_db *d = &right->view.conn;
    sqlite3_stmt *q = NULL;
    span_status st = file_db_prepare(d, file_sql, &q, err);
    if (st != SPAN_OK) {
        return st;
    }
    stmt_bind_slice(q, 1, lo);
    stmt_bind_slice(q, 2, hi);
    stmt_bind_u64(q, 3, horizon);
    int rc = SQLITE_ROW;
    while (st == SPAN_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        struct slice key = stmt_slice(q, 0);
        uint64_t ts = stmt_u64(q, 1);
        struct slice value = stmt_slice(q, 2);
        if (stmt_u64(q, 3) != row_crc(key, ts, value)) {
            st = span_fail(err, SPAN_CORRUPT, "%s: checksum of a row does not match",
                           right->name.path);
        } else {
            st = take_version(t, key, ts, stmt_u64(q, 4), value);
        }
    }
    if (st == SPAN_OK && rc != SQLITE_DONE) {
        st = file_db_fail(d, rc, err, file_sql);
    }
    (void)sqlite3_finalize(q);
    end_key(t);
    buf_clear(&t->key);
    return st;
}

/* Oldest version first. */
static void take_chain(struct taking *t, struct slice key, const struct mem_version *newest)
{
    size_t count = 0;
    for (const struct mem_version *v = newest; v != NULL; v = v->older) {
        count++;
    }
    const struct mem_version **all = span_calloc(count + 1, sizeof *all);
    size_t at = count;
    for (const struct mem_version *v = newest; v != NULL; v = v->older) {
        all[--at] = v;
    }
    for (size_t i = 0; i < count; i++) {
        add(t, key, all[i]->ts, mem_version_slice(all[i]), all[i]->tombstone);
    }
    span_free(all);
}

static span_status take_table(struct taking *t, const struct engine *right,
                              const struct memtable *rows)
{
    span_status st = SPAN_OK;
    for (const struct mem_key *k = memtable_first(rows); st == SPAN_OK && k != NULL;
         k = mem_key_next(k)) {
        struct slice key = mem_key_slice(k);
        if (covers(right, key)) {
            st = begin_key(t, key);
            take_chain(t, key, k->newest);
        }
    }
    return st;
}

static span_status take_all(struct taking *t, struct engine *right, uint64_t horizon,
                            struct span_error *err)
{
    struct slice user = slice_of(first_user_key, sizeof first_user_key);
    struct slice end = buf_slice(&right->state.end);
    end = end.size == 0 ? key_space_end() : end;
    span_status st = take_file(t, right, (struct slice){0}, user, horizon, err);
    if (st == SPAN_OK) {
        st = take_file(t, right, buf_slice(&right->state.start), end, horizon, err);
    }
    LIST_EACH(it, &right->frozen)
    {
        const struct generation *g = LIST_ENTRY(it, struct generation, link);
        if (st == SPAN_OK && g->seq > right->view.state.seq) {
            st = take_table(t, right, &g->rows);
        }
    }
    return st == SPAN_OK ? take_table(t, right, &right->active->rows) : st;
}

span_status engine_merge(struct engine *e, struct engine *right, struct span_error *err)
{
    if (!is_same_bound(e, right) || engine_is_trimming(e)) {
        return span_fail(err, SPAN_INVALID, "%s: can not take in %s now", e->name.path,
                         right->name.path);
    }
    if (FAILPOINT(ENGINE_MERGE_BEGIN)) {
        return file_injected(&e->name, err);
    }
    span_status st = view_ensure(right);
    if (st != SPAN_OK) {
        if (err != NULL) {
            *err = right->error;
        }
        return st;
    }
    uint64_t horizon =
        e->state.horizon > right->state.horizon ? e->state.horizon : right->state.horizon;
    struct taking t = {.e = e};
    st = take_all(&t, right, horizon, err);
    buf_deinit(&t.key);
    if (st != SPAN_OK) {
        e->state.trim = true; /* what is in memory already goes with the next flush */
        return st;
    }
    engine_split_forget(e); /* it would lack the new rows */
    uint64_t deleted = engine_deleted_max_ts(right);
    e->merged_max_ts = deleted > e->merged_max_ts ? deleted : e->merged_max_ts;
    e->state.horizon = horizon;
    e->state.max_ts = e->state.max_ts > right->state.max_ts ? e->state.max_ts : right->state.max_ts;
    buf_set(&e->state.end, buf_slice(&right->state.end));
    e->open_entry = true;
    FAILPOINT_MARK(ENGINE_MERGE_DONE);
    return SPAN_OK;
}
