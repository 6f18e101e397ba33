/* The sqlite3_module around a row source; see vtab.h. */
#include "sql/vtab/vtab.h"

#include <string.h>

struct source {
    const struct vtab_source_ops *ops;
    void *ctx;
};

struct table {
    sqlite3_vtab base;
    struct source *src;
    void *handle;
    const struct vtab_shape *shape;
};

struct cursor {
    sqlite3_vtab_cursor base;
    struct source *src;
    void *handle;
};

static struct table *table_of(sqlite3_vtab *t)
{
    return (struct table *)(void *)t;
}

static struct cursor *cursor_from(sqlite3_vtab_cursor *c)
{
    return (struct cursor *)(void *)c;
}

static int vt_connect(sqlite3 *db, void *aux, int argc, const char *const *argv, sqlite3_vtab **out,
                      char **msg)
{
    (void)argc;
    struct source *src = aux;
    struct table *t = sqlite3_malloc(sizeof *t);
    if (t == NULL) {
        return SQLITE_NOMEM;
    }
    memset(t, 0, sizeof *t);
    t->src = src;
    int rc = src->ops->attach(src->ctx, argv[2], &t->handle, &t->shape, msg);
    if (rc == SQLITE_OK) {
        rc = sqlite3_declare_vtab(db, t->shape->declare);
        if (rc != SQLITE_OK) {
            *msg = sqlite3_mprintf("%s", sqlite3_errmsg(db));
            src->ops->release(src->ctx, t->handle);
        }
    }
    if (rc != SQLITE_OK) {
        sqlite3_free(t);
        return rc;
    }
    *out = &t->base;
    return SQLITE_OK;
}

static int vt_disconnect(sqlite3_vtab *vt)
{
    struct table *t = table_of(vt);
    t->src->ops->release(t->src->ctx, t->handle);
    sqlite3_free(t);
    return SQLITE_OK;
}

static int vt_best_index(sqlite3_vtab *vt, sqlite3_index_info *info)
{
    return vtab_plan_best(table_of(vt)->shape, info);
}

static int vt_open(sqlite3_vtab *vt, sqlite3_vtab_cursor **out)
{
    struct table *t = table_of(vt);
    struct cursor *c = sqlite3_malloc(sizeof *c);
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    memset(c, 0, sizeof *c);
    c->src = t->src;
    int rc = t->src->ops->open(t->src->ctx, t->handle, &c->handle);
    if (rc != SQLITE_OK) {
        sqlite3_free(c);
        return rc;
    }
    *out = &c->base;
    return SQLITE_OK;
}

static int vt_close(sqlite3_vtab_cursor *cur)
{
    struct cursor *c = cursor_from(cur);
    c->src->ops->close(c->handle);
    sqlite3_free(c);
    return SQLITE_OK;
}

static void set_message(sqlite3_vtab_cursor *cur, char *msg)
{
    if (msg != NULL) {
        sqlite3_free(cur->pVtab->zErrMsg);
        cur->pVtab->zErrMsg = msg;
    }
}

static int vt_filter(sqlite3_vtab_cursor *cur, int idx_num, const char *idx_str, int argc,
                     sqlite3_value **argv)
{
    (void)idx_num;
    struct cursor *c = cursor_from(cur);
    struct vtab_scan scan;
    memset(&scan, 0, sizeof scan);
    if (idx_str == NULL || !vtab_plan_parse(idx_str, &scan.plan)) {
        return SQLITE_ERROR;
    }
    int need = (int)scan.plan.eq_count + (scan.plan.has_lo ? 1 : 0) + (scan.plan.has_hi ? 1 : 0);
    if (need != argc) {
        return SQLITE_ERROR;
    }
    scan.eq = argv;
    int at = (int)scan.plan.eq_count;
    if (scan.plan.has_lo) {
        scan.lo = argv[at++];
    }
    if (scan.plan.has_hi) {
        scan.hi = argv[at];
    }
    char *msg = NULL;
    int rc = c->src->ops->filter(c->handle, &scan, &msg);
    set_message(cur, msg);
    return rc;
}

static int vt_next(sqlite3_vtab_cursor *cur)
{
    struct cursor *c = cursor_from(cur);
    char *msg = NULL;
    int rc = c->src->ops->next(c->handle, &msg);
    set_message(cur, msg);
    return rc;
}

static int vt_eof(sqlite3_vtab_cursor *cur)
{
    struct cursor *c = cursor_from(cur);
    return c->src->ops->eof(c->handle) ? 1 : 0;
}

static int vt_column(sqlite3_vtab_cursor *cur, sqlite3_context *out, int column)
{
    struct cursor *c = cursor_from(cur);
    return c->src->ops->column(c->handle, out, column);
}

static int vt_rowid(sqlite3_vtab_cursor *cur, sqlite3_int64 *out)
{
    struct cursor *c = cursor_from(cur);
    *out = c->src->ops->rowid(c->handle);
    return SQLITE_OK;
}

static const sqlite3_module module = {
    .iVersion = 2,
    .xCreate = vt_connect,
    .xConnect = vt_connect,
    .xBestIndex = vt_best_index,
    .xDisconnect = vt_disconnect,
    .xDestroy = vt_disconnect,
    .xOpen = vt_open,
    .xClose = vt_close,
    .xFilter = vt_filter,
    .xNext = vt_next,
    .xEof = vt_eof,
    .xColumn = vt_column,
    .xRowid = vt_rowid,
};

int vtab_register(sqlite3 *db, const char *name, const struct vtab_source_ops *ops, void *ctx)
{
    struct source *src = sqlite3_malloc(sizeof *src);
    if (src == NULL) {
        return SQLITE_NOMEM;
    }
    src->ops = ops;
    src->ctx = ctx;
    return sqlite3_create_module_v2(db, name, &module, src, sqlite3_free);
}
