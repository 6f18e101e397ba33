/* Scans: the memory generations and the file's statements are sources in key order; a merge takes
 * the next key of all of them, asks each source that stands on it, newest first, for the version
 * visible at the scan's timestamp, and steps those sources on. */
#include "base/invariant.h"
#include "base/map.h"
#include "base/planted.h"
#include "shard/engine/engine_internal.h"

#define SOURCES_MAX (FROZEN_MAX + 3) /* the active generation, current, history */

struct source {
    const struct mem_key *mem; /* a memory source stands here; NULL: at its end (or not one) */
    sqlite3_stmt *stmt; /* a file source: columns k, ts, v, crc; NULL: not one, or at its end */
    struct slice key;   /* where it stands; data NULL at the end */
};

struct merge {
    struct engine *e;
    struct slice start; /* inclusive */
    struct slice end;   /* exclusive, never empty */
    uint64_t at;
    bool reverse;
    bool meta;
    size_t count; /* sources, newest first */
    struct source sources[SOURCES_MAX];
    uint64_t seen; /* newest version examined in memory */
};

struct merged_row {
    struct slice key;
    struct slice value;
    uint64_t ts;
    bool visible; /* false: the key has no version at the timestamp */
};

/* ---- sources -----------------------------------------------------------------------------------
 */

static void source_set_mem(const struct merge *m, struct source *s, const struct mem_key *k)
{
    s->mem = k;
    s->key = (struct slice){0};
    if (k == NULL) {
        return;
    }
    struct slice key = mem_key_slice(k);
    if (m->reverse ? slice_cmp(key, m->start) >= 0 : slice_cmp(key, m->end) < 0) {
        s->key = key;
    }
}

static span_status source_step_stmt(struct merge *m, struct source *s)
{
    struct engine *e = m->e;
    int rc = sqlite3_step(s->stmt);
    if (rc == SQLITE_ROW) {
        s->key = stmt_slice(s->stmt, 0);
        return SPAN_OK;
    }
    s->key = (struct slice){0};
    if (rc == SQLITE_DONE) {
        return SPAN_OK;
    }
    return engine_note_error(e, file_db_fail(&e->view.conn, rc, &e->error, "scan"));
}

static span_status source_next(struct merge *m, struct source *s)
{
    if (s->stmt != NULL) {
        return source_step_stmt(m, s);
    }
    source_set_mem(m, s, m->reverse ? mem_key_prev(s->mem) : mem_key_next(s->mem));
    return SPAN_OK;
}

static void merge_add_mem(struct merge *m, const struct memtable *t)
{
    if (memtable_is_empty(t)) {
        return;
    }
    REQUIRE(m->count < SOURCES_MAX);
    struct source *s = &m->sources[m->count++];
    *s = (struct source){0};
    source_set_mem(m, s, m->reverse ? memtable_seek_below(t, m->end) : memtable_seek(t, m->start));
}

static span_status merge_add_query(struct merge *m, enum query which)
{
    REQUIRE(m->count < SOURCES_MAX);
    sqlite3_stmt *q = NULL;
    span_status st = view_query(m->e, which, &q);
    if (st != SPAN_OK) {
        return st;
    }
    struct source *s = &m->sources[m->count++];
    *s = (struct source){.stmt = q};
    stmt_bind_slice(q, 1, m->start);
    stmt_bind_slice(q, 2, m->end);
    if (!m->meta) {
        stmt_bind_u64(q, 3, m->at);
    }
    return source_step_stmt(m, s);
}

static bool view_may_have_span(const struct engine *e, struct slice start, struct slice end)
{
    const struct file_view *v = &e->view;
    return v->has_current && slice_cmp(start, buf_slice(&v->current_max)) <= 0 &&
           slice_cmp(end, buf_slice(&v->current_min)) > 0;
}

static span_status merge_begin(struct merge *m)
{
    struct engine *e = m->e;
    m->count = 0;
    m->seen = 0;
    for (struct generation *g = gen_newest(e); g != NULL; g = gen_older(e, g)) {
        merge_add_mem(m, m->meta ? &g->meta : &g->rows);
    }
    span_status st = view_ensure(e);
    if (m->meta) {
        return st == SPAN_OK && e->view.has_meta ? merge_add_query(m, Q_META_ASC) : st;
    }
    if (st == SPAN_OK && view_may_have_span(e, m->start, m->end)) {
        st = merge_add_query(m, m->reverse ? Q_CURRENT_DESC : Q_CURRENT_ASC);
    }
    /* At or above everything in the file, all that is visible is in `current`. */
    if (st == SPAN_OK && e->view.has_history && m->at < e->view.state.max_ts) {
        st = merge_add_query(m, m->reverse ? Q_HISTORY_DESC : Q_HISTORY_ASC);
    }
    return st;
}

static void merge_end(struct merge *m)
{
    for (size_t i = 0; i < m->count; i++) {
        if (m->sources[i].stmt != NULL) {
            (void)sqlite3_reset(m->sources[i].stmt);
        }
    }
}

/* ---- merge -------------------------------------------------------------------------------------
 */

/* The source that stands on the next key, the newest of them; NULL at the end. */
static struct source *merge_peek(struct merge *m)
{
    struct source *best = NULL;
    for (size_t i = 0; i < m->count; i++) {
        struct source *s = &m->sources[i];
        if (s->key.data == NULL) {
            continue;
        }
        int order = best == NULL ? 0 : slice_cmp(s->key, best->key);
        if (best == NULL || (m->reverse ? order > 0 : order < 0)) {
            best = s;
        }
    }
    return best;
}

static span_status row_of_stmt(struct merge *m, const struct source *s, struct merged_row *row)
{
    struct engine *e = m->e;
    row->ts = stmt_u64(s->stmt, 1);
    row->value = stmt_slice(s->stmt, 2);
    row->visible = true;
    if (stmt_u64(s->stmt, 3) == row_crc(row->key, row->ts, row->value)) {
        return SPAN_OK;
    }
    return engine_note_error(e, span_fail(&e->error, SPAN_CORRUPT,
                                          "%s: checksum of a row does not match", e->name.path));
}

/* Fills row with what the sources that stand on row->key say about it. */
static span_status merge_resolve(struct merge *m, struct source *first, struct merged_row *row)
{
    for (struct source *s = first; s < m->sources + m->count; s++) {
        if (s != first && (s->key.data == NULL || !slice_eq(s->key, row->key))) {
            continue;
        }
        if (s->stmt != NULL) {
            return row_of_stmt(m, s, row);
        }
        const struct mem_version *v = mem_key_at(s->mem, m->at);
        if (v != NULL) {
            bool counts = !v->tombstone || !PLANTED(TOMBSTONE_NOT_SEEN);
            m->seen = counts && v->ts > m->seen ? v->ts : m->seen;
            row->ts = v->ts;
            row->value = mem_version_slice(v);
            row->visible = !v->tombstone;
            return SPAN_OK;
        }
    }
    return SPAN_OK;
}

/* Steps on all sources that stand on the key of `first`, that one last: the key is its memory. */
static span_status merge_step(struct merge *m, struct source *first)
{
    for (struct source *s = m->sources + m->count; s-- > first + 1;) {
        while (s->key.data != NULL && slice_eq(s->key, first->key)) {
            span_status st = source_next(m, s);
            if (st != SPAN_OK) {
                return st;
            }
        }
    }
    return source_next(m, first);
}

/* ---- public ------------------------------------------------------------------------------------
 */

/* Puts a row where the caller's next scan goes on. */
static void set_resume(struct engine *e, struct slice key, bool reverse,
                       struct engine_scan_result *out)
{
    buf_set(&e->resume, key);
    if (!reverse) {
        buf_append_byte(&e->resume, 0);
    }
    out->resume = buf_slice(&e->resume);
    out->more = true;
}

static span_status scan_rows(struct merge *m, const struct engine_scan_spec *spec,
                             engine_scan_fn *fn, void *ctx, struct engine_scan_result *out)
{
    struct engine *e = m->e;
    for (struct source *s = merge_peek(m); s != NULL; s = merge_peek(m)) {
        struct merged_row row = {.key = s->key};
        span_status st = merge_resolve(m, s, &row);
        if (st != SPAN_OK) {
            return st;
        }
        if (row.visible && file_state_has_key(&e->state, row.key)) {
            out->rows++;
            out->bytes += row.key.size + row.value.size;
            bool go_on = fn(ctx, row.key, row.value, tt_ts_of(row.ts));
            if (!go_on || (spec->max_rows != 0 && out->rows >= spec->max_rows) ||
                (spec->max_bytes != 0 && out->bytes >= spec->max_bytes)) {
                set_resume(e, row.key, m->reverse, out);
                return SPAN_OK;
            }
        }
        st = merge_step(m, s);
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

span_status engine_scan(struct engine *e, const struct engine_scan_spec *spec, engine_scan_fn *fn,
                        void *ctx, struct engine_scan_result *out)
{
    *out = (struct engine_scan_result){0};
    if (spec->at.ns < e->state.horizon) {
        return SPAN_BELOW_HORIZON;
    }
    struct merge m = {.e = e,
                      .start = spec->start,
                      .end = spec->end.size == 0 ? key_space_end() : spec->end,
                      .at = ts_clamp(spec->at.ns),
                      .reverse = spec->reverse};
    struct slice bound = buf_slice(&e->state.end);
    if (bound.size != 0 && slice_cmp(m.end, bound) > 0) {
        m.end = bound; /* local keys lie below every bound */
    }
    if (slice_cmp(m.start, m.end) >= 0) {
        return SPAN_OK;
    }
    span_status st = merge_begin(&m);
    if (st == SPAN_OK) {
        st = scan_rows(&m, spec, fn, ctx, out);
    }
    merge_end(&m);
    /* The file keeps no tombstones, so what was deleted may be as new as anything in it (rule D0).
     */
    uint64_t deleted = engine_deleted_max_ts(e);
    uint64_t file_seen = m.at < deleted ? m.at : deleted;
    out->seen = tt_ts_of(m.seen > file_seen ? m.seen : file_seen);
    return st;
}

span_status engine_meta_scan(struct engine *e, struct slice prefix, engine_meta_fn *fn, void *ctx)
{
    struct buf end = {0};
    struct merge m = {.e = e,
                      .start = prefix,
                      .end = engine_prefix_end(prefix, &end),
                      .at = INT64_MAX,
                      .meta = true};
    span_status st = merge_begin(&m);
    while (st == SPAN_OK) {
        struct source *s = merge_peek(&m);
        if (s == NULL) {
            break;
        }
        struct merged_row row = {.key = s->key};
        st = merge_resolve(&m, s, &row);
        if (st == SPAN_OK && row.visible && !fn(ctx, row.key, row.value)) {
            break;
        }
        if (st == SPAN_OK) {
            st = merge_step(&m, s);
        }
    }
    merge_end(&m);
    buf_deinit(&end);
    return st;
}

/* ---- digest ------------------------------------------------------------------------------------
 */

struct digest {
    uint64_t hash;
    engine_key_filter *filter;
    void *filter_ctx;
};

static void digest_add(struct digest *d, struct slice key, struct slice value, uint64_t ts)
{
    d->hash = span_mix64(d->hash ^ span_hash64(key.data, key.size));
    d->hash = span_mix64(d->hash + span_hash64(value.data, value.size));
    d->hash = span_mix64(d->hash ^ ts);
}

static bool digest_row(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    digest_add(ctx, key, value, ts.ns);
    return true;
}

static bool digest_meta(void *ctx, struct slice key, struct slice value)
{
    struct digest *d = ctx;
    if (d->filter == NULL || d->filter(d->filter_ctx, key)) {
        digest_add(d, key, value, 0);
    }
    return true;
}

span_status engine_digest(struct engine *e, struct tt_ts at, engine_key_filter *filter, void *ctx,
                          uint64_t *out)
{
    struct digest d = {.hash = span_mix64(e->state.horizon), .filter = filter, .filter_ctx = ctx};
    struct engine_scan_spec all = {.at = at};
    struct engine_scan_result result;
    span_status st = engine_scan(e, &all, digest_row, &d, &result);
    if (st == SPAN_OK) {
        st = engine_meta_scan(e, (struct slice){0}, digest_meta, &d);
    }
    *out = d.hash;
    return st;
}
