/* CREATE TABLE text to a descriptor, and back to the text of the working set. SQLite reads the
 * text: it is run in a scratch database and what came of it is asked back. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/ddl.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <strings.h>

/* --- the working set's DDL --- */

/* Token after name and schema of CREATE TABLE: the '(' of the column list; 0: none. */
static size_t create_paren(const struct sql_tokens *t)
{
    for (size_t i = 0; i < t->count; i++) {
        if (t->t[i].depth == 0 && sql_token_op(t, i, "(")) {
            return i;
        }
    }
    return 0;
}

static size_t closing(const struct sql_tokens *t, size_t open)
{
    for (size_t i = open + 1; i < t->count; i++) {
        if (t->t[i].depth == t->t[open].depth && sql_token_op(t, i, ")")) {
            return i;
        }
    }
    return t->count;
}

/* End of a column's "PRIMARY KEY [ASC|DESC] [ON CONFLICT x]" that begins at token i. */
static size_t primary_key_end(const struct sql_tokens *t, size_t i)
{
    i += 2;
    if (sql_token_is(t, i, "ASC") || sql_token_is(t, i, "DESC")) {
        i++;
    }
    if (sql_token_is(t, i, "ON") && sql_token_is(t, i + 1, "CONFLICT")) {
        i += 3;
    }
    return i;
}

static void copy_tokens(const struct sql_tokens *t, size_t from, size_t upto, struct buf *out)
{
    if (from < upto) {
        buf_append_byte(out, ' ');
        buf_append(out, t->src.data + t->t[from].start, t->t[upto - 1].end - t->t[from].start);
    }
}

/* Column definitions with AUTOINCREMENT on the rowid column and generated columns stored. */
static void shadow_body(const struct table_desc *d, const struct sql_tokens *t, size_t open,
                        size_t close, struct buf *out)
{
    size_t from = open + 1;
    for (size_t i = open + 1; i < close; i++) {
        if (t->t[i].depth != 1) {
            continue;
        }
        if (d->pk == PK_ROWID && sql_token_is(t, i, "PRIMARY") && sql_token_is(t, i + 1, "KEY")) {
            if (sql_token_op(t, i + 2, "(")) {
                size_t end = closing(t, i + 2);
                if (!sql_token_is(t, end - 1, "AUTOINCREMENT")) {
                    copy_tokens(t, from, end, out);
                    buf_append_str(out, " AUTOINCREMENT");
                    from = end;
                }
                i = end;
                continue;
            }
            size_t end = primary_key_end(t, i);
            if (!sql_token_is(t, end, "AUTOINCREMENT")) {
                copy_tokens(t, from, end, out);
                buf_append_str(out, " AUTOINCREMENT");
                from = end;
            }
            i = end - 1;
        } else if (sql_token_is(t, i, "AS") && sql_token_op(t, i + 1, "(")) {
            size_t end = closing(t, i + 1);
            copy_tokens(t, from, end + 1, out);
            buf_append_str(out, " STORED");
            from = end + 1;
            if (sql_token_is(t, from, "VIRTUAL") || sql_token_is(t, from, "STORED")) {
                from++;
            }
            i = from - 1;
        }
    }
    copy_tokens(t, from, close, out);
}

static void shadow_indexes(const struct table_desc *d, struct buf *out)
{
    for (size_t k = 0; k < d->index_count; k++) {
        const struct table_index *ix = &d->indexes[k];
        if (!ix->unique || ix->sql[0] == '\0') {
            continue;
        }
        buf_append_str(out, "; CREATE UNIQUE INDEX main.");
        sql_quote_ident(out, ix->name);
        buf_append_str(out, " ON ");
        sql_quote_ident(out, d->name);
        buf_append_str(out, "(");
        for (size_t i = 0; i < ix->count; i++) {
            buf_append_str(out, i == 0 ? "" : ", ");
            sql_quote_ident(out, d->columns[ix->columns[i]].name);
            buf_printf(out, " COLLATE %s%s", sql_collation_name(ix->collations[i]),
                       ix->desc[i] ? " DESC" : "");
        }
        buf_append_str(out, ")");
    }
}

bool ddl_shadow_sql(const struct table_desc *d, struct buf *out, struct sql_error *err)
{
    struct sql_tokens t;
    size_t bad = 0;
    sql_tokens_init(&t);
    size_t open = 0;
    if (sql_tokenize(slice_str(d->sql), &t, &bad) == SPAN_OK) {
        open = create_paren(&t);
    }
    if (open == 0) {
        sql_error_set(err, "XX001", "the definition of \"%s\" cannot be read", d->name);
        sql_tokens_deinit(&t);
        return false;
    }
    size_t close = closing(&t, open);
    buf_append_str(out, "CREATE TABLE main.");
    sql_quote_ident(out, d->name);
    buf_append_str(out, "(");
    shadow_body(d, &t, open, close, out);
    buf_append_str(out, ")");
    for (size_t i = close; i < t.count; i++) {
        if (sql_token_is(&t, i, "STRICT")) {
            buf_append_str(out, " STRICT");
        }
    }
    shadow_indexes(d, out);
    sql_tokens_deinit(&t);
    return true;
}

bool ddl_view_sql(const struct table_desc *d, struct buf *out)
{
    struct sql_tokens t;
    size_t bad = 0;
    bool ok = false;
    sql_tokens_init(&t);
    if (sql_tokenize(slice_str(d->sql), &t, &bad) == SPAN_OK) {
        /* CREATE VIEW [IF NOT EXISTS] name [(columns)] AS SELECT ... */
        for (size_t i = 1; i < t.count && !ok; i++) {
            if (t.t[i].depth == 0 &&
                (sql_token_is(&t, i, "AS") || (i > 2 && sql_token_op(&t, i, "(")))) {
                buf_append_str(out, "CREATE TEMP VIEW ");
                sql_quote_ident(out, d->name);
                copy_tokens(&t, i, t.count, out);
                ok = true;
            }
        }
    }
    sql_tokens_deinit(&t);
    return ok;
}

/* --- describing --- */

static char *column_copy(sqlite3_stmt *st, int i)
{
    const char *p = (const char *)sqlite3_column_text(st, i);
    return span_strdup(p == NULL ? "" : p);
}

static sqlite3_stmt *ask(sqlite3 *db, const char *sql, const char *arg)
{
    sqlite3_stmt *st = NULL;
    if (sqlite3_prepare_v2(db, sql, -1, &st, NULL) != SQLITE_OK) {
        return NULL;
    }
    sqlite3_bind_text(st, 1, arg, -1, SQLITE_TRANSIENT);
    return st;
}

static bool describe_columns(sqlite3 *db, struct table_desc *d, uint16_t *pk_order,
                             size_t *pk_count, struct sql_error *err)
{
    sqlite3_stmt *st = ask(db,
                           "SELECT name, type, \"notnull\", dflt_value, pk, hidden "
                           "FROM pragma_table_xinfo(?1) ORDER BY cid",
                           d->name);
    size_t cap = 0;
    *pk_count = 0;
    while (st != NULL && sqlite3_step(st) == SQLITE_ROW) {
        if (d->column_count == LIMIT_COLUMNS) {
            sqlite3_finalize(st);
            sql_error_set(err, "54011", "a table has at most %d columns", LIMIT_COLUMNS);
            return false;
        }
        if (d->column_count == cap) {
            cap = cap == 0 ? 8 : cap * 2;
            d->columns = span_realloc(d->columns, cap * sizeof *d->columns);
        }
        struct table_column *c = &d->columns[d->column_count];
        memset(c, 0, sizeof *c);
        c->name = column_copy(st, 0);
        c->decl_type = column_copy(st, 1);
        c->notnull = sqlite3_column_int(st, 2) != 0;
        c->has_default = sqlite3_column_type(st, 3) != SQLITE_NULL;
        c->generated = sqlite3_column_int(st, 5) >= 2;
        c->affinity = sql_affinity_of(c->decl_type);
        int pk = sqlite3_column_int(st, 4);
        if (pk > 0 && pk <= LIMIT_COLUMNS) {
            pk_order[pk - 1] = (uint16_t)d->column_count;
            *pk_count = (size_t)pk > *pk_count ? (size_t)pk : *pk_count;
        }
        const char *coll = NULL;
        d->column_count++;
        sqlite3_table_column_metadata(db, "main", d->name, c->name, NULL, &coll, NULL, NULL, NULL);
        if (!sql_collation_of(coll, &c->collation)) {
            sqlite3_finalize(st);
            sql_error_set(err, "42704", "no such collation sequence: %s", coll);
            return false;
        }
    }
    sqlite3_finalize(st);
    return d->column_count > 0;
}

/* Columns, directions and collations of a SQLite index. */
static bool describe_index(sqlite3 *db, const char *name, struct table_index *ix,
                           struct sql_error *err)
{
    sqlite3_stmt *st = ask(db,
                           "SELECT cid, desc, coll FROM pragma_index_xinfo(?1) WHERE key = 1 "
                           "ORDER BY seqno",
                           name);
    bool ok = st != NULL;
    ix->columns = span_calloc(LIMIT_COLUMNS, sizeof *ix->columns);
    ix->desc = span_calloc(LIMIT_COLUMNS, sizeof *ix->desc);
    ix->collations = span_calloc(LIMIT_COLUMNS, sizeof *ix->collations);
    while (ok && sqlite3_step(st) == SQLITE_ROW) {
        int cid = sqlite3_column_int(st, 0);
        const char *coll = (const char *)sqlite3_column_text(st, 2);
        if (cid < 0) {
            sql_error_set(err, "0A000", "indexes on expressions are not supported");
            sql_error_hint(err, "Add a generated column with the expression and index that.");
            ok = false;
        } else if (!sql_collation_of(coll, &ix->collations[ix->count])) {
            sql_error_set(err, "42704", "no such collation sequence: %s", coll);
            ok = false;
        } else {
            ix->columns[ix->count] = (uint16_t)cid;
            ix->desc[ix->count++] = sqlite3_column_int(st, 1) != 0;
        }
    }
    sqlite3_finalize(st);
    return ok;
}

/* PostgreSQL's names: t_pkey, t_a_b_key. */
static char *constraint_name(const struct table_desc *d, const struct table_index *ix, bool primary)
{
    struct buf b = {0};
    buf_append_str(&b, d->name);
    for (size_t i = 0; !primary && i < ix->count; i++) {
        buf_printf(&b, "_%s", d->columns[ix->columns[i]].name);
    }
    buf_append_str(&b, primary ? "_pkey" : "_key");
    char *name = span_strdup(buf_cstr(&b));
    buf_deinit(&b);
    return name;
}

static bool describe_indexes(sqlite3 *db, struct table_desc *d, bool *pk_index,
                             struct sql_error *err)
{
    sqlite3_stmt *st =
        ask(db, "SELECT name, origin FROM pragma_index_list(?1) ORDER BY seq DESC", d->name);
    bool ok = st != NULL;
    while (ok && sqlite3_step(st) == SQLITE_ROW) {
        const char *name = (const char *)sqlite3_column_text(st, 0);
        const char *origin = (const char *)sqlite3_column_text(st, 1);
        if (name == NULL || origin == NULL) {
            continue;
        }
        if (strcmp(origin, "pk") == 0) {
            *pk_index = true;
            ok = describe_index(db, name, &d->primary, err);
            continue;
        }
        if (d->index_count == LIMIT_TABLE_INDEXES) {
            sql_error_set(err, "54000", "a table has at most %d indexes", LIMIT_TABLE_INDEXES);
            ok = false;
            continue;
        }
        d->indexes = span_realloc(d->indexes, (d->index_count + 1) * sizeof *d->indexes);
        struct table_index *ix = &d->indexes[d->index_count++];
        memset(ix, 0, sizeof *ix);
        ok = describe_index(db, name, ix, err);
        ix->id = d->next_index_id++;
        ix->unique = true;
        ix->sql = span_strdup("");
        ix->name = constraint_name(d, ix, false);
    }
    sqlite3_finalize(st);
    return ok;
}

static bool is_without_rowid(sqlite3 *db, const char *name)
{
    sqlite3_stmt *st =
        ask(db, "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1", name);
    bool wr = st != NULL && sqlite3_step(st) == SQLITE_ROW && sqlite3_column_int(st, 0) != 0;
    sqlite3_finalize(st);
    return wr;
}

/* The working set is always a rowid table, in which one INTEGER key column is the rowid. */
static void describe_primary(sqlite3 *db, struct table_desc *d, const uint16_t *pk_order,
                             size_t pk_count, bool pk_index)
{
    struct table_index *p = &d->primary;
    p->unique = true;
    p->sql = span_strdup("");
    if (pk_index && pk_count == 1 && is_without_rowid(db, d->name) &&
        strcasecmp(d->columns[pk_order[0]].decl_type, "INTEGER") == 0) {
        pk_index = false;
        p->count = 1;
        p->desc[0] = false;
    }
    if (pk_index) {
        d->pk = PK_COLUMNS;
    } else if (pk_count == 1) {
        d->pk = PK_ROWID;
        d->pk_column = pk_order[0];
    } else {
        d->pk = PK_HIDDEN;
    }
    if (p->columns == NULL) {
        p->columns = span_calloc(2, sizeof *p->columns);
        p->desc = span_calloc(2, sizeof *p->desc);
        p->collations = span_calloc(2, sizeof *p->collations);
        p->count = d->pk == PK_ROWID ? 1 : 0;
        p->columns[0] = d->pk_column;
    }
    p->name = constraint_name(d, p, true);
}

/* A column twice in a key would be stored twice for nothing and SQLite ignores it. */
static void drop_doubles(struct table_index *ix)
{
    size_t n = 0;
    for (size_t i = 0; i < ix->count; i++) {
        bool seen = false;
        for (size_t k = 0; k < n; k++) {
            seen = seen ||
                   (ix->columns[k] == ix->columns[i] && ix->collations[k] == ix->collations[i]);
        }
        if (!seen) {
            ix->columns[n] = ix->columns[i];
            ix->desc[n] = ix->desc[i];
            ix->collations[n++] = ix->collations[i];
        }
    }
    ix->count = n;
}

static bool has_conflict_clause(const char *sql)
{
    struct sql_tokens t;
    size_t bad = 0;
    bool found = false;
    sql_tokens_init(&t);
    if (sql_tokenize(slice_str(sql), &t, &bad) == SPAN_OK) {
        for (size_t i = 0; i + 1 < t.count; i++) {
            found = found || (sql_token_is(&t, i, "ON") && sql_token_is(&t, i + 1, "CONFLICT"));
        }
    }
    sql_tokens_deinit(&t);
    return found;
}

/* A database of its own in which text has been run; NULL with err. */
static sqlite3 *scratch_open(struct sql_session *s, struct sql_session *scratch, const char *sql,
                             struct sql_error *err)
{
    memset(scratch, 0, sizeof *scratch);
    if (sqlite3_open_v2(":memory:", &scratch->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        "spanlite-session") != SQLITE_OK) {
        sql_error_set(err, "53200", "out of memory");
        sqlite3_close(scratch->db);
        return NULL;
    }
    scratch->opt = s->opt;
    scratch->internal = true;
    session_guard(scratch);
    int rc = session_add_functions(scratch) ? SQLITE_OK : SQLITE_ERROR;
    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(scratch->db, sql, NULL, NULL, NULL);
    }
    if (rc != SQLITE_OK) {
        sql_error_from_sqlite(err, scratch->db, rc);
        sqlite3_close(scratch->db);
        return NULL;
    }
    return scratch->db;
}

bool ddl_describe_index(struct sql_session *s, const struct table_desc *d, const char *sql,
                        const char *name, struct table_index *ix, struct sql_error *err)
{
    struct sql_session scratch;
    struct buf both = {0};
    buf_printf(&both, "%s;%s", d->sql, sql);
    sqlite3 *db = scratch_open(s, &scratch, buf_cstr(&both), err);
    buf_deinit(&both);
    if (db == NULL) {
        return false;
    }
    bool ok = describe_index(db, name, ix, err);
    sqlite3_close(db);
    return ok;
}

struct table_desc *ddl_describe(struct sql_session *s, const char *create_sql,
                                struct sql_error *err)
{
    uint16_t pk_order[LIMIT_COLUMNS] = {0};
    size_t pk_count = 0;
    bool pk_index = false;
    struct sql_session scratch;
    struct table_desc *d = NULL;
    if (scratch_open(s, &scratch, create_sql, err) == NULL) {
        return NULL;
    }
    sqlite3_stmt *st = NULL;
    if ((st = ask(scratch.db,
                  "SELECT name FROM sqlite_schema WHERE type = 'table' AND "
                  "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
                  "")) != NULL &&
        sqlite3_step(st) == SQLITE_ROW) {
        d = table_desc_new();
        d->kind = DESC_TABLE;
        d->version = 1;
        d->next_index_id = 1;
        d->name = column_copy(st, 0);
        d->table = span_strdup("");
        d->sql = span_strdup(create_sql);
        d->conflict_clauses = has_conflict_clause(create_sql);
        if (describe_columns(scratch.db, d, pk_order, &pk_count, err) &&
            describe_indexes(scratch.db, d, &pk_index, err)) {
            drop_doubles(&d->primary);
            describe_primary(scratch.db, d, pk_order, pk_count, pk_index);
        } else {
            table_desc_unref(d);
            d = NULL;
        }
    } else {
        sql_error_set(err, "42601", "the statement made no table");
    }
    sqlite3_finalize(st);
    sqlite3_close(scratch.db);
    return d;
}
