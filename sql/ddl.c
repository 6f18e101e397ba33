/* DDL statements; see ddl.h. Reading definitions is in describe.c, building an index online in
 * backfill.c. */
#include "sql/ddl.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl_impl.h"
#include "sql/dml.h"
#include "sql/index.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <strings.h>

#define RANGE_HINT "Tables are split with ALTER TABLE t SPLIT AT VALUES (..), (..)."

bool ddl_text_init(struct ddl_text *x, struct sql_session *s)
{
    size_t bad = 0;
    memset(x, 0, sizeof *x);
    buf_set(&x->sql, buf_slice(&s->rewritten.text));
    if (sql_tokenize(buf_slice(&x->sql), &x->t, &bad) != SPAN_OK) {
        sql_error_set(&s->err, "42601", "syntax error");
        ddl_text_deinit(x);
        return false;
    }
    return true;
}

void ddl_text_deinit(struct ddl_text *x)
{
    sql_tokens_deinit(&x->t);
    buf_deinit(&x->sql);
    buf_deinit(&x->name);
    buf_deinit(&x->table);
}

bool ddl_take_name(struct sql_session *s, const struct sql_tokens *t, size_t *at, struct buf *out)
{
    size_t i = *at;
    if (i < t->count && t->t[i].kind != TOK_WORD && t->t[i].kind != TOK_QUOTED) {
        i = t->count;
    }
    if (i < t->count && sql_token_op(t, i + 1, ".")) {
        sql_token_name(t, i, out);
        sql_error_set(&s->err, "3F000", "schema \"%s\" does not exist", buf_cstr(out));
        sql_error_hint(&s->err, "There is one schema, public.");
        return false;
    }
    if (i >= t->count) {
        struct slice near = sql_token_text(t, *at);
        sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                      (const char *)near.data);
        return false;
    }
    sql_token_name(t, i, out);
    if (out->size > LIMIT_NAME_BYTES) {
        sql_error_set(&s->err, "42622", "a name has at most %d bytes", LIMIT_NAME_BYTES);
        return false;
    }
    *at = i + 1;
    return true;
}

bool ddl_if(const struct sql_tokens *t, size_t *at, bool not_exists)
{
    if (!sql_token_is(t, *at, "IF")) {
        return false;
    }
    *at += not_exists ? 3 : 2;
    return true;
}

/* Descriptor of a name under lock, so that two sessions cannot both act on it. */
bool ddl_lock_name(struct sql_session *s, const char *name, struct table_desc **out)
{
    struct span_error err = {0};
    struct overlay *o = session_overlay_find(s, name);
    if (o != NULL && !o->pinned) {
        *out = o->desc == NULL ? NULL : table_desc_ref(o->desc);
        return true;
    }
    span_status st = schema_load(s->kv, name, KV_LOCK_UPDATE, out, &err);
    return st == SPAN_OK || session_fail(s, st, &err);
}

bool ddl_put_desc(struct sql_session *s, struct table_desc *d, bool created)
{
    struct span_error err = {0};
    span_status st = schema_store(s->kv, d, &err);
    if (st == SPAN_OK && d->kind == DESC_TABLE) {
        st = s->kv->ops->put_schema_version(s->kv, d->id, d->version, &err);
    }
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    session_overlay_set(s, d->name, table_desc_ref(d), created);
    return true;
}

bool ddl_delete_name(struct sql_session *s, const char *name)
{
    struct span_error err = {0};
    struct buf key = {0};
    schema_name_key(name, &key);
    span_status st = s->kv->ops->del(s->kv, buf_slice(&key), &err);
    buf_deinit(&key);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    session_overlay_set(s, name, NULL, false);
    return true;
}

bool ddl_delete_index_span(struct sql_session *s, uint32_t table, uint16_t index)
{
    struct buf start = {0};
    struct buf end = {0};
    key_index_prefix(&start, table, index);
    key_prefix_end(&end, buf_slice(&start));
    bool ok = ddl_remove_span(s, buf_slice(&start), buf_slice(&end));
    buf_deinit(&start);
    buf_deinit(&end);
    return ok;
}

static bool delete_table_span(struct sql_session *s, uint32_t table)
{
    struct buf start = {0};
    struct buf end = {0};
    key_table_start(&start, table);
    key_table_end(&end, table);
    bool ok = ddl_remove_span(s, buf_slice(&start), buf_slice(&end));
    buf_deinit(&start);
    buf_deinit(&end);
    return ok;
}

/* --- CREATE TABLE --- */

static bool refuse(struct sql_session *s, const char *what, const char *hint)
{
    sql_error_set(&s->err, "0A000", "%s", what);
    sql_error_hint(&s->err, "%s", hint);
    return false;
}

/* Constructs that SQLite would take and then not enforce, or that mean something else here. */
static bool check_body(struct sql_session *s, const struct sql_tokens *t, size_t open)
{
    for (size_t i = open; i < t->count; i++) {
        if (t->t[i].kind != TOK_WORD) {
            continue;
        }
        bool column = t->t[i].depth == 1;
        if (column && (sql_token_is(t, i, "REFERENCES") || sql_token_is(t, i, "FOREIGN")) &&
            !sql_token_op(t, i - 1, "(") && !sql_token_op(t, i - 1, ",")) {
            return refuse(s, "foreign keys are not supported yet",
                          "Leave the REFERENCES clause out and check in the transaction.");
        }
        if (column && sql_token_is(t, i, "FOREIGN") && sql_token_is(t, i + 1, "KEY")) {
            return refuse(s, "foreign keys are not supported yet",
                          "Leave the FOREIGN KEY clause out and check in the transaction.");
        }
        bool item = i > open && t->t[i - 1].kind == TOK_OP; /* behind ( or , */
        if (column && item && sql_token_is(t, i, "LIKE") && i + 1 < t->count &&
            (t->t[i + 1].kind == TOK_WORD || t->t[i + 1].kind == TOK_QUOTED)) {
            return refuse(s, "LIKE in CREATE TABLE is not supported",
                          "SHOW CREATE TABLE shows the other one's text; CREATE TABLE t AS SELECT "
                          ".. takes columns and rows, without constraints.");
        }
        if (column && !item && sql_token_is(t, i, "DEFERRABLE") && !sql_token_is(t, i - 1, "NOT")) {
            return refuse(s, "DEFERRABLE is not supported",
                          "Constraints are checked by each statement.");
        }
        if (column && sql_token_is(t, i, "IDENTITY")) {
            return refuse(s, "identity columns are not supported",
                          "Declare the column INTEGER PRIMARY KEY: ids are given automatically.");
        }
        bool serial = sql_token_is(t, i, "SERIAL") || sql_token_is(t, i, "BIGSERIAL") ||
                      sql_token_is(t, i, "SMALLSERIAL");
        if (column && serial && t->t[i - 1].kind != TOK_OP && !sql_token_op(t, i - 1, "(")) {
            return refuse(s, "type serial is not supported",
                          "Declare the column INTEGER PRIMARY KEY: ids are given automatically.");
        }
    }
    return true;
}

/* Is WITH (..) at token i what every table is? PostgreSQL's fillfactor 100 is. */
static bool check_storage(struct sql_session *s, const struct sql_tokens *t, size_t i)
{
    bool full = sql_token_is(t, i + 2, "fillfactor") && sql_token_op(t, i + 3, "=") &&
                slice_eq(sql_token_text(t, i + 4), slice_str("100")) &&
                sql_token_op(t, i + 5, ")") && i + 6 == t->count;
    return full ||
           refuse(s, "storage parameters of tables are not supported", "Leave WITH (..) out.");
}

/* CREATE TABLE "name" body options, without schema, IF NOT EXISTS and PostgreSQL's WITH (..). */
static bool table_text(struct sql_session *s, const struct ddl_text *x, size_t open,
                       struct buf *out)
{
    const struct sql_tokens *t = &x->t;
    size_t last = t->count;
    for (size_t i = open; i < t->count; i++) {
        if (t->t[i].depth == 0 && sql_token_is(t, i, "WITH") && sql_token_op(t, i + 1, "(")) {
            last = i;
            if (!check_storage(s, t, i)) {
                return false;
            }
            break;
        }
    }
    buf_append_str(out, "CREATE TABLE ");
    sql_quote_ident(out, (const char *)x->name.data);
    buf_append(out, t->src.data + t->t[open].start, t->t[last - 1].end - t->t[open].start);
    (void)buf_cstr(out);
    return true;
}

static bool store_new_table(struct sql_session *s, struct table_desc *d)
{
    struct span_error err = {0};
    uint64_t n = 0;
    span_status st = s->kv->ops->alloc_ids(s->kv, COUNTER_TABLE_ID, 1, 0, &n, &err);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    if (n >= UINT32_MAX - KEY_USER_TABLE_MIN) {
        sql_error_set(&s->err, "54000", "no table ids are left");
        return false;
    }
    d->id = (uint32_t)(KEY_USER_TABLE_MIN - 1 + n);
    return ddl_put_desc(s, d, true);
}

/* Column definitions of CREATE TABLE .. AS SELECT: names and declared types as SQLite tells them.
 */
static bool columns_of_select(struct sql_session *s, const char *select, struct buf *out)
{
    sqlite3_stmt *st = session_prepare(s, select, false);
    if (st == NULL) {
        return false;
    }
    for (int i = 0; i < sqlite3_column_count(st); i++) {
        const char *type = sqlite3_column_decltype(st, i);
        buf_append_str(out, i == 0 ? "(" : ", ");
        sql_quote_ident(out, sqlite3_column_name(st, i));
        if (type != NULL) {
            static const char *const names[] = {"", "TEXT", "NUM", "INT", "REAL"};
            buf_printf(out, " %s", names[sql_affinity_of(type)]);
        }
    }
    buf_append_str(out, ")");
    sqlite3_finalize(st);
    return true;
}

static bool create_table(struct sql_session *s, char *notice, size_t notice_size)
{
    struct ddl_text x;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    struct sql_tokens *t = &x.t;
    struct table_desc *d = NULL;
    struct table_desc *old = NULL;
    struct buf sql = {0};
    struct buf fill = {0};
    size_t at = 2;
    bool soft = ddl_if(t, &at, true);
    bool ok = ddl_take_name(s, t, &at, &x.name) && ddl_lock_name(s, buf_cstr(&x.name), &old);
    if (ok && old != NULL) {
        ok = soft && old->kind == DESC_TABLE;
        if (ok) {
            snprintf(notice, notice_size, "table \"%s\" already exists, skipping",
                     buf_cstr(&x.name));
        } else {
            sql_error_set(&s->err, "42P07", "%s %s already exists",
                          old->kind == DESC_VIEW    ? "view"
                          : old->kind == DESC_TABLE ? "table"
                                                    : "index",
                          buf_cstr(&x.name));
        }
        goto done;
    }
    if (ok && sql_token_is(t, at, "AS")) {
        buf_append(&fill, t->src.data + t->t[at].end, t->src.size - t->t[at].end);
        buf_append_str(&sql, "CREATE TABLE ");
        sql_quote_ident(&sql, buf_cstr(&x.name));
        ok = columns_of_select(s, buf_cstr(&fill), &sql);
    } else if (ok && sql_token_op(t, at, "(")) {
        ok = check_body(s, t, at) && table_text(s, &x, at, &sql);
    } else if (ok) {
        struct slice near = sql_token_text(t, at);
        sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                      (const char *)near.data);
        ok = false;
    }
    d = ok ? ddl_describe(s, buf_cstr(&sql), &s->err) : NULL;
    ok = d != NULL && store_new_table(s, d);
    if (ok && fill.size > 0) {
        buf_clear(&sql);
        buf_append_str(&sql, "INSERT INTO ");
        sql_quote_ident(&sql, buf_cstr(&x.name));
        buf_printf(&sql, " %s", buf_cstr(&fill));
        ok = dml_run_text(s, buf_cstr(&sql));
    }
done:
    table_desc_unref(d);
    table_desc_unref(old);
    buf_deinit(&sql);
    buf_deinit(&fill);
    ddl_text_deinit(&x);
    return ok;
}

/* --- DROP, TRUNCATE --- */

static bool drop_one_table(struct sql_session *s, struct table_desc *d)
{
    struct span_error err = {0};
    session_use_desc(s, d);
    if (!delete_table_span(s, d->id)) {
        return false;
    }
    for (size_t i = 0; i < d->index_count; i++) {
        if (d->indexes[i].sql[0] != '\0' && !ddl_delete_name(s, d->indexes[i].name)) {
            return false;
        }
    }
    span_status st = s->kv->ops->put_schema_version(s->kv, d->id, 0, &err);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    return ddl_delete_name(s, d->name);
}

static bool drop_one(struct sql_session *s, const char *name, enum desc_kind kind, bool soft,
                     char *notice, size_t notice_size)
{
    struct table_desc *d = NULL;
    const char *what = kind == DESC_VIEW ? "view" : "table";
    if (!ddl_lock_name(s, name, &d)) {
        return false;
    }
    bool ok = false;
    if (d == NULL || d->kind == DESC_INDEX_NAME) {
        ok = soft;
        if (soft) {
            snprintf(notice, notice_size, "%s \"%s\" does not exist, skipping", what, name);
        } else {
            sql_error_set(&s->err, "42P01", "no such %s: %s", what, name);
        }
    } else if (d->kind != kind) {
        sql_error_set(&s->err, "42809", "use DROP %s to delete %s %s",
                      kind == DESC_VIEW ? "TABLE" : "VIEW", kind == DESC_VIEW ? "table" : "view",
                      name);
    } else {
        ok = kind == DESC_VIEW ? ddl_delete_name(s, d->name) : drop_one_table(s, d);
    }
    table_desc_unref(d);
    return ok;
}

/* [CASCADE | RESTRICT] and the end. */
static bool ends_here(struct sql_session *s, const struct sql_tokens *t, size_t at)
{
    at += sql_token_is(t, at, "CASCADE") || sql_token_is(t, at, "RESTRICT") ? 1 : 0;
    if (at < t->count) {
        struct slice near = sql_token_text(t, at);
        sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                      (const char *)near.data);
    }
    return at >= t->count;
}

static bool drop_list(struct sql_session *s, enum desc_kind kind, char *notice, size_t notice_size)
{
    struct ddl_text x;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    size_t at = 2;
    bool soft = ddl_if(&x.t, &at, false);
    bool ok = true;
    for (;;) {
        ok = ddl_take_name(s, &x.t, &at, &x.name) &&
             drop_one(s, buf_cstr(&x.name), kind, soft, notice, notice_size);
        if (!ok || !sql_token_op(&x.t, at, ",")) {
            break;
        }
        at++;
    }
    ok = ok && ends_here(s, &x.t, at);
    ddl_text_deinit(&x);
    return ok;
}

/* More rows than one transaction carries: the table goes on under a new id, empty, and the old id's
 * keys are swept. Its automatic ids go on where they were; its split points stay behind. */
static bool truncate_by_id(struct sql_session *s, const struct table_desc *d, struct slice start,
                           struct slice end)
{
    struct span_error err = {0};
    uint64_t next_id = 0;
    uint64_t ignored = 0;
    struct table_desc *next = table_desc_copy(d);
    span_status st = SPAN_OK;
    next->version++;
    if (d->pk == PK_ROWID || d->pk == PK_HIDDEN) {
        uint64_t seen = schema_cache_rowid_seen(s->cache, d->id, 0);
        st = s->kv->ops->alloc_ids(s->kv, d->id, 1, seen, &next_id, &err);
    }
    if (st == SPAN_OK) {
        st = s->kv->ops->put_schema_version(s->kv, d->id, 0, &err);
    }
    bool ok = (st == SPAN_OK || session_fail(s, st, &err)) && ddl_sweep_later(s, start, end) &&
              store_new_table(s, next);
    if (ok && next_id > 1) {
        st = s->kv->ops->alloc_ids(s->kv, next->id, 1, next_id - 1, &ignored, &err);
        ok = st == SPAN_OK || session_fail(s, st, &err);
    }
    table_desc_unref(next);
    return ok;
}

static bool truncate_one(struct sql_session *s, const char *name)
{
    struct table_desc *d = NULL;
    struct buf start = {0};
    struct buf end = {0};
    bool small = false;
    if (!ddl_lock_name(s, name, &d)) {
        return false;
    }
    if (d == NULL || d->kind != DESC_TABLE) {
        sql_error_set(&s->err, "42P01", "no such table: %s", name);
        table_desc_unref(d);
        return false;
    }
    session_use_desc(s, d);
    key_table_start(&start, d->id);
    key_table_end(&end, d->id);
    bool ok = ddl_span_is_small(s, buf_slice(&start), buf_slice(&end), &small);
    if (ok && small) {
        struct span_error err = {0};
        span_status st = s->kv->ops->delete_span(s->kv, buf_slice(&start), buf_slice(&end), &err);
        ok = st == SPAN_OK || session_fail(s, st, &err);
    } else if (ok) {
        ok = truncate_by_id(s, d, buf_slice(&start), buf_slice(&end));
    }
    buf_deinit(&start);
    buf_deinit(&end);
    table_desc_unref(d);
    return ok;
}

/* The names from token `at` on and what follows them: looked at, or done. */
static bool truncate_names(struct sql_session *s, struct ddl_text *x, size_t at, bool act)
{
    bool more = true;
    for (; more; at += more ? 1 : 0) {
        at += sql_token_is(&x->t, at, "ONLY") ? 1 : 0;
        if (!ddl_take_name(s, &x->t, &at, &x->name) ||
            (act && !truncate_one(s, buf_cstr(&x->name)))) {
            return false;
        }
        more = sql_token_op(&x->t, at, ",");
    }
    if (sql_token_is(&x->t, at, "RESTART")) {
        return refuse(s, "TRUNCATE .. RESTART IDENTITY is not supported",
                      "Automatic ids go on rising; leave it out.");
    }
    at += sql_token_is(&x->t, at, "CONTINUE") && sql_token_is(&x->t, at + 1, "IDENTITY") ? 2 : 0;
    return ends_here(s, &x->t, at);
}

static bool truncate_list(struct sql_session *s)
{
    struct ddl_text x;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    size_t first = sql_token_is(&x.t, 1, "TABLE") ? 2 : 1;
    bool ok = truncate_names(s, &x, first, false) && truncate_names(s, &x, first, true);
    ddl_text_deinit(&x);
    return ok;
}

/* --- indexes --- */

bool ddl_parse_index(struct sql_session *s, struct ddl_text *x, bool *unique, bool *soft,
                     size_t *open)
{
    const struct sql_tokens *t = &x->t;
    size_t at = 1;
    *unique = sql_token_is(t, at, "UNIQUE");
    at += *unique ? 2 : 1;
    at += sql_token_is(t, at, "CONCURRENTLY") ? 1 : 0;
    *soft = ddl_if(t, &at, true);
    bool named = !sql_token_is(t, at, "ON");
    if (named && !ddl_take_name(s, t, &at, &x->name)) {
        return false;
    }
    if (!sql_token_is(t, at, "ON")) {
        struct slice near = sql_token_text(t, at);
        sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                      (const char *)near.data);
        return false;
    }
    at++;
    at += sql_token_is(t, at, "ONLY") ? 1 : 0;
    if (!ddl_take_name(s, t, &at, &x->table)) {
        return false;
    }
    if (sql_token_is(t, at, "USING")) {
        if (!sql_token_is(t, at + 1, "btree")) {
            return refuse(s, "this index method is not supported",
                          "Indexes are ordered: use btree.");
        }
        at += 2;
    }
    *open = at;
    size_t end = at;
    for (size_t i = at; i < t->count; i++) {
        if (t->t[i].depth == 0 && sql_token_op(t, i, ")")) {
            end = i;
            break;
        }
    }
    if (sql_token_is(t, end + 1, "WHERE")) {
        return refuse(s, "partial indexes are not supported yet", "Leave the WHERE clause out.");
    }
    if (!sql_token_op(t, at, "(") || end == at || end + 1 != t->count) {
        struct slice near = sql_token_text(t, end == at ? at : end + 1);
        sql_error_set(&s->err, "42601", "near \"%.*s\": syntax error", (int)near.size,
                      (const char *)near.data);
        return false;
    }
    if (!named) {
        buf_append_slice(&x->name, buf_slice(&x->table));
        for (size_t i = at + 1; i < end; i++) {
            if (t->t[i].kind == TOK_WORD || t->t[i].kind == TOK_QUOTED) {
                struct buf part = {0};
                sql_token_name(t, i, &part);
                buf_append_byte(&x->name, '_');
                buf_append_slice(&x->name, buf_slice(&part));
                buf_deinit(&part);
            }
        }
        buf_append_str(&x->name, "_idx");
    }
    (void)buf_cstr(&x->name);
    (void)buf_cstr(&x->table);
    return true;
}

static bool is_empty(struct sql_session *s, const struct table_desc *d, bool *empty)
{
    struct span_error err = {0};
    struct buf start = {0};
    struct buf end = {0};
    struct kv_scan *scan = NULL;
    struct slice k;
    struct slice v;
    session_use_desc(s, d);
    key_index_prefix(&start, d->id, 0);
    key_prefix_end(&end, buf_slice(&start));
    span_status st = s->kv->ops->scan_open(s->kv, buf_slice(&start), buf_slice(&end), false,
                                           KV_LOCK_SHARED, 1, &scan, &err);
    if (st == SPAN_OK) {
        st = s->kv->ops->scan_next(scan, &k, &v, &err);
        s->kv->ops->scan_close(scan);
    }
    buf_deinit(&start);
    buf_deinit(&end);
    *empty = st == SPAN_NOT_FOUND;
    return st == SPAN_OK || st == SPAN_NOT_FOUND || session_fail(s, st, &err);
}

/* Adds the index to the table's descriptor. *building: the table has rows, backfill must follow. */
bool ddl_add_index(struct sql_session *s, struct ddl_text *x, bool unique, bool soft, size_t open,
                   struct table_desc **out, bool *building, char *notice, size_t notice_size)
{
    struct table_desc *old = NULL;
    struct table_desc *d = NULL;
    struct table_desc *next = NULL;
    struct table_index ix = {0};
    struct buf sql = {0};
    struct table_desc *name = NULL;
    bool empty = false;
    bool ok = ddl_lock_name(s, (const char *)x->name.data, &old);
    *building = false;
    *out = NULL;
    if (ok && old != NULL) {
        ok = soft && old->kind == DESC_INDEX_NAME;
        if (ok) {
            snprintf(notice, notice_size, "index \"%s\" already exists, skipping",
                     (const char *)x->name.data);
        } else {
            sql_error_set(&s->err, "42P07", "index %s already exists", (const char *)x->name.data);
        }
        goto done;
    }
    ok = ok && ddl_lock_name(s, (const char *)x->table.data, &d);
    if (ok && (d == NULL || d->kind != DESC_TABLE)) {
        sql_error_set(&s->err, d == NULL ? "42P01" : "42809", "no such table: %s",
                      (const char *)x->table.data);
        ok = false;
    }
    if (ok && d->index_count >= LIMIT_TABLE_INDEXES) {
        sql_error_set(&s->err, "54000", "a table has at most %d indexes", LIMIT_TABLE_INDEXES);
        ok = false;
    }
    if (ok) {
        buf_printf(&sql, "CREATE %sINDEX ", unique ? "UNIQUE " : "");
        sql_quote_ident(&sql, (const char *)x->name.data);
        buf_append_str(&sql, " ON ");
        sql_quote_ident(&sql, d->name);
        buf_append(&sql, x->t.src.data + x->t.t[open].start, x->t.src.size - x->t.t[open].start);
        ok = ddl_describe_index(s, d, buf_cstr(&sql), (const char *)x->name.data, &ix, &s->err) &&
             is_empty(s, d, &empty);
    }
    if (ok) {
        next = table_desc_copy(d);
        ix.id = next->next_index_id++;
        ix.name = span_strdup((const char *)x->name.data);
        ix.sql = span_strdup(buf_cstr(&sql));
        ix.unique = unique;
        ix.state = empty ? INDEX_PUBLIC : INDEX_BUILDING;
        next->indexes = span_realloc(next->indexes, (next->index_count + 1) * sizeof ix);
        next->indexes[next->index_count++] = ix;
        memset(&ix, 0, sizeof ix);
        next->version++;
        name = table_desc_new();
        name->kind = DESC_INDEX_NAME;
        name->name = span_strdup((const char *)x->name.data);
        name->table = span_strdup(d->name);
        name->sql = span_strdup("");
        ok = ddl_put_desc(s, name, false) && ddl_put_desc(s, next, false);
        *building = !empty;
        *out = ok ? table_desc_ref(next) : NULL;
    }
done:
    table_index_deinit(&ix);
    table_desc_unref(name);
    table_desc_unref(next);
    table_desc_unref(d);
    table_desc_unref(old);
    buf_deinit(&sql);
    return ok;
}

static bool create_index(struct sql_session *s, char *notice, size_t notice_size)
{
    struct ddl_text x;
    struct table_desc *d = NULL;
    bool unique = false;
    bool soft = false;
    bool building = false;
    size_t open = 0;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    bool ok = ddl_parse_index(s, &x, &unique, &soft, &open) &&
              ddl_add_index(s, &x, unique, soft, open, &d, &building, notice, notice_size);
    if (ok && building) {
        ok = ddl_fill_in_block(s, d, (const char *)x.name.data);
    }
    table_desc_unref(d);
    ddl_text_deinit(&x);
    return ok;
}

bool ddl_drop_index_named(struct sql_session *s, const char *name)
{
    struct table_desc *entry = NULL;
    struct table_desc *d = NULL;
    struct table_desc *next = NULL;
    bool ok = ddl_lock_name(s, name, &entry);
    if (ok && (entry == NULL || entry->kind != DESC_INDEX_NAME)) {
        sql_error_set(&s->err, "42704", "no such index: %s", name);
        ok = false;
    }
    ok = ok && ddl_lock_name(s, entry->table, &d);
    struct table_index *ix = ok && d != NULL ? table_find_index(d, name) : NULL;
    if (ok && ix == NULL) {
        sql_error_set(&s->err, "42704", "no such index: %s", name);
        ok = false;
    }
    if (ok) {
        session_use_desc(s, d);
        ok = ddl_delete_index_span(s, d->id, ix->id);
    }
    if (ok) {
        next = table_desc_copy(d);
        size_t at = (size_t)(ix - d->indexes);
        table_index_deinit(&next->indexes[at]);
        memmove(&next->indexes[at], &next->indexes[at + 1],
                (next->index_count - at - 1) * sizeof next->indexes[0]);
        next->index_count--;
        next->version++;
        ok = ddl_delete_name(s, name) && ddl_put_desc(s, next, false);
    }
    table_desc_unref(next);
    table_desc_unref(d);
    table_desc_unref(entry);
    return ok;
}

static bool drop_index(struct sql_session *s, char *notice, size_t notice_size)
{
    struct ddl_text x;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    size_t at = 2;
    at += sql_token_is(&x.t, at, "CONCURRENTLY") ? 1 : 0;
    bool soft = ddl_if(&x.t, &at, false);
    bool ok = ddl_take_name(s, &x.t, &at, &x.name);
    if (ok && sql_token_op(&x.t, at, ",")) {
        ok = refuse(s, "DROP INDEX of several indexes is not supported", "Drop one after another.");
    }
    ok = ok && ends_here(s, &x.t, at);
    if (ok) {
        ok = ddl_drop_index_named(s, buf_cstr(&x.name));
        if (!ok && soft && strcmp(s->err.code, "42704") == 0) {
            sql_error_clear(&s->err);
            snprintf(notice, notice_size, "index \"%s\" does not exist, skipping",
                     buf_cstr(&x.name));
            ok = true;
        }
    }
    ddl_text_deinit(&x);
    return ok;
}

/* --- views --- */

static bool create_view(struct sql_session *s, char *notice, size_t notice_size)
{
    struct ddl_text x;
    struct table_desc *old = NULL;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    size_t at = 1;
    bool replace = sql_token_is(&x.t, at, "OR");
    at += replace ? 3 : 1;
    bool soft = ddl_if(&x.t, &at, true);
    bool ok = ddl_take_name(s, &x.t, &at, &x.name) && ddl_lock_name(s, buf_cstr(&x.name), &old);
    if (ok && old != NULL && !(replace && old->kind == DESC_VIEW)) {
        ok = soft && old->kind == DESC_VIEW;
        if (ok) {
            snprintf(notice, notice_size, "view \"%s\" already exists, skipping",
                     buf_cstr(&x.name));
        } else {
            sql_error_set(&s->err, "42P07", "%s %s already exists",
                          old->kind == DESC_TABLE ? "table" : "view", buf_cstr(&x.name));
        }
        goto done;
    }
    if (ok) {
        struct table_desc *d = table_desc_new();
        struct buf sql = {0};
        d->kind = DESC_VIEW;
        d->name = span_strdup(buf_cstr(&x.name));
        d->table = span_strdup("");
        d->version = old == NULL ? 1 : old->version + 1;
        buf_append_str(&sql, "CREATE VIEW ");
        sql_quote_ident(&sql, d->name);
        buf_append_byte(&sql, ' ');
        if (at < x.t.count) {
            buf_append(&sql, x.t.src.data + x.t.t[at].start, x.t.src.size - x.t.t[at].start);
        }
        d->sql = span_strdup(buf_cstr(&sql));
        buf_deinit(&sql);
        ok = ddl_put_desc(s, d, false);
        if (ok) { /* SQLite's word on the text; a missing table is found when the view is used */
            ok = session_table(s, d->name) != NULL;
        }
        table_desc_unref(d);
    }
done:
    table_desc_unref(old);
    ddl_text_deinit(&x);
    return ok;
}

/* --- SPLIT AT --- */

bool ddl_is_split(const struct sql_tokens *t, const struct sql_stmt *st)
{
    for (size_t i = st->first; i + 1 < st->last; i++) {
        if (sql_token_is(t, i, "SPLIT") && sql_token_is(t, i + 1, "AT")) {
            return true;
        }
    }
    return false;
}

static const char *type_name(enum sql_type type)
{
    static const char *const names[] = {
        [SQL_NULL] = "NULL", [SQL_INT] = "an integer", [SQL_REAL] = "a real number",
        [SQL_TEXT] = "text", [SQL_BLOB] = "a blob",
    };
    return names[type];
}

/* Can a stored key hold v in a column of this affinity? A value it cannot hold would still encode,
 * as a boundary above or below every row. */
static bool fits_column(const struct sql_value *v, enum sql_affinity aff)
{
    switch (aff) {
    case AFF_INTEGER:
    case AFF_NUMERIC:
    case AFF_REAL:
        return v->type == SQL_INT || v->type == SQL_REAL;
    case AFF_TEXT:
        return v->type == SQL_TEXT;
    case AFF_BLOB:
        break;
    }
    return true;
}

/* Value i of the tuple, as the key's column stores it, after key. */
static bool split_value(struct sql_session *s, const struct table_desc *d,
                        const struct table_index *ix, sqlite3_stmt *st, size_t i, struct buf *key)
{
    bool rowid = ix->id == 0 && d->pk != PK_COLUMNS;
    bool hidden = rowid && d->pk == PK_HIDDEN;
    const struct table_column *col =
        hidden ? NULL : &d->columns[rowid ? d->pk_column : ix->columns[i]];
    const char *name = hidden ? "rowid" : col->name;
    enum sql_affinity aff = rowid ? AFF_INTEGER : col->affinity;
    sqlite3_value *raw = sqlite3_column_value(st, (int)i);
    int type = sqlite3_value_type(raw);
    if (type == SQLITE_NULL) {
        sql_error_set(&s->err, "22004", "a split point of \"%s\" cannot be NULL in column \"%s\"",
                      d->name, name);
        return false;
    }
    struct sql_value v = sql_value_of(raw);
    if (aff == AFF_TEXT && type != SQLITE_BLOB) { /* a number becomes text, as it would be stored */
        const unsigned char *text = sqlite3_column_text(st, (int)i);
        v = (struct sql_value){.type = SQL_TEXT,
                               .s = slice_of(text, (size_t)sqlite3_column_bytes(st, (int)i))};
    } else {
        sql_value_apply_affinity(&v, aff, NULL);
    }
    if (!fits_column(&v, aff)) {
        sql_error_set(&s->err, "42804",
                      "column \"%s\" of \"%s\" is of type %s but the split point's value is %s",
                      name, d->name,
                      hidden || col->decl_type[0] == '\0' ? "INTEGER" : col->decl_type,
                      type_name(v.type));
        snprintf(s->err.table, sizeof s->err.table, "%.255s", d->name);
        snprintf(s->err.column, sizeof s->err.column, "%.255s", name);
        return false;
    }
    key_encode(key, &v, rowid ? COLL_BINARY : ix->collations[i], rowid ? false : ix->desc[i]);
    return true;
}

/* Values of one tuple, encoded as a prefix of the table's (or index's) key. */
static bool split_key(struct sql_session *s, const struct table_desc *d,
                      const struct table_index *ix, const char *select, struct buf *key)
{
    sqlite3_stmt *st = session_prepare(s, select, false);
    if (st == NULL) {
        return false;
    }
    int rc = sqlite3_step(st);
    if (rc != SQLITE_ROW) {
        session_sqlite_error(s, rc);
        sqlite3_finalize(st);
        return false;
    }
    size_t n = (size_t)sqlite3_column_count(st);
    size_t key_columns = d->pk == PK_HIDDEN && ix->id == 0 ? 1 : ix->count;
    bool ok = n >= 1 && n <= key_columns;
    if (!ok) {
        sql_error_set(&s->err, "42601",
                      "SPLIT AT VALUES takes 1 to %zu values per split point, not %zu", key_columns,
                      n);
        sql_error_hint(&s->err, "Several points are written VALUES (10), (20), (30).");
    }
    key_index_prefix(key, d->id, ix->id);
    for (size_t i = 0; ok && i < n; i++) {
        ok = split_value(s, d, ix, st, i, key);
    }
    sqlite3_finalize(st);
    if (ok && key->size > LIMIT_KEY_BYTES) {
        index_key_too_large(&s->err, d, ix, key->size);
        return false;
    }
    return ok;
}

static bool split_all(struct sql_session *s, const struct table_desc *d,
                      const struct table_index *ix, const struct ddl_text *x, size_t at)
{
    const struct sql_tokens *t = &x->t;
    for (;;) {
        size_t end = at + 1;
        while (end < t->count &&
               !(t->t[end].depth == t->t[at].depth && sql_token_op(t, end, ")"))) {
            end++;
        }
        if (!sql_token_op(t, at, "(") || end >= t->count) {
            sql_error_set(&s->err, "42601", "SPLIT AT VALUES takes (value, ...), (value, ...)");
            return false;
        }
        struct buf sql = {0};
        struct buf key = {0};
        struct span_error err = {0};
        buf_append_str(&sql, "SELECT ");
        buf_append(&sql, t->src.data + t->t[at].end, t->t[end].start - t->t[at].end);
        bool ok = split_key(s, d, ix, buf_cstr(&sql), &key);
        if (ok) {
            span_status st = s->kv->ops->split_at(s->kv, buf_slice(&key), &err);
            ok = st == SPAN_OK || session_fail(s, st, &err);
        }
        buf_deinit(&sql);
        buf_deinit(&key);
        if (!ok || end + 1 >= t->count) {
            return ok;
        }
        if (!sql_token_op(t, end + 1, ",")) {
            sql_error_set(&s->err, "42601", "SPLIT AT VALUES takes (value, ...), (value, ...)");
            return false;
        }
        at = end + 2;
    }
}

bool ddl_split(struct sql_session *s, const struct sql_stmt *st)
{
    struct ddl_text x;
    struct table_desc *d = NULL;
    struct table_desc *entry = NULL;
    (void)st;
    if (!ddl_text_init(&x, s)) {
        return false;
    }
    bool index = sql_token_is(&x.t, 1, "INDEX");
    size_t at = 2;
    bool ok = ddl_take_name(s, &x.t, &at, &x.name);
    if (ok && index) {
        ok = session_find_desc(s, buf_cstr(&x.name), &entry);
        if (ok && (entry == NULL || entry->kind != DESC_INDEX_NAME)) {
            sql_error_set(&s->err, "42704", "no such index: %s", buf_cstr(&x.name));
            ok = false;
        }
        ok = ok && session_find_desc(s, entry->table, &d);
    } else if (ok) {
        ok = session_find_desc(s, buf_cstr(&x.name), &d);
    }
    if (ok && (d == NULL || d->kind != DESC_TABLE)) {
        sql_error_set(&s->err, "42P01", "no such table: %s", buf_cstr(&x.name));
        ok = false;
    }
    if (ok && !(sql_token_is(&x.t, at, "SPLIT") && sql_token_is(&x.t, at + 2, "VALUES"))) {
        sql_error_set(&s->err, "42601", "syntax error: " RANGE_HINT);
        ok = false;
    }
    if (ok) {
        const struct table_index *ix = index ? table_find_index(d, buf_cstr(&x.name)) : &d->primary;
        ok = ix != NULL && split_all(s, d, ix, &x, at + 3);
    }
    table_desc_unref(d);
    table_desc_unref(entry);
    ddl_text_deinit(&x);
    return ok;
}

bool ddl_run(struct sql_session *s, const struct sql_stmt *st, const char **tag, char *notice,
             size_t notice_size)
{
    notice[0] = '\0';
    switch ((int)st->verb) {
    case VERB_CREATE_TABLE:
        *tag = "CREATE TABLE";
        return create_table(s, notice, notice_size);
    case VERB_CREATE_INDEX:
        *tag = "CREATE INDEX";
        return create_index(s, notice, notice_size);
    case VERB_CREATE_VIEW:
        *tag = "CREATE VIEW";
        return create_view(s, notice, notice_size);
    case VERB_DROP_TABLE:
        *tag = "DROP TABLE";
        return drop_list(s, DESC_TABLE, notice, notice_size);
    case VERB_DROP_VIEW:
        *tag = "DROP VIEW";
        return drop_list(s, DESC_VIEW, notice, notice_size);
    case VERB_DROP_INDEX:
        *tag = "DROP INDEX";
        return drop_index(s, notice, notice_size);
    case VERB_TRUNCATE:
        *tag = "TRUNCATE TABLE";
        return truncate_list(s);
    default:
        return refuse(s, "this statement is not supported", RANGE_HINT);
    }
}
