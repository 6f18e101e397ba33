/* SHOW statements; see show.h. */
#include "sql/show.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "sql/run.h"
#include "sql/session_impl.h"
#include "txn/txn_types.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define NAMES_NS (2 * SEC_NS) /* for the schema, where a SHOW works without it too */

/* --- readable keys --- */

static void put_value(const struct sql_value *v, struct buf *out)
{
    switch (v->type) {
    case SQL_NULL:
        buf_append_str(out, "NULL");
        return;
    case SQL_INT:
        buf_printf(out, "%lld", (long long)v->i);
        return;
    case SQL_REAL:
        buf_printf(out, "%.17g", v->r);
        return;
    case SQL_TEXT:
        buf_append_byte(out, '\'');
        for (size_t i = 0; i < v->s.size; i++) {
            uint8_t c = v->s.data[i];
            if (c < 0x20 || c == '\'') {
                buf_printf(out, "\\x%02x", c);
            } else {
                buf_append_byte(out, c);
            }
        }
        buf_append_byte(out, '\'');
        return;
    case SQL_BLOB:
        buf_append_str(out, "x'");
        for (size_t i = 0; i < v->s.size; i++) {
            buf_printf(out, "%02x", v->s.data[i]);
        }
        buf_append_byte(out, '\'');
        return;
    }
}

static void put_hex(struct slice s, struct buf *out)
{
    buf_append_str(out, "\\x");
    for (size_t i = 0; i < s.size; i++) {
        buf_printf(out, "%02x", s.data[i]);
    }
}

static const struct table_desc *by_id(struct table_desc *const *all, size_t count, uint32_t id)
{
    for (size_t i = 0; i < count; i++) {
        if (all[i]->kind == DESC_TABLE && all[i]->id == id) {
            return all[i];
        }
    }
    return NULL;
}

static const struct table_index *index_by_id(const struct table_desc *d, uint16_t id)
{
    for (size_t i = 0; i < d->index_count; i++) {
        if (d->indexes[i].id == id) {
            return &d->indexes[i];
        }
    }
    return NULL;
}

/* Keys of a range's own: the version of a table's schema, locked by every transaction that uses it
 * (rule E2). */
static bool local_key(struct slice key, struct table_desc *const *all, size_t count,
                      struct buf *out)
{
    uint8_t prefix[SCHEMA_KEY_BYTES];
    if (key.size != SCHEMA_KEY_BYTES || memcmp(schema_key(prefix, 0).data, key.data, 2) != 0) {
        return false;
    }
    uint32_t table = 0;
    for (size_t i = 0; i < 4; i++) {
        table |= (uint32_t)key.data[2 + i] << (8 * i);
    }
    const struct table_desc *d = by_id(all, count, table);
    if (d == NULL) {
        buf_printf(out, "/schema version/table/%u", table);
    } else {
        buf_printf(out, "/schema version/%s", d->name);
    }
    return true;
}

/* "/system/name", and of the tables from 1000 on the whole key: they are the gateway's
 * (coordinator/gateway.h), with bare numbers and names as keys. False: the columns are to follow.
 */
static bool system_key(uint32_t table, uint16_t index, struct slice rest, struct buf *out)
{
    switch (table) {
    case SYS_TABLE_DESCRIPTORS:
        buf_append_str(out, "/system/schema");
        return false;
    case SYS_TABLE_DROPPED:
        buf_append_str(out, "/system/dropped");
        return false;
    case 1000:
        buf_printf(out, "/system/counters%s", index == 0 ? "" : "@own");
        if (rest.size == 4) {
            buf_printf(out, "/%u",
                       (uint32_t)rest.data[0] << 24 | (uint32_t)rest.data[1] << 16 |
                           (uint32_t)rest.data[2] << 8 | rest.data[3]);
            return true;
        }
        break;
    case 1001:
        buf_append_str(out, "/system/settings");
        break;
    default:
        buf_printf(out, "/system/%u", table);
        return false;
    }
    if (rest.size > 0) {
        struct sql_value v = {.type = SQL_TEXT, .s = rest};
        buf_append_byte(out, '/');
        put_value(&v, out);
    }
    return true;
}

void show_key(struct slice key, struct table_desc *const *all, size_t count, struct buf *out)
{
    uint32_t table = 0;
    uint16_t index = 0;
    struct slice rest;
    if (local_key(key, all, count, out)) {
        return;
    }
    if (!key_parse_prefix(key, &table, &index, &rest)) {
        put_hex(key, out);
        return;
    }
    const struct table_desc *d = by_id(all, count, table);
    const struct table_index *ix = NULL;
    if (table < KEY_USER_TABLE_MIN) {
        if (system_key(table, index, rest, out)) {
            return;
        }
    } else if (d == NULL) {
        buf_printf(out, "/table/%u", table);
    } else {
        buf_printf(out, "/%s", d->name);
        ix = index == 0 ? &d->primary : index_by_id(d, index);
    }
    if (index != 0 && ix != NULL) {
        buf_printf(out, "@%s", ix->name);
    } else if (index != 0) {
        buf_printf(out, "@%u", index);
    }
    struct buf scratch = {0};
    for (size_t i = 0; rest.size > 0; i++) {
        struct sql_value v;
        bool desc = ix != NULL && i < ix->count && ix->desc[i];
        buf_append_byte(out, '/');
        buf_clear(&scratch);
        if (!key_decode(&rest, desc, &v, &scratch)) {
            put_hex(rest, out);
            break;
        }
        put_value(&v, out);
    }
    buf_deinit(&scratch);
}

static bool unhex(const char *text, struct buf *out)
{
    if (text[0] == '\\' && text[1] == 'x') {
        text += 2;
    }
    for (; text[0] != '\0' && text[1] != '\0'; text += 2) {
        unsigned v = 0;
        if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1]) ||
            sscanf(text, "%2x", &v) != 1) {
            return false;
        }
        buf_append_byte(out, (uint8_t)v);
    }
    return text[0] == '\0';
}

static int column_named(const struct kv_table *t, const char *name)
{
    for (size_t i = 0; i < t->columns; i++) {
        if (strcasecmp(t->names[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* All descriptors; none when the schema cannot be read now. */
static span_status all_descs(struct sql_session *s, struct table_desc ***all, size_t *count,
                             struct span_error *err)
{
    bool own = !s->kv_open;
    *all = NULL;
    *count = 0;
    if (own) {
        struct kv_txn_options opt = {.read_only = true, .autocommit = true};
        span_status begun = s->kv->ops->begin(s->kv, &opt, err);
        if (begun != SPAN_OK) {
            return begun;
        }
    }
    span_status st = schema_load_all(s->kv, all, count, err);
    session_gate(s);
    if (own) {
        s->kv->ops->rollback(s->kv);
    }
    return st;
}

static void free_descs(struct table_desc **all, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        table_desc_unref(all[i]);
    }
    span_free(all);
}

/* Descriptors to name keys with. Where the schema cannot be read soon, those that this node has
 * seen have to do: a table of ranges and locks is wanted most when ranges do not answer. */
static void names_for_keys(struct sql_session *s, struct table_desc ***all, size_t *count)
{
    struct span_error err = {0};
    uint64_t soon = session_mono_ns(s) + NAMES_NS;
    s->kv->ops->set_deadline(s->kv,
                             s->deadline_ns != 0 && s->deadline_ns < soon ? s->deadline_ns : soon);
    span_status st = all_descs(s, all, count, &err);
    s->kv->ops->set_deadline(s->kv, s->deadline_ns);
    if (st == SPAN_OK) {
        return;
    }
    *count = schema_cache_all(s->cache, all);
    if (s->sink != NULL) {
        struct buf text = {0};
        buf_printf(&text,
                   "the schema cannot be read now (%s): tables this node has not used are shown by "
                   "number",
                   err.text[0] == '\0' ? span_status_text(st) : err.text);
        run_notice(s, s->sink, "01000", buf_cstr(&text));
        buf_deinit(&text);
    }
}

/* Cells of start_key and end_key as text; hex stays where it is no key. */
static void readable_keys(struct kv_table *t, struct table_desc *const *all, size_t count)
{
    int cols[2] = {column_named(t, "start_key"), column_named(t, "end_key")};
    struct buf key = {0};
    struct buf text = {0};
    for (size_t r = 0; r < t->rows; r++) {
        for (int c = 0; c < 2; c++) {
            if (cols[c] < 0) {
                continue;
            }
            char **cell = &t->cells[r * t->columns + (size_t)cols[c]];
            buf_clear(&key);
            buf_clear(&text);
            if (*cell == NULL || !unhex(*cell, &key)) {
                continue;
            }
            if (key.size > 0) {
                show_key(buf_slice(&key), all, count, &text);
            }
            span_free(*cell);
            *cell = span_strdup(buf_cstr(&text));
        }
    }
    buf_deinit(&key);
    buf_deinit(&text);
}

/* Keeps the ranges that hold keys of table id. */
static void keep_ranges_of(struct kv_table *t, uint32_t id)
{
    int a = column_named(t, "start_key");
    int b = column_named(t, "end_key");
    if (a < 0 || b < 0) {
        return;
    }
    struct buf from = {0};
    struct buf to = {0};
    struct buf start = {0};
    struct buf end = {0};
    key_table_start(&from, id);
    key_table_end(&to, id);
    size_t keep = 0;
    for (size_t r = 0; r < t->rows; r++) {
        char **row = &t->cells[r * t->columns];
        buf_clear(&start);
        buf_clear(&end);
        bool open_end = row[b] == NULL || row[b][0] == '\0';
        bool known = (row[a] == NULL || unhex(row[a], &start)) && (open_end || unhex(row[b], &end));
        bool in = !known || (slice_cmp(buf_slice(&start), buf_slice(&to)) < 0 &&
                             (open_end || slice_cmp(buf_slice(&end), buf_slice(&from)) > 0));
        for (size_t c = 0; c < t->columns; c++) {
            if (in && keep != r) {
                t->cells[keep * t->columns + c] = row[c];
            } else if (!in) {
                span_free(row[c]);
            }
        }
        keep += in ? 1 : 0;
    }
    t->rows = keep;
    buf_deinit(&from);
    buf_deinit(&to);
    buf_deinit(&start);
    buf_deinit(&end);
}

/* --- the store's tables --- */

/* Name of a table at *at, which moves behind it: t, public.t. False with s->err. */
static bool take_table(struct sql_session *s, const struct sql_stmt *st, size_t *at,
                       struct table_desc **d)
{
    struct buf name = {0};
    const struct sql_tokens *t = &s->tokens;
    *d = NULL;
    if (*at >= st->last) {
        sql_error_set(&s->err, "42601", "SHOW needs the name of a table here");
        return false;
    }
    if (*at + 2 < st->last && sql_token_op(t, *at + 1, ".") &&
        (sql_token_is(t, *at, "public") || sql_token_is(t, *at, "main"))) {
        *at += 2;
    }
    sql_token_name(t, *at, &name);
    (*at)++;
    bool ok = run_at_end(s, st, *at) && session_find_desc(s, buf_cstr(&name), d);
    if (ok && (*d == NULL || (*d)->kind == DESC_INDEX_NAME)) {
        sql_error_set(&s->err, "42P01", "no such table: %s", buf_cstr(&name));
        ok = false;
    }
    buf_deinit(&name);
    return ok;
}

static bool store_table(struct sql_session *s, const struct sql_stmt *st, enum kv_show what,
                        struct kv_table *out)
{
    struct span_error err = {0};
    struct table_desc *only = NULL;
    size_t i = st->first + 2;
    bool ok = true;
    if (what == KV_SHOW_RANGES &&
        (sql_token_is(&s->tokens, i, "FROM") || sql_token_is(&s->tokens, i, "FOR"))) {
        i++;
        i += sql_token_is(&s->tokens, i, "TABLE") ? 1 : 0;
        ok = take_table(s, st, &i, &only);
        if (ok && only->kind != DESC_TABLE) {
            sql_error_set(&s->err, "42809", "a view has no ranges: %s", only->name);
            ok = false;
        }
    }
    if (!ok || !run_at_end(s, st, i)) {
        table_desc_unref(only);
        return false;
    }
    span_status rs = s->kv->ops->show(s->kv, what, out, &err);
    if (rs == SPAN_OK) {
        if (only != NULL) {
            keep_ranges_of(out, only->id);
        }
        struct table_desc **all = NULL;
        size_t count = 0;
        if (column_named(out, "start_key") >= 0) {
            names_for_keys(s, &all, &count);
            readable_keys(out, all, count);
            free_descs(all, count);
        }
    }
    table_desc_unref(only);
    return rs == SPAN_OK || session_fail(s, rs, &err);
}

/* Keeps the rows whose cell in column c is `value`; how many there are. */
static size_t keep_rows(struct kv_table *t, int c, const char *value)
{
    size_t keep = 0;
    for (size_t r = 0; r < t->rows; r++) {
        char **row = &t->cells[r * t->columns];
        bool in = c >= 0 && row[c] != NULL && strcasecmp(row[c], value) == 0;
        for (size_t k = 0; k < t->columns; k++) {
            if (!in) {
                span_free(row[k]);
            } else if (keep != r) {
                t->cells[keep * t->columns + k] = row[k];
            }
        }
        keep += in ? 1 : 0;
    }
    t->rows = keep;
    return keep;
}

/* SHOW CLUSTER [SETTINGS] | CLUSTER [SETTING] name */
static bool cluster_settings(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out,
                             bool ask)
{
    struct span_error err = {0};
    struct buf name = {0};
    struct buf part = {0};
    const struct sql_tokens *t = &s->tokens;
    size_t i = st->first + 2;
    i += sql_token_is(t, i, "SETTINGS") || sql_token_is(t, i, "SETTING") ? 1 : 0;
    for (bool dot = true; i < st->last && dot; i += dot ? 2 : 1) {
        sql_token_name(t, i, &part);
        dot = i + 2 < st->last && sql_token_op(t, i + 1, ".");
        buf_append_slice(&name, buf_slice(&part));
        buf_append_str(&name, dot ? "." : "");
    }
    (void)buf_cstr(&name);
    bool ok = run_at_end(s, st, i);
    span_status rs = ok ? s->kv->ops->show(s->kv, KV_SHOW_CLUSTER_SETTINGS, out, &err) : SPAN_OK;
    if (rs != SPAN_OK) {
        ok = session_fail(s, rs, &err);
    }
    if (ok && ask && name.size > 0 &&
        keep_rows(out, column_named(out, "name"), buf_cstr(&name)) == 0) {
        sql_error_set(&s->err, "42704", "there is no cluster setting %s", buf_cstr(&name));
        sql_error_hint(&s->err, "SHOW CLUSTER SETTINGS lists them.");
        ok = false;
    }
    buf_deinit(&part);
    buf_deinit(&name);
    return ok;
}

/* Is a transaction with this id, as SHOW TRANSACTIONS shows it, open somewhere? */
static bool is_open(struct sql_session *s, const char *id)
{
    struct kv_table all;
    struct span_error err = {0};
    memset(&all, 0, sizeof all);
    bool open = false;
    bool over = false;
    if (s->kv->ops->show(s->kv, KV_SHOW_TRANSACTIONS, &all, &err) == SPAN_OK) {
        int c = column_named(&all, "txn_id");
        int state = column_named(&all, "state");
        for (size_t r = 0; r < all.rows && c >= 0 && state >= 0; r++) {
            char **row = &all.cells[r * all.columns];
            bool same = row[c] != NULL && row[state] != NULL && strcmp(row[c], id) == 0;
            bool told = same && (strcmp(row[state], "decided") == 0 ||
                                 strcmp(row[state], "finishing") == 0);
            open = open || same;
            over = over || told;
        }
    }
    kv_table_deinit(&all);
    return open && !over;
}

/* The id to ask with into *id: the one in the statement, or of the session's last transaction. */
static bool status_id(struct sql_session *s, const struct sql_stmt *st, struct buf *id)
{
    size_t last = strlen(s->last_txn_id);
    if (st->first + 3 >= st->last) {
        buf_append(id, s->last_txn_id, last);
        if (last == 0) {
            sql_error_set(&s->err, "22023", "this session has had no transaction with an id yet");
            sql_error_hint(&s->err, "SHOW TRANSACTION STATUS 'id' takes one of another session. A "
                                    "statement outside BEGIN has none.");
        }
        return last > 0;
    }
    sql_token_name(&s->tokens, st->first + 3, id);
    if (!run_at_end(s, st, st->first + 4)) {
        return false;
    }
    if (id->size > 0 && id->size < last && s->last_txn_id[id->size] == '@' &&
        memcmp(id->data, s->last_txn_id, id->size) == 0) {
        buf_clear(id);
        buf_append(id, s->last_txn_id, last);
    }
    return true;
}

static bool txn_status(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out,
                       bool ask)
{
    static const char *const names[] = {"status", "commit_timestamp", "txn_id"};
    static const char *const words[] = {"running", "committed", "aborted", "expired"};
    struct span_error err = {0};
    struct buf id = {0};
    enum kv_txn_outcome outcome = KV_TXN_RUNNING;
    struct tt_ts ts = {0};
    kv_table_init(out, st->first + 3 >= st->last ? 3 : 2, names, NULL);
    if (!ask) {
        return true;
    }
    bool ok = status_id(s, st, &id);
    if (ok && strchr(buf_cstr(&id), '@') != NULL) {
        span_status rs = s->kv->ops->txn_status(s->kv, buf_cstr(&id), &outcome, &ts, &err);
        session_gate(s);
        ok = rs == SPAN_OK || session_fail(s, rs, &err);
    } else if (ok && !is_open(s, buf_cstr(&id))) {
        sql_error_set(&s->err, "22023", "not the id of an open transaction: %.200s", buf_cstr(&id));
        sql_error_hint(&s->err,
                       "The outcome of one that is over is found by its whole id, "
                       "'number-number-number@key', as the session got it in parameter "
                       "spanlite.txn_id and in the DETAIL of error 40003; SHOW TRANSACTIONS and "
                       "SHOW LOCKS show only the part before the @.");
        ok = false;
    }
    if (ok) {
        char stamp[32];
        snprintf(stamp, sizeof stamp, "%llu", (unsigned long long)ts.ns);
        const char *cells[] = {words[outcome], outcome == KV_TXN_COMMITTED ? stamp : NULL,
                               buf_cstr(&id)};
        kv_table_add_row(out, cells);
    }
    buf_deinit(&id);
    return ok;
}

/* --- the schema --- */

static bool tables(struct sql_session *s, struct kv_table *out, bool ask)
{
    static const char *const names[] = {"table_name", "type", "table_id", "version"};
    static const unsigned types[] = {25, 25, 20, 20};
    struct table_desc **all = NULL;
    size_t count = 0;
    kv_table_init(out, 4, names, types);
    if (!ask) {
        return true;
    }
    struct span_error err = {0};
    span_status st = all_descs(s, &all, &count, &err);
    if (st != SPAN_OK) {
        return session_fail(s, st, &err);
    }
    for (size_t i = 0; i < count; i++) {
        struct overlay *o = session_overlay_find(s, all[i]->name);
        if (all[i]->kind == DESC_INDEX_NAME || (o != NULL && o->desc == NULL)) {
            continue;
        }
        char id[24];
        char version[24];
        snprintf(id, sizeof id, "%u", all[i]->id);
        snprintf(version, sizeof version, "%llu", (unsigned long long)all[i]->version);
        bool view = all[i]->kind == DESC_VIEW;
        const char *cells[] = {all[i]->name, view ? "view" : "table", view ? NULL : id, version};
        kv_table_add_row(out, cells);
    }
    free_descs(all, count);
    return true;
}

static bool in_primary(const struct table_desc *d, size_t column)
{
    if (d->pk == PK_ROWID) {
        return d->pk_column == column;
    }
    for (size_t i = 0; i < d->primary.count; i++) {
        if (d->primary.columns[i] == column) {
            return true;
        }
    }
    return false;
}

static void columns(const struct table_desc *d, struct kv_table *out)
{
    for (size_t i = 0; i < d->column_count; i++) {
        const struct table_column *c = &d->columns[i];
        bool pk = in_primary(d, i);
        const char *cells[] = {c->name,
                               c->decl_type,
                               c->notnull || pk ? "f" : "t",
                               pk ? "t" : "f",
                               c->has_default ? "t" : "f",
                               c->generated ? "t" : "f",
                               sql_collation_name(c->collation)};
        kv_table_add_row(out, cells);
    }
}

static void index_rows(const struct table_desc *d, const struct table_index *ix,
                       struct kv_table *out)
{
    struct buf cols = {0};
    for (size_t i = 0; i < ix->count; i++) {
        buf_printf(&cols, "%s%s%s", i == 0 ? "" : ", ", d->columns[ix->columns[i]].name,
                   ix->desc[i] ? " DESC" : "");
    }
    const char *cells[] = {ix->name, buf_cstr(&cols), ix->unique ? "t" : "f",
                           ix->id == 0 ? "t" : "f",
                           ix->state == INDEX_PUBLIC ? "public" : "building"};
    kv_table_add_row(out, cells);
    buf_deinit(&cols);
}

static bool schema_show(struct sql_session *s, const struct sql_stmt *st, char what,
                        struct kv_table *out, bool ask)
{
    static const char *const col_names[] = {"column_name", "type",      "nullable", "primary_key",
                                            "has_default", "generated", "collation"};
    static const unsigned col_types[] = {25, 25, 16, 16, 16, 16, 25};
    static const char *const ix_names[] = {"index_name", "columns", "unique", "primary", "state"};
    static const unsigned ix_types[] = {25, 25, 16, 16, 25};
    static const char *const create_names[] = {"create_statement"};
    struct table_desc *d = NULL;
    if (what == 'c') {
        kv_table_init(out, 7, col_names, col_types);
    } else if (what == 'i') {
        kv_table_init(out, 5, ix_names, ix_types);
    } else {
        kv_table_init(out, 1, create_names, NULL);
    }
    if (!ask) {
        return true;
    }
    size_t at = st->first + 2;
    at += sql_token_is(&s->tokens, at, "FROM") || sql_token_is(&s->tokens, at, "FOR") ? 1 : 0;
    bool ok = take_table(s, st, &at, &d);
    if (ok && what == 'c') {
        columns(d, out);
    } else if (ok && what == 'i') {
        if (d->pk != PK_HIDDEN && d->kind == DESC_TABLE) {
            index_rows(d, &d->primary, out);
        }
        for (size_t i = 0; i < d->index_count; i++) {
            index_rows(d, &d->indexes[i], out);
        }
    } else if (ok) {
        struct buf sql = {0};
        buf_append_str(&sql, d->sql);
        for (size_t i = 0; i < d->index_count; i++) {
            if (d->indexes[i].sql[0] != '\0') {
                buf_printf(&sql, ";\n%s", d->indexes[i].sql);
            }
        }
        const char *cells[] = {buf_cstr(&sql)};
        kv_table_add_row(out, cells);
        buf_deinit(&sql);
    }
    table_desc_unref(d);
    return ok;
}

static bool variable(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out,
                     bool ask)
{
    struct buf name = {0};
    for (size_t i = st->first + 1; i < st->last; i++) {
        struct buf part = {0};
        sql_token_name(&s->tokens, i, &part);
        bool joined = sql_token_op(&s->tokens, i, ".") || sql_token_op(&s->tokens, i - 1, ".");
        if (name.size > 0 && !joined) {
            buf_append_byte(&name, '_');
        }
        buf_append_slice(&name, buf_slice(&part));
        buf_deinit(&part);
    }
    const char *n = buf_cstr(&name);
    if (strcasecmp(n, "time_zone") == 0) {
        n = "TimeZone";
    } else if (strcasecmp(n, "transaction_isolation_level") == 0) {
        n = "transaction_isolation";
    }
    const char *value = strcasecmp(n, "spanlite.txn_id") == 0 ? s->txn_id : vars_get(s, n);
    bool ok = value != NULL || !ask;
    if (ok) {
        const char *names[] = {n};
        const char *cells[] = {value};
        kv_table_init(out, 1, names, NULL);
        if (ask) {
            kv_table_add_row(out, cells);
        }
    } else {
        sql_error_set(&s->err, "42704", "unrecognized configuration parameter \"%s\"", n);
    }
    buf_deinit(&name);
    return ok;
}

static const struct {
    const char *word;
    enum kv_show what;
} store_words[] = {
    {"RANGES", KV_SHOW_RANGES}, {"NODES", KV_SHOW_NODES},
    {"CLOCKS", KV_SHOW_CLOCKS}, {"TRANSACTIONS", KV_SHOW_TRANSACTIONS},
    {"LOCKS", KV_SHOW_LOCKS},
};

static bool show(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out, bool ask)
{
    const struct sql_tokens *t = &s->tokens;
    size_t i = st->first + 1;
    memset(out, 0, sizeof *out);
    for (size_t k = 0; k < sizeof store_words / sizeof store_words[0]; k++) {
        if (sql_token_is(t, i, store_words[k].word)) {
            return store_table(s, st, store_words[k].what, out);
        }
    }
    if (sql_token_is(t, i, "CLUSTER")) {
        return cluster_settings(s, st, out, ask);
    }
    if (sql_token_is(t, i, "TRANSACTION") && sql_token_is(t, i + 1, "STATUS")) {
        return txn_status(s, st, out, ask);
    }
    if (sql_token_is(t, i, "TABLES")) {
        return run_at_end(s, st, i + 1) && tables(s, out, ask);
    }
    if (sql_token_is(t, i, "COLUMNS")) {
        return schema_show(s, st, 'c', out, ask);
    }
    if (sql_token_is(t, i, "INDEXES") || sql_token_is(t, i, "INDEX")) {
        return schema_show(s, st, 'i', out, ask);
    }
    if (sql_token_is(t, i, "CREATE")) {
        struct sql_stmt shifted = *st;
        shifted.first += sql_token_is(t, i + 1, "TABLE") || sql_token_is(t, i + 1, "VIEW") ? 1 : 0;
        return schema_show(s, &shifted, 'd', out, ask);
    }
    if (i >= st->last) {
        sql_error_set(&s->err, "42601", "SHOW what?");
        sql_error_hint(&s->err,
                       "SHOW RANGES, NODES, CLOCKS, TRANSACTIONS, LOCKS, TABLES, COLUMNS FROM t, "
                       "INDEXES FROM t, CREATE TABLE t, CLUSTER SETTINGS, or a session variable.");
        return false;
    }
    return variable(s, st, out, ask);
}

bool show_run(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out)
{
    return show(s, st, out, true);
}

bool show_describe(struct sql_session *s, const struct sql_stmt *st, struct kv_table *out)
{
    return show(s, st, out, false);
}
