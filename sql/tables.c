/* The tables a session has declared to SQLite, and where their descriptors come from: what the open
 * transaction changed (overlay), the node's cache, or the store. A declared table stays until its
 * descriptor changes; it is declared when a statement first names it. */
#include "base/alloc.h"
#include "sql/ddl.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <strings.h>

struct overlay *session_overlay_find(struct sql_session *s, const char *name)
{
    for (size_t i = s->overlay_count; i > 0; i--) {
        if (strcasecmp(s->overlays[i - 1].name, name) == 0) {
            return &s->overlays[i - 1];
        }
    }
    return NULL;
}

static struct overlay *overlay_slot(struct sql_session *s, const char *name)
{
    struct overlay *o = session_overlay_find(s, name);
    if (o != NULL) {
        return o;
    }
    s->overlays = span_realloc(s->overlays, (s->overlay_count + 1) * sizeof *s->overlays);
    o = &s->overlays[s->overlay_count++];
    memset(o, 0, sizeof *o);
    o->name = span_strdup(name);
    return o;
}

void session_overlay_set(struct sql_session *s, const char *name, struct table_desc *d,
                         bool created)
{
    struct overlay *o = overlay_slot(s, name);
    s->ddl_count++; /* also where the statement fails later: no savepoint brings the old one back */
    table_desc_unref(o->desc);
    o->desc = d;
    o->created = o->created || created;
    o->pinned = false;
    session_undeclare(s, name);
    s->resync = true;
}

void session_overlay_end(struct sql_session *s, bool committed)
{
    for (size_t i = 0; i < s->overlay_count; i++) {
        struct overlay *o = &s->overlays[i];
        if (committed && !o->pinned) {
            schema_cache_drop(s->cache, o->name);
            if (o->desc != NULL && o->desc->kind != DESC_INDEX_NAME) {
                schema_cache_put(s->cache, o->desc);
            }
        }
        table_desc_unref(o->desc);
        span_free(o->name);
        s->resync = true;
    }
    span_free(s->overlays);
    s->overlays = NULL;
    s->overlay_count = 0;
}

static bool load_desc(struct sql_session *s, const char *name, struct table_desc **out)
{
    struct span_error err = {0};
    bool own = !s->kv_open;
    if (own) {
        struct kv_txn_options opt = {.read_only = true, .mode = KV_READ_STRONG, .autocommit = true};
        span_status st = s->kv->ops->begin(s->kv, &opt, &err);
        if (st != SPAN_OK) {
            return session_fail(s, st, &err);
        }
    }
    span_status st = schema_load(s->kv, name, KV_LOCK_NONE, out, &err);
    if (own) {
        s->kv->ops->rollback(s->kv);
    }
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    return true;
}

bool session_find_desc(struct sql_session *s, const char *name, struct table_desc **out)
{
    *out = NULL;
    struct overlay *o = session_overlay_find(s, name);
    if (o != NULL) {
        *out = o->desc == NULL ? NULL : table_desc_ref(o->desc);
        return true;
    }
    *out = schema_cache_get(s->cache, name);
    if (*out != NULL || strlen(name) > LIMIT_NAME_BYTES) {
        return true;
    }
    if (!load_desc(s, name, out)) {
        return false;
    }
    if (*out != NULL && (*out)->kind != DESC_INDEX_NAME) {
        if (s->historical) {
            struct overlay *pin = overlay_slot(s, name);
            pin->desc = table_desc_ref(*out);
            pin->pinned = true;
            return true;
        }
        schema_cache_put(s->cache, *out);
        struct table_desc *shared = schema_cache_get(s->cache, name);
        if (shared != NULL) {
            table_desc_unref(*out);
            *out = shared;
        }
    }
    return true;
}

static void table_free(struct sess_table *t)
{
    sqlite3_finalize(t->load);
    sqlite3_finalize(t->clear);
    sqlite3_finalize(t->seq);
    for (size_t i = 0; i < t->shape.index_count; i++) {
        span_free((void *)(uintptr_t)t->vindexes[i].collations);
    }
    span_free(t->vindexes);
    span_free(t->index_of);
    span_free(t->column_names);
    span_free(t->declare);
    span_free(t->quoted);
    table_desc_unref(t->desc);
    span_free(t);
}

static uint64_t column_bit(size_t column)
{
    return (uint64_t)1 << (column >= 63 ? 63 : column);
}

static void shape_index(struct sess_table *t, struct vtab_index *vi, const struct table_index *ix)
{
    const char **colls = span_calloc(ix->count + 1, sizeof *colls);
    vi->count = ix->count;
    vi->columns = ix->columns;
    vi->desc = ix->desc;
    vi->unique = ix->unique;
    vi->covers = 0;
    for (size_t i = 0; i < ix->count; i++) {
        colls[i] = sql_collation_name(ix->collations[i]);
        vi->covers |= column_bit(ix->columns[i]);
    }
    for (size_t i = 0; i < t->desc->primary.count; i++) {
        vi->covers |= column_bit(t->desc->primary.columns[i]);
    }
    if (t->desc->column_count > 63) {
        vi->covers &= ~column_bit(63);
    }
    vi->collations = colls;
    vi->name = ix->name;
}

static void shape_build(struct sess_table *t)
{
    struct table_desc *d = t->desc;
    t->vindexes = span_calloc(d->index_count + 1, sizeof *t->vindexes);
    t->index_of = span_calloc(d->index_count + 1, sizeof *t->index_of);
    shape_index(t, &t->vindexes[0], &d->primary);
    t->vindexes[0].covers = ~(uint64_t)0;
    t->vindexes[0].unique = true;
    size_t n = 1;
    for (size_t i = 0; i < d->index_count; i++) {
        if (d->indexes[i].state == INDEX_PUBLIC) {
            t->index_of[n] = (uint16_t)i;
            shape_index(t, &t->vindexes[n++], &d->indexes[i]);
        }
    }
    t->column_names = span_calloc(d->column_count + 1, sizeof *t->column_names);
    for (size_t i = 0; i < d->column_count; i++) {
        t->column_names[i] = d->columns[i].name;
    }
    struct buf b = {0};
    buf_append_str(&b, "CREATE TABLE x(");
    for (size_t i = 0; i < d->column_count; i++) {
        const struct table_column *c = &d->columns[i];
        buf_append_str(&b, i == 0 ? "" : ", ");
        sql_quote_ident(&b, c->name);
        buf_printf(&b, " %s COLLATE %s", c->decl_type, sql_collation_name(c->collation));
    }
    if (d->pk == PK_COLUMNS) {
        buf_append_str(&b, ", PRIMARY KEY(");
        for (size_t i = 0; i < d->primary.count; i++) {
            buf_append_str(&b, i == 0 ? "" : ", ");
            sql_quote_ident(&b, d->columns[d->primary.columns[i]].name);
        }
        buf_append_str(&b, ")) WITHOUT ROWID");
    } else {
        buf_append_str(&b, ")");
    }
    t->declare = span_strdup(buf_cstr(&b));
    buf_deinit(&b);
    t->shape = (struct vtab_shape){
        .declare = t->declare,
        .column_count = d->column_count,
        .has_rowid = d->pk != PK_COLUMNS,
        .rowid_column = d->pk == PK_ROWID ? d->pk_column : -1,
        .index_count = n,
        .indexes = t->vindexes,
        .column_names = t->column_names,
    };
}

static bool declare_view(struct sql_session *s, struct sess_table *t)
{
    struct buf sql = {0};
    bool ok = ddl_view_sql(t->desc, &sql) && session_exec(s, buf_cstr(&sql));
    buf_deinit(&sql);
    return ok;
}

static bool declare_table(struct sql_session *s, struct sess_table *t)
{
    struct buf sql = {0};
    buf_printf(&sql, "CREATE VIRTUAL TABLE temp.%s USING spanlite", t->quoted);
    bool ok = session_exec(s, buf_cstr(&sql));
    buf_deinit(&sql);
    return ok;
}

bool session_declare(struct sql_session *s, const char *name, bool *declared)
{
    struct table_desc *d = NULL;
    *declared = false;
    if (!session_find_desc(s, name, &d)) {
        return false;
    }
    if (d == NULL || d->kind == DESC_INDEX_NAME) {
        table_desc_unref(d);
        return true;
    }
    struct buf low = {0};
    schema_lower(name, &low);
    if (mapb_get(&s->tables, buf_slice(&low)) != NULL) {
        buf_deinit(&low);
        table_desc_unref(d);
        return true;
    }
    struct sess_table *t = SPAN_NEW(struct sess_table);
    struct buf q = {0};
    t->s = s;
    t->desc = d;
    sql_quote_ident(&q, d->name);
    t->quoted = span_strdup(buf_cstr(&q));
    buf_deinit(&q);
    t->is_view = d->kind == DESC_VIEW;
    if (!t->is_view) {
        shape_build(t);
    }
    mapb_put(&s->tables, buf_slice(&low), t);
    bool ok = t->is_view ? declare_view(s, t) : declare_table(s, t);
    s->view_count += ok && t->is_view ? 1 : 0;
    if (!ok) {
        mapb_remove(&s->tables, buf_slice(&low));
        table_free(t);
    }
    buf_deinit(&low);
    *declared = ok;
    return ok;
}

struct sess_table *session_table(struct sql_session *s, const char *name)
{
    struct buf low = {0};
    schema_lower(name, &low);
    struct sess_table *t = mapb_get(&s->tables, buf_slice(&low));
    if (t == NULL) {
        bool declared = false;
        if (session_declare(s, name, &declared)) {
            t = mapb_get(&s->tables, buf_slice(&low));
            if (t == NULL) {
                sql_error_set(&s->err, "42P01", "no such table: %s", name);
                snprintf(s->err.table, sizeof s->err.table, "%.255s", name);
            }
        }
    }
    buf_deinit(&low);
    return t;
}

bool session_need_update_twin(struct sql_session *s, struct sess_table *t)
{
    if (t->has_update) {
        return true;
    }
    struct buf sql = {0};
    struct buf name = {0};
    buf_printf(&name, "%s%s", UPDATE_PREFIX, t->desc->name);
    buf_append_str(&sql, "CREATE VIRTUAL TABLE temp.");
    sql_quote_ident(&sql, buf_cstr(&name));
    buf_append_str(&sql, " USING spanlite");
    t->has_update = session_exec(s, buf_cstr(&sql));
    buf_deinit(&sql);
    buf_deinit(&name);
    return t->has_update;
}

/* A name for the hidden rowid that no column of the table hides. */
static const char *rowid_name(const struct table_desc *d)
{
    static const char *const names[] = {"rowid", "_rowid_", "oid"};
    for (size_t i = 0; i < 3; i++) {
        if (table_find_column(d, names[i]) < 0) {
            return names[i];
        }
    }
    return names[0];
}

void session_stored_columns(const struct table_desc *d, struct buf *out)
{
    bool first = true;
    if (d->pk == PK_HIDDEN) {
        buf_append_str(out, rowid_name(d));
        first = false;
    }
    for (size_t i = 0; i < d->column_count; i++) {
        if (!d->columns[i].generated) {
            buf_append_str(out, first ? "" : ", ");
            sql_quote_ident(out, d->columns[i].name);
            first = false;
        }
    }
}

static bool shadow_statements(struct sql_session *s, struct sess_table *t)
{
    struct buf sql = {0};
    size_t n = t->desc->pk == PK_HIDDEN ? 1 : 0;
    for (size_t i = 0; i < t->desc->column_count; i++) {
        n += t->desc->columns[i].generated ? 0 : 1;
    }
    buf_printf(&sql, "INSERT INTO main.%s(", t->quoted);
    session_stored_columns(t->desc, &sql);
    buf_append_str(&sql, ") VALUES(");
    for (size_t i = 1; i <= n; i++) {
        buf_printf(&sql, "%s?%zu", i == 1 ? "" : ", ", i);
    }
    buf_append_str(&sql, ")");
    t->load = session_prepare(s, buf_cstr(&sql), true);
    buf_clear(&sql);
    buf_printf(&sql, "DELETE FROM main.%s", t->quoted);
    /* Without a preupdate hook SQLite clears the table in one step instead of row by row. */
    t->clear = t->load == NULL ? NULL : session_prepare(s, buf_cstr(&sql), true);
    if (t->clear != NULL && t->desc->pk == PK_ROWID) {
        t->seq =
            session_prepare(s, "UPDATE main.sqlite_sequence SET seq = ?1 WHERE name = ?2", true);
    }
    buf_deinit(&sql);
    return t->clear != NULL && (t->desc->pk != PK_ROWID || t->seq != NULL);
}

bool session_need_shadow(struct sql_session *s, struct sess_table *t)
{
    if (t->has_shadow) {
        return true;
    }
    struct buf sql = {0};
    bool ok = ddl_shadow_sql(t->desc, &sql, &s->err) && session_exec(s, buf_cstr(&sql));
    if (ok) {
        t->has_shadow = true;
        if (t->desc->pk == PK_ROWID) {
            sqlite3_stmt *st = session_prepare(
                s, "INSERT INTO main.sqlite_sequence(name, seq) VALUES(?1, 0)", true);
            ok = st != NULL;
            if (ok) {
                sqlite3_bind_text(st, 1, t->desc->name, -1, SQLITE_STATIC);
                s->internal = true;
                ok = sqlite3_step(st) == SQLITE_DONE;
                s->internal = false;
                sqlite3_finalize(st);
            }
        }
        ok = ok && shadow_statements(s, t);
    }
    buf_deinit(&sql);
    if (!ok && t->has_shadow) {
        struct buf drop = {0};
        buf_printf(&drop, "DROP TABLE IF EXISTS main.%s", t->quoted);
        struct sql_error keep = s->err;
        (void)session_exec(s, buf_cstr(&drop));
        s->err = keep;
        buf_deinit(&drop);
        t->has_shadow = false;
    }
    return ok;
}

static void undeclare(struct sql_session *s, struct sess_table *t)
{
    struct sql_error keep = s->err;
    struct buf sql = {0};
    session_plans_clear(s);
    sqlite3_finalize(t->load);
    sqlite3_finalize(t->clear);
    sqlite3_finalize(t->seq);
    t->load = NULL;
    t->clear = NULL;
    t->seq = NULL;
    if (t->is_view) {
        s->view_count--;
        buf_printf(&sql, "DROP VIEW IF EXISTS temp.%s", t->quoted);
    } else {
        buf_printf(&sql, "DROP TABLE IF EXISTS temp.%s;", t->quoted);
        if (t->has_shadow) {
            buf_printf(&sql, "DROP TABLE IF EXISTS main.%s;", t->quoted);
        }
        if (t->has_update) {
            struct buf name = {0};
            buf_printf(&name, "%s%s", UPDATE_PREFIX, t->desc->name);
            buf_append_str(&sql, "DROP TABLE IF EXISTS temp.");
            sql_quote_ident(&sql, buf_cstr(&name));
            buf_deinit(&name);
        }
    }
    (void)session_exec(s, buf_cstr(&sql));
    s->err = keep;
    buf_deinit(&sql);
    struct buf low = {0};
    schema_lower(t->desc->name, &low);
    mapb_remove(&s->tables, buf_slice(&low));
    buf_deinit(&low);
    table_free(t);
}

void session_undeclare(struct sql_session *s, const char *name)
{
    struct buf low = {0};
    schema_lower(name, &low);
    struct sess_table *t = mapb_get(&s->tables, buf_slice(&low));
    buf_deinit(&low);
    if (t != NULL) {
        undeclare(s, t);
    }
}

static struct sess_table *first_table(struct sql_session *s)
{
    size_t pos = 0;
    struct slice key;
    return mapb_next(&s->tables, &pos, &key);
}

void session_undeclare_all(struct sql_session *s)
{
    for (struct sess_table *t; (t = first_table(s)) != NULL;) {
        undeclare(s, t);
    }
}

/* Is the declared table still what the name means? */
static bool is_current(struct sql_session *s, struct sess_table *t)
{
    struct overlay *o = session_overlay_find(s, t->desc->name);
    if (o != NULL) {
        return o->desc == t->desc;
    }
    struct table_desc *d = schema_cache_get(s->cache, t->desc->name);
    bool same = d == t->desc;
    table_desc_unref(d);
    return same;
}

/* A view has no keys whose range could refuse an old definition (rule E2), so each transaction
 * compares the views of this session with the store before it uses them. */
static void refresh_views(struct sql_session *s)
{
    if (s->view_count == 0 || s->views_epoch == s->epoch) {
        return;
    }
    s->views_epoch = s->epoch;
    size_t pos = 0;
    struct slice key;
    for (struct sess_table *t; (t = mapb_next(&s->tables, &pos, &key)) != NULL;) {
        struct table_desc *d = NULL;
        if (!t->is_view || session_overlay_find(s, t->desc->name) != NULL ||
            !load_desc(s, t->desc->name, &d)) {
            continue;
        }
        bool same = d != NULL && d->kind == DESC_VIEW && strcmp(d->sql, t->desc->sql) == 0;
        if (!same) {
            schema_cache_drop(s->cache, t->desc->name);
            s->resync = true;
        }
        table_desc_unref(d);
    }
}

void session_sync_schema(struct sql_session *s)
{
    refresh_views(s);
    uint64_t gen = schema_cache_generation(s->cache);
    if (gen == s->cache_seen && !s->resync) {
        return;
    }
    s->cache_seen = gen;
    s->resync = false;
    for (bool again = true; again;) {
        size_t pos = 0;
        struct slice key;
        again = false;
        for (struct sess_table *t; (t = mapb_next(&s->tables, &pos, &key)) != NULL;) {
            if (!is_current(s, t)) {
                undeclare(s, t);
                again = true;
                break;
            }
        }
    }
}

void session_forget_schema(struct sql_session *s)
{
    size_t pos = 0;
    struct slice key;
    for (struct sess_table *t; (t = mapb_next(&s->tables, &pos, &key)) != NULL;) {
        if (t->used_epoch == s->epoch || t->is_view) {
            schema_cache_drop(s->cache, t->desc->name);
        }
    }
    s->resync = true;
}

bool session_pin_old_schema(struct sql_session *s)
{
    size_t pos = 0;
    struct slice key;
    for (struct sess_table *t; (t = mapb_next(&s->tables, &pos, &key)) != NULL;) {
        if (t->used_epoch != s->epoch || session_overlay_find(s, t->desc->name) != NULL) {
            continue;
        }
        struct table_desc *d = NULL;
        if (!load_desc(s, t->desc->name, &d)) {
            return false;
        }
        struct overlay *o = overlay_slot(s, t->desc->name);
        o->desc = d;
        o->pinned = true;
    }
    s->resync = true;
    return true;
}

void session_use_desc(struct sql_session *s, const struct table_desc *d)
{
    struct overlay *o = session_overlay_find(s, d->name);
    if (o != NULL && !o->pinned) {
        return; /* this transaction's own DDL: its keys keep the version noted before it */
    }
    s->kv->ops->use_table(s->kv, d->id, d->version);
}

void session_use_table(struct sql_session *s, struct sess_table *t)
{
    if (t->used_epoch != s->epoch) {
        t->used_epoch = s->epoch;
        session_use_desc(s, t->desc);
    }
}
