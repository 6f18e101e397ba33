/* The working-set loop; see dml.h. Texts and preparation are in dml_prepare.c. */
#define SQLITE_ENABLE_PREUPDATE_HOOK 1 /* Debian's library has it; the header shows it only so */
#include "sql/dml.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "base/planted.h"
#include "sql/index.h"

#include <stdio.h>

#define AUTO_ID_BASE ((int64_t)1 << 62) /* ids above it in a run mean: not drawn yet */

struct change {
    int op; /* SQLITE_INSERT, SQLITE_UPDATE, SQLITE_DELETE */
    int64_t old_rowid;
    int64_t new_rowid;
    size_t old_at; /* encoded rows in the capture's arena */
    size_t old_size;
    size_t new_at;
    size_t new_size;
};

struct dml_capture {
    const struct table_desc *d;
    struct buf arena;
    struct change *changes;
    size_t count;
    size_t cap;
    struct sql_value *scratch; /* [column_count] */
    bool too_large;
};

/* A key a run produced, to be looked up. */
struct probe {
    struct buf key;
    const struct table_index *ix; /* NULL: the primary key */
    size_t change;
};

struct dml {
    struct sql_session *s;
    struct plan *p;
    struct sess_table *t;
    const struct table_desc *d;
    struct dml_capture cap;
    struct mapb checked;   /* keys known to be free or loaded */
    struct mapb loaded;    /* row keys put into the working set for a check */
    struct buf *load_rows; /* their rows: key then value, alternating */
    size_t load_count;
    struct probe *probes;
    size_t probe_count;
    size_t probe_cap;
    int64_t id_first; /* block of automatic ids; 0: none yet */
    uint64_t id_count;
    bool (*bind)(void *ctx, sqlite3_stmt *st);
    void *bind_ctx;
    struct row_set *returning;
    uint64_t changes;
};

static char mark; /* any non-NULL value for the sets */

/* --- capture --- */

static size_t capture_row(struct dml_capture *c, sqlite3 *db,
                          int (*get)(sqlite3 *, int, sqlite3_value **), size_t *size)
{
    size_t at = c->arena.size;
    for (size_t i = 0; i < c->d->column_count; i++) {
        sqlite3_value *v = NULL;
        memset(&c->scratch[i], 0, sizeof c->scratch[i]);
        if (get(db, (int)i, &v) == SQLITE_OK && v != NULL) {
            c->scratch[i] = sql_value_of(v);
        }
        if (c->d->columns[i].affinity == AFF_REAL && c->scratch[i].type == SQL_INT) {
            c->scratch[i] = (struct sql_value){.type = SQL_REAL, .r = (double)c->scratch[i].i};
        }
    }
    row_encode(&c->arena, c->scratch, c->d->column_count);
    *size = c->arena.size - at;
    return at;
}

void dml_preupdate(void *ctx, sqlite3 *db, int op, const char *zdb, const char *table,
                   sqlite3_int64 key1, sqlite3_int64 key2)
{
    struct sql_session *s = ctx;
    struct dml_capture *c = s->capture;
    if (c == NULL || c->too_large || strcmp(zdb, "main") != 0 ||
        sqlite3_stricmp(table, c->d->name) != 0) {
        return;
    }
    if (c->arena.size > LIMIT_TXN_WRITE_BYTES) {
        c->too_large = true;
        return;
    }
    if (c->count == c->cap) {
        c->cap = c->cap == 0 ? 8 : c->cap * 2;
        c->changes = span_realloc(c->changes, c->cap * sizeof *c->changes);
    }
    struct change *x = &c->changes[c->count++];
    memset(x, 0, sizeof *x);
    x->op = op;
    x->old_rowid = key1;
    x->new_rowid = key2;
    if (op != SQLITE_INSERT) {
        x->old_at = capture_row(c, db, sqlite3_preupdate_old, &x->old_size);
    }
    if (op != SQLITE_DELETE) {
        x->new_at = capture_row(c, db, sqlite3_preupdate_new, &x->new_size);
    }
}

static struct slice old_row(const struct dml *m, const struct change *x)
{
    return slice_of(m->cap.arena.data + x->old_at, x->old_size);
}

static struct slice new_row(const struct dml *m, const struct change *x)
{
    return slice_of(m->cap.arena.data + x->new_at, x->new_size);
}

/* --- the working set --- */

/* own: a statement of the gateway's, which the authorizer must let pass if SQLite compiles it
 * again. */
static bool step_done(struct sql_session *s, sqlite3_stmt *st, bool own)
{
    s->internal = own;
    int rc = sqlite3_step(st);
    s->internal = false;
    sqlite3_reset(st);
    if (rc == SQLITE_DONE) {
        return true;
    }
    session_sqlite_error(s, rc);
    return false;
}

static bool clear_shadow(struct dml *m)
{
    struct sql_error keep = m->s->err;
    bool ok = step_done(m->s, m->t->clear, true);
    if (keep.code[0] != '\0') {
        m->s->err = keep;
    }
    return ok;
}

static bool load_row(struct dml *m, struct slice key, struct slice row)
{
    sqlite3_stmt *st = m->t->load;
    struct sql_value *v = m->cap.scratch;
    int at = 1;
    if (row_decode(row, v, m->d->column_count) != SPAN_OK) {
        sql_error_set(&m->s->err, "XX001", "a row of \"%s\" is corrupt", m->d->name);
        return false;
    }
    if (m->d->pk == PK_HIDDEN) {
        uint32_t table = 0;
        uint16_t index = 0;
        struct slice rest;
        struct sql_value r = {0};
        struct buf scratch = {0};
        if (key_parse_prefix(key, &table, &index, &rest)) {
            (void)key_decode(&rest, false, &r, &scratch);
        }
        buf_deinit(&scratch);
        sql_value_bind(st, at++, &r);
    }
    for (size_t i = 0; i < m->d->column_count; i++) {
        if (!m->d->columns[i].generated) {
            sql_value_bind(st, at++, &v[i]);
        }
    }
    return step_done(m->s, st, true);
}

/* Rows an unbounded scan picked were only locked S with the span: X now, in key order (rule C6). */
static bool lock_picked(struct dml *m)
{
    struct sql_session *s = m->s;
    struct buf sql = {0};
    struct span_error err = {0};
    buf_append_str(&sql, "SELECT ");
    if (m->d->pk != PK_COLUMNS) {
        buf_append_str(&sql, "rowid");
    } else {
        for (size_t i = 0; i < m->d->primary.count; i++) {
            buf_append_str(&sql, i == 0 ? "" : ", ");
            sql_quote_ident(&sql, m->d->columns[m->d->primary.columns[i]].name);
        }
    }
    buf_printf(&sql, " FROM main.%s", m->t->quoted);
    sqlite3_stmt *st = session_prepare(s, buf_cstr(&sql), true);
    buf_deinit(&sql);
    bool ok = st != NULL;
    bool more = ok && sqlite3_step(st) == SQLITE_ROW;
    while (ok && more) {
        struct slice k[64];
        struct buf keys[64];
        struct buf values[64];
        bool found[64];
        size_t n = 0;
        memset(keys, 0, sizeof keys);
        memset(values, 0, sizeof values);
        do {
            struct sql_value *v = m->cap.scratch;
            int64_t rowid = sqlite3_column_int64(st, 0);
            for (size_t i = 0; m->d->pk == PK_COLUMNS && i < m->d->primary.count; i++) {
                v[m->d->primary.columns[i]] = sql_value_of(sqlite3_column_value(st, (int)i));
            }
            table_row_key(m->d, v, rowid, &keys[n]);
            k[n] = buf_slice(&keys[n]);
            n++;
            more =
                sqlite3_step(st) == SQLITE_ROW; /* once only: a step after the end starts again */
        } while (more && n < 64);
        span_status rs = s->kv->ops->get_many(s->kv, k, n, KV_LOCK_UPDATE, found, values, &err);
        ok = rs == SPAN_OK || session_fail(s, rs, &err);
        for (size_t i = 0; i < 64; i++) {
            buf_deinit(&keys[i]);
            buf_deinit(&values[i]);
        }
    }
    sqlite3_finalize(st);
    return ok;
}

/* Target rows of UPDATE and DELETE into the working set; *rows how many. */
static bool prefetch(struct dml *m, uint64_t *rows)
{
    struct sql_session *s = m->s;
    s->unbounded_pick = false;
    if (!m->bind(m->bind_ctx, m->p->prefetch)) {
        return false;
    }
    if (!step_done(s, m->p->prefetch, false)) {
        return false;
    }
    *rows = (uint64_t)sqlite3_changes64(s->db);
    if (*rows > 0 && s->unbounded_pick && !s->read_only) {
        return lock_picked(m);
    }
    return true;
}

/* --- automatic ids --- */

static bool set_sequence(struct dml *m)
{
    if (m->d->pk != PK_ROWID || !m->p->is_insert) {
        return true;
    }
    int64_t seq = m->id_first > 0 ? m->id_first - 1 : AUTO_ID_BASE;
    sqlite3_bind_int64(m->t->seq, 1, seq);
    sqlite3_bind_text(m->t->seq, 2, m->d->name, -1, SQLITE_STATIC);
    return step_done(m->s, m->t->seq, true);
}

static bool draw_ids(struct dml *m, uint64_t count, uint64_t above)
{
    struct span_error err = {0};
    uint64_t first = 0;
    uint64_t seen = schema_cache_rowid_seen(m->s->cache, m->d->id, above);
    span_status st = m->s->kv->ops->alloc_ids(m->s->kv, m->d->id, count, seen, &first, &err);
    if (st != SPAN_OK) {
        return session_fail(m->s, st, &err);
    }
    if (first == 0 || first + count >= (uint64_t)AUTO_ID_BASE) {
        sql_error_set(&m->s->err, "54000", "no ids are left for table \"%s\"", m->d->name);
        return false;
    }
    m->id_first = (int64_t)first;
    m->id_count = count;
    return true;
}

/* Did this run use ids that were not drawn, or miss its block? Then draws and asks for another run.
 */
static bool settle_ids(struct dml *m, bool *again)
{
    if (m->d->pk != PK_ROWID || !m->p->is_insert) {
        return true;
    }
    uint64_t undrawn = 0;
    int64_t highest = 0;
    int64_t lo = m->id_first;
    int64_t hi = m->id_first + (int64_t)m->id_count;
    for (size_t i = 0; i < m->cap.count; i++) {
        const struct change *x = &m->cap.changes[i];
        if (x->op != SQLITE_INSERT) {
            continue;
        }
        int64_t id = x->new_rowid;
        if (id > AUTO_ID_BASE) {
            undrawn++;
        } else if (m->id_first == 0 || id < lo || id >= hi) {
            highest = id > highest ? id : highest;
        }
    }
    /* A block that lies below an explicit or loaded id was passed over by SQLite, which goes on
     * above the largest id it sees: draw above it. */
    for (size_t i = 0; i < m->load_count; i++) {
        struct sql_value v;
        if (row_column(buf_slice(&m->load_rows[2 * i + 1]), m->d->pk_column, &v) == SPAN_OK &&
            v.type == SQL_INT && v.i > highest && m->p->auto_rowid) {
            highest = v.i;
        }
    }
    if (undrawn > 0) {
        *again = true;
        return draw_ids(m, undrawn, (uint64_t)highest);
    }
    if (m->id_first > 0 && highest >= hi && m->p->auto_rowid) {
        *again = true;
        return draw_ids(m, m->cap.count, (uint64_t)highest);
    }
    if (highest > 0 && !m->p->auto_rowid) {
        (void)schema_cache_rowid_seen(m->s->cache, m->d->id, (uint64_t)highest);
    }
    return true;
}

/* --- look-ups (rule G1) --- */

static void add_probe(struct dml *m, const struct buf *key, const struct table_index *ix,
                      size_t change)
{
    if (mapb_get(&m->checked, buf_slice(key)) != NULL) {
        return;
    }
    if (m->probe_count == m->probe_cap) {
        size_t cap = m->probe_cap == 0 ? 4 : m->probe_cap * 2;
        m->probes = span_realloc(m->probes, cap * sizeof *m->probes);
        memset(m->probes + m->probe_cap, 0, (cap - m->probe_cap) * sizeof *m->probes);
        m->probe_cap = cap;
    }
    struct probe *p = &m->probes[m->probe_count++];
    buf_set(&p->key, buf_slice(key));
    p->ix = ix;
    p->change = change;
}

/* All primary and unique keys of a captured row: those it gives up leave `created`, or, if they
 * were there before the statement, enter `vacated`; those it takes enter `created`. */
static void note_keys(struct dml *m, struct slice row, int64_t rowid, bool old,
                      struct mapb *created, struct mapb *vacated)
{
    struct buf key = {0};
    if (row_decode(row, m->cap.scratch, m->d->column_count) != SPAN_OK) {
        return;
    }
    for (size_t k = 0; k <= m->d->index_count; k++) {
        buf_clear(&key);
        if (k == m->d->index_count) {
            table_row_key(m->d, m->cap.scratch, rowid, &key);
        } else if (index_is_checked(&m->d->indexes[k], m->cap.scratch)) {
            index_entry_key(m->d, &m->d->indexes[k], m->cap.scratch, rowid, &key);
        } else {
            continue;
        }
        if (!old) {
            mapb_put(created, buf_slice(&key), &mark);
        } else if (mapb_remove(created, buf_slice(&key)) == NULL) {
            mapb_put(vacated, buf_slice(&key), &mark);
        }
    }
    buf_deinit(&key);
}

/* Keys that stored rows have given up in this run: their stored holder is not a conflict. */
static void collect_vacated(struct dml *m, struct mapb *out)
{
    struct mapb created;
    mapb_init(&created);
    for (size_t i = 0; i < m->cap.count; i++) {
        const struct change *x = &m->cap.changes[i];
        if (x->op != SQLITE_INSERT) {
            note_keys(m, old_row(m, x), x->old_rowid, true, &created, out);
        }
        if (x->op != SQLITE_DELETE) {
            note_keys(m, new_row(m, x), x->new_rowid, false, &created, out);
        }
    }
    mapb_deinit(&created);
}

static bool null_in_key(struct dml *m)
{
    for (size_t i = 0; i < m->d->primary.count && m->d->pk == PK_COLUMNS; i++) {
        uint16_t col = m->d->primary.columns[i];
        if (m->cap.scratch[col].type == SQL_NULL) {
            sql_error_set(&m->s->err, "23502", "NOT NULL constraint failed: %s.%s", m->d->name,
                          m->d->columns[col].name);
            snprintf(m->s->err.table, sizeof m->s->err.table, "%.255s", m->d->name);
            snprintf(m->s->err.column, sizeof m->s->err.column, "%.255s", m->d->columns[col].name);
            return true;
        }
    }
    return false;
}

/* A key beyond the limit is refused before the store is asked about it. */
static bool fits(struct dml *m, const struct table_index *ix, const struct buf *key)
{
    if (key->size <= LIMIT_KEY_BYTES) {
        return true;
    }
    index_key_too_large(&m->s->err, m->d, ix, key->size);
    return false;
}

/* New primary and unique keys of one change; the old row's are its own. The limits on rows and on
 * these keys are checked here, before anything is looked up. */
static bool probe_change(struct dml *m, size_t i, struct buf *key, struct buf *old)
{
    const struct change *x = &m->cap.changes[i];
    struct sql_value *v = m->cap.scratch;
    struct sql_value *o = v + m->d->column_count;
    bool update = x->op == SQLITE_UPDATE;
    if (row_decode(new_row(m, x), v, m->d->column_count) != SPAN_OK ||
        (update && row_decode(old_row(m, x), o, m->d->column_count) != SPAN_OK)) {
        sql_error_set(&m->s->err, "XX000", "a captured row cannot be read");
        return false;
    }
    if (null_in_key(m)) {
        return false;
    }
    if (x->new_size > LIMIT_ROW_BYTES) {
        sql_error_set(&m->s->err, "54000",
                      "a row of \"%s\" would have %zu bytes, the limit is %llu", m->d->name,
                      x->new_size, LIMIT_ROW_BYTES);
        snprintf(m->s->err.table, sizeof m->s->err.table, "%.255s", m->d->name);
        sql_error_hint(&m->s->err, "Keep large values in several rows.");
        return false;
    }
    if (update && m->d->pk == PK_HIDDEN && x->old_rowid != x->new_rowid) {
        sql_error_set(&m->s->err, "0A000", "the rowid of \"%s\" cannot be changed", m->d->name);
        sql_error_hint(&m->s->err, "Declare an INTEGER PRIMARY KEY column.");
        return false;
    }
    if (update && PLANTED(UPDATE_LOOKS_NOTHING_UP)) {
        return true;
    }
    if (m->d->pk != PK_HIDDEN) {
        buf_clear(key);
        table_row_key(m->d, v, x->new_rowid, key);
        buf_clear(old);
        if (update) {
            table_row_key(m->d, o, x->old_rowid, old);
        }
        if (!fits(m, &m->d->primary, key)) {
            return false;
        }
        if (!slice_eq(buf_slice(key), buf_slice(old))) {
            add_probe(m, key, NULL, i);
        }
    }
    for (size_t k = 0; k < m->d->index_count; k++) {
        const struct table_index *ix = &m->d->indexes[k];
        if (!index_is_checked(ix, v)) {
            continue;
        }
        buf_clear(key);
        index_entry_key(m->d, ix, v, x->new_rowid, key);
        if (!fits(m, ix, key)) {
            return false;
        }
        buf_clear(old);
        if (update && index_is_checked(ix, o)) {
            index_entry_key(m->d, ix, o, x->old_rowid, old);
        }
        if (!slice_eq(buf_slice(key), buf_slice(old))) {
            add_probe(m, key, ix, i);
        }
    }
    return true;
}

static bool collect_probes(struct dml *m)
{
    struct buf key = {0};
    struct buf old = {0};
    bool ok = true;
    m->probe_count = 0;
    for (size_t i = 0; ok && i < m->cap.count; i++) {
        if (m->cap.changes[i].op != SQLITE_DELETE) {
            ok = probe_change(m, i, &key, &old);
        }
    }
    buf_deinit(&key);
    buf_deinit(&old);
    return ok;
}

static void report_duplicate(struct dml *m, const struct probe *p)
{
    struct sql_error *e = &m->s->err;
    const struct table_index *ix = p->ix == NULL ? &m->d->primary : p->ix;
    struct buf cols = {0};
    for (size_t i = 0; i < ix->count; i++) {
        buf_printf(&cols, "%s%s.%s", i == 0 ? "" : ", ", m->d->name,
                   m->d->columns[ix->columns[i]].name);
    }
    sql_error_set(e, "23505", "UNIQUE constraint failed: %s", buf_cstr(&cols));
    snprintf(e->constraint, sizeof e->constraint, "%.255s", ix->name);
    snprintf(e->table, sizeof e->table, "%.255s", m->d->name);
    buf_deinit(&cols);
}

static void remember_row(struct dml *m, struct slice key, struct slice row)
{
    if (mapb_get(&m->loaded, key) != NULL) {
        return;
    }
    mapb_put(&m->loaded, key, &mark);
    m->load_rows = span_realloc(m->load_rows, 2 * (m->load_count + 1) * sizeof *m->load_rows);
    memset(&m->load_rows[2 * m->load_count], 0, 2 * sizeof *m->load_rows);
    buf_set(&m->load_rows[2 * m->load_count], key);
    buf_set(&m->load_rows[2 * m->load_count + 1], row);
    m->load_count++;
}

/* The row that holds the probed key, for a conflict clause to decide about. */
static bool load_holder(struct dml *m, const struct probe *p, struct slice value)
{
    struct span_error err = {0};
    if (p->ix == NULL) {
        remember_row(m, buf_slice(&p->key), value);
        return true;
    }
    struct buf key = {0};
    struct buf row = {0};
    bool found = false;
    span_status st = index_entry_row_key(m->d, p->ix, value, &key);
    if (st == SPAN_OK) {
        st = m->s->kv->ops->get(m->s->kv, buf_slice(&key), KV_LOCK_UPDATE, &found, &row, &err);
    }
    if (st == SPAN_OK && found) {
        remember_row(m, buf_slice(&key), buf_slice(&row));
    }
    buf_deinit(&key);
    buf_deinit(&row);
    return st == SPAN_OK || session_fail(m->s, st, &err);
}

static bool is_drawn_id(const struct dml *m, const struct probe *p)
{
    int64_t id = m->cap.changes[p->change].new_rowid;
    return p->ix == NULL && m->d->pk == PK_ROWID && m->id_first > 0 && id >= m->id_first &&
           id < m->id_first + (int64_t)m->id_count;
}

/* Largest rowid in the table, for a block of ids that collided with explicit ones. */
static bool largest_rowid(struct dml *m, uint64_t *out)
{
    struct span_error err = {0};
    struct buf start = {0};
    struct buf end = {0};
    struct kv_scan *scan = NULL;
    struct slice k;
    struct slice v;
    struct kv *kv = m->s->kv;
    *out = 0;
    key_index_prefix(&start, m->d->id, 0);
    key_prefix_end(&end, buf_slice(&start));
    span_status st = kv->ops->scan_open(kv, buf_slice(&start), buf_slice(&end), true, KV_LOCK_NONE,
                                        1, &scan, &err);
    if (st == SPAN_OK) {
        st = kv->ops->scan_next(scan, &k, &v, &err);
        struct sql_value id;
        if (st == SPAN_OK && row_column(v, m->d->pk_column, &id) == SPAN_OK && id.i > 0) {
            *out = (uint64_t)id.i;
        }
        kv->ops->scan_close(scan);
    }
    buf_deinit(&start);
    buf_deinit(&end);
    return st == SPAN_OK || st == SPAN_NOT_FOUND || session_fail(m->s, st, &err);
}

/* What the look-ups found. *again: rows were loaded or ids drawn, run once more. */
static bool judge(struct dml *m, const bool *found, const struct buf *values, bool *again)
{
    struct mapb vacated;
    bool have_vacated = false;
    bool ok = true;
    bool redraw = false;
    mapb_init(&vacated);
    for (size_t i = 0; ok && i < m->probe_count; i++) {
        struct probe *p = &m->probes[i];
        if (!found[i]) {
            mapb_put(&m->checked, buf_slice(&p->key), &mark);
            continue;
        }
        if (!have_vacated) {
            have_vacated = true;
            collect_vacated(m, &vacated);
        }
        if (mapb_get(&vacated, buf_slice(&p->key)) != NULL) {
            continue;
        }
        if (is_drawn_id(m, p)) {
            redraw = true;
        } else if (!m->p->resolves_conflicts) {
            report_duplicate(m, p);
            ok = false;
        } else {
            mapb_put(&m->checked, buf_slice(&p->key), &mark);
            ok = load_holder(m, p, buf_slice(&values[i]));
            *again = true;
        }
    }
    mapb_deinit(&vacated);
    if (ok && redraw) {
        uint64_t largest = 0;
        *again = true;
        ok = largest_rowid(m, &largest) && draw_ids(m, m->id_count, largest);
    }
    return ok;
}

static bool look_up(struct dml *m, bool *again)
{
    struct span_error err = {0};
    size_t n = m->probe_count;
    if (n == 0) {
        return true;
    }
    if (n == 1) { /* the common case, without arrays */
        bool found = false;
        struct buf value = {0};
        span_status st = m->s->kv->ops->get(m->s->kv, buf_slice(&m->probes[0].key), KV_LOCK_UPDATE,
                                            &found, &value, &err);
        bool ok = st == SPAN_OK ? judge(m, &found, &value, again) : session_fail(m->s, st, &err);
        buf_deinit(&value);
        return ok;
    }
    struct slice *keys = span_calloc(n, sizeof *keys);
    struct buf *values = span_calloc(n, sizeof *values);
    bool *found = span_calloc(n, sizeof *found);
    for (size_t i = 0; i < n; i++) {
        keys[i] = buf_slice(&m->probes[i].key);
    }
    span_status st =
        m->s->kv->ops->get_many(m->s->kv, keys, n, KV_LOCK_UPDATE, found, values, &err);
    bool ok = st == SPAN_OK ? judge(m, found, values, again) : session_fail(m->s, st, &err);
    for (size_t i = 0; i < n; i++) {
        buf_deinit(&values[i]);
    }
    span_free(keys);
    span_free(values);
    span_free(found);
    return ok;
}

/* --- one run --- */

static void collect_returning(struct dml *m, sqlite3_stmt *st)
{
    struct pg_value v[LIMIT_COLUMNS];
    size_t at[LIMIT_COLUMNS];
    struct buf text = {0};
    size_t n = m->p->column_count < LIMIT_COLUMNS ? m->p->column_count : LIMIT_COLUMNS;
    for (size_t i = 0; i < n; i++) {
        at[i] = text.size;
        v[i].is_null =
            !render_value(sqlite3_column_value(st, (int)i), m->p->columns[i].type_oid, &text);
        v[i].text.size = text.size - at[i];
    }
    for (size_t i = 0; i < n; i++) {
        v[i].text.data = text.data + at[i];
    }
    row_set_add(m->returning, v, n);
    buf_deinit(&text);
}

static bool run_once(struct dml *m)
{
    struct sql_session *s = m->s;
    sqlite3_stmt *st = m->p->run;
    m->cap.count = 0;
    buf_clear(&m->cap.arena);
    rng_init(&s->rng, s->seed);
    if (m->returning != NULL) {
        row_set_deinit(m->returning);
        row_set_init(m->returning, m->p->column_count);
    }
    if (!set_sequence(m) || !m->bind(m->bind_ctx, st)) {
        return false;
    }
    s->capture = &m->cap;
    sqlite3_preupdate_hook(s->db, dml_preupdate, s);
    int rc = 0;
    while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
        if (m->returning != NULL) {
            collect_returning(m, st);
        }
    }
    m->changes = (uint64_t)sqlite3_changes64(s->db);
    sqlite3_preupdate_hook(s->db, NULL, NULL);
    s->capture = NULL;
    if (rc != SQLITE_DONE) {
        session_sqlite_error(s, rc);
        if (strcmp(s->err.code, "23505") == 0) {
            const char *cols = strstr(s->err.message, "failed: ");
            const char *name = cols == NULL ? NULL : table_constraint_of(m->d, cols + 8);
            snprintf(s->err.constraint, sizeof s->err.constraint, "%.255s",
                     name == NULL ? "" : name);
        }
    }
    sqlite3_reset(st);
    if (rc == SQLITE_DONE && m->cap.too_large) {
        sql_error_set(&s->err, "54000", "a transaction writes at most %llu bytes",
                      LIMIT_TXN_WRITE_BYTES);
        sql_error_hint(&s->err, "Split the work into several transactions.");
        return false;
    }
    return rc == SQLITE_DONE;
}

static bool refill(struct dml *m)
{
    uint64_t rows = 0;
    if (!clear_shadow(m) || (m->p->prefetch != NULL && !prefetch(m, &rows))) {
        return false;
    }
    for (size_t i = 0; i < m->load_count; i++) {
        if (!load_row(m, buf_slice(&m->load_rows[2 * i]), buf_slice(&m->load_rows[2 * i + 1]))) {
            return false;
        }
    }
    return true;
}

/* Rows loaded for the check are outside the statement's WHERE (rule G1). */
static bool check_strangers(struct dml *m)
{
    if (m->load_count == 0 || m->p->is_insert) {
        return true;
    }
    struct buf key = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < m->cap.count; i++) {
        const struct change *x = &m->cap.changes[i];
        if (x->op == SQLITE_UPDATE &&
            row_decode(old_row(m, x), m->cap.scratch, m->d->column_count) == SPAN_OK) {
            buf_clear(&key);
            table_row_key(m->d, m->cap.scratch, x->old_rowid, &key);
            ok = mapb_get(&m->loaded, buf_slice(&key)) == NULL;
        }
    }
    buf_deinit(&key);
    if (!ok) {
        sql_error_set(&m->s->err, "0A000",
                      "the rows this statement changes depend on the rows "
                      "its conflict clause removes");
        sql_error_hint(&m->s->err, "Name the rows in WHERE without LIMIT.");
    }
    return ok;
}

/* Captures every row an UPSERT would insert, also those that its failed run did not reach. */
static bool survey(struct dml *m)
{
    struct sql_session *s = m->s;
    sqlite3_preupdate_hook(s->db, dml_preupdate, s);
    sqlite3_stmt *st = session_prepare(s, m->p->survey, false);
    bool ok = st != NULL && set_sequence(m) && m->bind(m->bind_ctx, st);
    m->cap.count = 0;
    buf_clear(&m->cap.arena);
    rng_init(&s->rng, s->seed);
    if (ok) {
        sqlite3_preupdate_hook(s->db, dml_preupdate, s);
        s->capture = &m->cap;
        ok = sqlite3_step(st) == SQLITE_DONE;
        s->capture = NULL;
    }
    sqlite3_preupdate_hook(s->db, NULL, NULL);
    sqlite3_finalize(st);
    return ok && !m->cap.too_large;
}

/* A constraint failed while rows that a conflict clause would have met were not loaded yet: the
 * failure may be the working set's, not the table's. Looks up the keys of all rows; *again if that
 * found rows to load. */
static bool retry_after_error(struct dml *m, bool *again)
{
    struct sql_error keep = m->s->err;
    if (!m->p->resolves_conflicts || strncmp(keep.code, "23", 2) != 0 ||
        (m->cap.count == 0 && m->p->survey == NULL)) {
        return false;
    }
    sql_error_clear(&m->s->err);
    if (m->p->survey != NULL && (!clear_shadow(m) || !survey(m))) {
        m->s->err = keep;
        return false;
    }
    if (!collect_probes(m) || !look_up(m, again)) {
        return false;
    }
    if (!*again) {
        m->s->err = keep;
    }
    return true;
}

static bool run_until_settled(struct dml *m)
{
    for (int run = 0; run < DML_RUNS_MAX; run++) {
        bool again = false;
        if (run > 0 && !refill(m)) {
            return false;
        }
        if (!run_once(m)) {
            if (!retry_after_error(m, &again) || !again) {
                return false;
            }
            continue;
        }
        if (!settle_ids(m, &again)) {
            return false;
        }
        if (again) {
            continue;
        }
        if (!collect_probes(m) || !look_up(m, &again)) {
            return false;
        }
        if (!again) {
            return check_strangers(m);
        }
    }
    sql_error_set(&m->s->err, "54001", "the statement gives new keys each time it is run");
    sql_error_hint(&m->s->err, "It was run %d times; make its keys deterministic.", DML_RUNS_MAX);
    return false;
}

/* --- to the write buffer --- */

static bool put_key(struct dml *m, const struct buf *key, const struct buf *value)
{
    struct span_error err = {0};
    span_status st = m->s->kv->ops->put(m->s->kv, buf_slice(key), buf_slice(value), &err);
    if (st == SPAN_OK) {
        return true;
    }
    (void)session_fail(m->s, st, &err);
    if (st == SPAN_TOO_LARGE) {
        sql_error_hint(&m->s->err, "Split the work into several transactions.");
    }
    return false;
}

static bool del_key(struct dml *m, const struct buf *key)
{
    struct span_error err = {0};
    span_status st = m->s->kv->ops->del(m->s->kv, buf_slice(key), &err);
    return st == SPAN_OK || session_fail(m->s, st, &err);
}

struct apply_bufs {
    struct buf old_key;
    struct buf new_key;
    struct buf old_value;
    struct buf new_value;
};

static bool apply_index(struct dml *m, const struct table_index *ix, const struct change *x,
                        const struct sql_value *o, const struct sql_value *v, int64_t old_rowid,
                        int64_t new_rowid, struct apply_bufs *b)
{
    buf_clear(&b->old_key);
    buf_clear(&b->new_key);
    buf_clear(&b->old_value);
    buf_clear(&b->new_value);
    if (x->op != SQLITE_INSERT) {
        index_entry_key(m->d, ix, o, old_rowid, &b->old_key);
        index_entry_value(m->d, ix, o, old_rowid, &b->old_value);
    }
    if (x->op != SQLITE_DELETE) {
        index_entry_key(m->d, ix, v, new_rowid, &b->new_key);
        index_entry_value(m->d, ix, v, new_rowid, &b->new_value);
    }
    bool same_key = slice_eq(buf_slice(&b->old_key), buf_slice(&b->new_key));
    if (b->old_key.size > 0 && !same_key && !del_key(m, &b->old_key)) {
        return false;
    }
    if (b->new_key.size == 0 ||
        (same_key && slice_eq(buf_slice(&b->old_value), buf_slice(&b->new_value)))) {
        return true;
    }
    return fits(m, ix, &b->new_key) && put_key(m, &b->new_key, &b->new_value);
}

static bool apply_change(struct dml *m, const struct change *x, int64_t old_rowid,
                         int64_t new_rowid, struct apply_bufs *b)
{
    struct sql_value *v = m->cap.scratch;
    struct sql_value *o = v + m->d->column_count;
    span_status st = SPAN_OK;
    buf_clear(&b->old_key);
    buf_clear(&b->new_key);
    buf_clear(&b->new_value);
    if (x->op != SQLITE_INSERT) {
        st = row_decode(old_row(m, x), o, m->d->column_count);
        table_row_key(m->d, o, old_rowid, &b->old_key);
    }
    if (st == SPAN_OK && x->op != SQLITE_DELETE) {
        st = row_decode(new_row(m, x), v, m->d->column_count);
        table_row_key(m->d, v, new_rowid, &b->new_key);
        buf_append_slice(&b->new_value, new_row(m, x));
    }
    if (st != SPAN_OK) {
        sql_error_set(&m->s->err, "XX000", "a captured row cannot be read");
        return false;
    }
    bool same = slice_eq(buf_slice(&b->old_key), buf_slice(&b->new_key));
    if (b->old_key.size > 0 && !same && !del_key(m, &b->old_key)) {
        return false;
    }
    if (b->new_key.size > 0 && !put_key(m, &b->new_key, &b->new_value)) {
        return false;
    }
    for (size_t k = 0; k < m->d->index_count; k++) {
        if (!apply_index(m, &m->d->indexes[k], x, o, v, old_rowid, new_rowid, b)) {
            return false;
        }
    }
    return true;
}

/* Hidden rowids of new rows are drawn only now: nobody has seen those of the working set. */
static bool hidden_ids(struct dml *m, struct map64 *real)
{
    uint64_t fresh = 0;
    if (m->d->pk != PK_HIDDEN) {
        return true;
    }
    for (size_t i = 0; i < m->cap.count; i++) {
        fresh += m->cap.changes[i].op == SQLITE_INSERT ? 1 : 0;
    }
    if (fresh == 0) {
        return true;
    }
    if (!draw_ids(m, fresh, 0)) {
        return false;
    }
    return real != NULL;
}

static bool apply(struct dml *m)
{
    struct apply_bufs b;
    struct map64 real; /* working set's rowid -> drawn rowid */
    memset(&b, 0, sizeof b);
    map64_init(&real);
    bool hidden = m->d->pk == PK_HIDDEN;
    bool ok = hidden_ids(m, &real);
    int64_t next = m->id_first;
    for (size_t i = 0; ok && i < m->cap.count; i++) {
        const struct change *x = &m->cap.changes[i];
        int64_t o = x->old_rowid;
        int64_t n = x->new_rowid;
        if (hidden && x->op == SQLITE_INSERT) {
            map64_put(&real, (uint64_t)n, (void *)(uintptr_t)next);
            n = next++;
            o = n;
        } else if (hidden) {
            void *mapped = map64_get(&real, (uint64_t)o);
            o = mapped != NULL ? (int64_t)(uintptr_t)mapped : o;
            n = o;
        }
        ok = apply_change(m, x, o, n, &b);
        if (ok && x->op == SQLITE_INSERT) {
            sqlite3_set_last_insert_rowid(m->s->db, n);
        }
    }
    map64_deinit(&real);
    buf_deinit(&b.old_key);
    buf_deinit(&b.new_key);
    buf_deinit(&b.old_value);
    buf_deinit(&b.new_value);
    return ok;
}

static void dml_deinit(struct dml *m)
{
    for (size_t i = 0; i < 2 * m->load_count; i++) {
        buf_deinit(&m->load_rows[i]);
    }
    span_free(m->load_rows);
    for (size_t i = 0; i < m->probe_cap; i++) {
        buf_deinit(&m->probes[i].key);
    }
    span_free(m->probes);
    buf_deinit(&m->cap.arena);
    span_free(m->cap.changes);
    span_free(m->cap.scratch);
    mapb_deinit(&m->checked);
    mapb_deinit(&m->loaded);
}

bool dml_run(struct sql_session *s, struct plan *p, bool (*bind)(void *ctx, sqlite3_stmt *st),
             void *ctx, struct row_set *returning, uint64_t *changes)
{
    struct sess_table *t = session_table(s, p->target->name);
    *changes = 0;
    if (t == NULL || !session_need_shadow(s, t)) {
        return false;
    }
    struct dml m = {.s = s,
                    .p = p,
                    .t = t,
                    .d = t->desc,
                    .bind = bind,
                    .bind_ctx = ctx,
                    .returning = returning};
    m.cap.d = t->desc;
    m.cap.scratch = span_calloc(2 * t->desc->column_count + 2, sizeof *m.cap.scratch);
    mapb_init(&m.checked);
    mapb_init(&m.loaded);
    session_use_table(s, t);
    s->dml_target = t->desc->name; /* SQLite may compile the statements again when they run */
    uint64_t rows = 1;
    bool ok = true;
    if (p->prefetch != NULL) {
        rng_init(&s->rng, s->seed);
        ok = prefetch(&m, &rows);
    } else if (p->auto_rowid && t->desc->pk == PK_ROWID && p->values_rows > 0) {
        ok = draw_ids(&m, p->values_rows, 0);
    }
    if (ok && rows > 0) {
        ok = run_until_settled(&m) && apply(&m);
        *changes = m.changes;
    }
    ok = clear_shadow(&m) && ok;
    s->dml_target = NULL;
    dml_deinit(&m);
    return ok;
}
