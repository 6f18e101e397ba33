/* A session: making one, preparing statements, running one statement. The wire's interface is in
 * session_pg.c, commands that are not queries in commands.c; see session.h. */
#include "sql/session.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "sql/run.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

/* Pages of 4 KiB that working sets may fill: a statement that touches more rows is refused, not the
 * process killed. Sorts spill to unlinked temporary files (SQLite's default temp_store). */
#define WORKING_SET_PAGES "65536"

uint64_t session_mono_ns(const struct sql_session *s)
{
    if (s->opt.mono_ns != NULL) {
        return s->opt.mono_ns(s->opt.clock_ctx);
    }
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

bool session_fail(struct sql_session *s, span_status st, const struct span_error *err)
{
    const char *text = err == NULL || err->code != st ? "" : err->text;
    bool waited = st == SPAN_DEADLINE || st == SPAN_UNAVAILABLE;
    if (st == SPAN_DEADLINE && s->lock_timeout_ns != 0 &&
        (s->deadline_ns == 0 ||
         session_mono_ns(s) + s->statement_timeout_ns / 8 < s->deadline_ns)) {
        sql_error_set(&s->err, "55P03", "canceling statement due to lock timeout");
        snprintf(s->err.detail, sizeof s->err.detail, "%.500s", text);
        s->err.status = SPAN_DEADLINE;
        return false;
    }
    if (waited && s->deadline_ns != 0 &&
        (st == SPAN_DEADLINE || session_mono_ns(s) >= s->deadline_ns)) {
        /* The range gives up a little before the statement has to. */
        sql_error_set(&s->err, "57014", "canceling statement due to statement timeout");
        snprintf(s->err.detail, sizeof s->err.detail, "%.500s", text);
        s->err.status = SPAN_DEADLINE;
        return false;
    }
    sql_error_from_status(&s->err, st, text);
    return false;
}

void session_sqlite_error(struct sql_session *s, int rc)
{
    if (s->fault != SPAN_OK) {
        (void)session_fail(s, s->fault, &s->fault_err);
        s->fault = SPAN_OK;
        return;
    }
    sql_error_from_sqlite(&s->err, s->db, rc);
    if (strcmp(s->err.code, "57014") == 0 && s->deadline_ns != 0 &&
        !atomic_load_explicit(&s->canceled, memory_order_relaxed)) {
        sql_error_set(&s->err, "57014", "canceling statement due to statement timeout");
        s->err.status = SPAN_DEADLINE;
    }
}

bool session_exec(struct sql_session *s, const char *sql)
{
    bool was = s->internal;
    s->internal = true;
    int rc = sqlite3_exec(s->db, sql, NULL, NULL, NULL);
    s->internal = was;
    if (rc != SQLITE_OK) {
        session_sqlite_error(s, rc);
    }
    return rc == SQLITE_OK;
}

/* Name of the table SQLite misses, without the database it looked in. */
static bool missing_table(sqlite3 *db, struct buf *name)
{
    static const char prefix[] = "no such table: ";
    const char *msg = sqlite3_errmsg(db);
    if (strncmp(msg, prefix, sizeof prefix - 1) != 0) {
        return false;
    }
    msg += sizeof prefix - 1;
    if (strncmp(msg, "main.", 5) == 0 || strncmp(msg, "temp.", 5) == 0) {
        msg += 5;
    }
    buf_clear(name);
    buf_append_str(name, msg);
    (void)buf_cstr(name);
    return true;
}

void session_no_catalog(struct sql_session *s)
{
    sql_error_set(&s->err, "0A000",
                  "the catalogs pg_catalog and information_schema are not there yet");
    sql_error_hint(&s->err, "SHOW TABLES, SHOW COLUMNS FROM t, SHOW INDEXES FROM t and SHOW CREATE "
                            "TABLE t tell what they would; the shell `spanlite sql` has \\d.");
}

sqlite3_stmt *session_prepare(struct sql_session *s, const char *sql, bool own)
{
    sqlite3_stmt *st = NULL;
    struct buf name = {0};
    bool was = s->internal;
    for (int tries = 0; tries < 256; tries++) {
        s->internal = own;
        int rc = sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL);
        s->internal = was;
        if (rc == SQLITE_OK) {
            break;
        }
        bool declared = false;
        bool missing = missing_table(s->db, &name);
        session_sqlite_error(s, rc);
        if (!missing) {
            break;
        }
        struct sql_error keep = s->err;
        if (!session_declare(s, (const char *)name.data, &declared)) {
            break;
        }
        s->err = keep;
        if (!declared) {
            snprintf(s->err.table, sizeof s->err.table, "%.255s", (const char *)name.data);
            if (strncmp((const char *)name.data, "pg_", 3) == 0 ||
                strncmp((const char *)name.data, "information_schema", 18) == 0) {
                size_t offset = s->err.offset;
                session_no_catalog(s);
                s->err.offset = offset;
            }
            break;
        }
        sql_error_clear(&s->err);
    }
    buf_deinit(&name);
    if (st == NULL && s->err.code[0] == '\0') {
        sql_error_set(&s->err, "42601", "syntax error");
    }
    return st;
}

struct sql_session *sql_session_new(struct kv *kv, struct schema_cache *cache,
                                    const struct sql_session_options *opt, struct span_error *err)
{
    sql_global_init();
    struct sql_session *s = SPAN_NEW(struct sql_session);
    s->kv = kv;
    s->cache = cache;
    s->opt = *opt;
    s->user = span_strdup(opt->user == NULL ? "" : opt->user);
    s->database = span_strdup(opt->database == NULL ? "" : opt->database);
    s->opt.user = s->user;
    s->opt.database = s->database;
    s->seed = opt->seed != 0 ? opt->seed : rng_os_u64();
    s->epoch = 1;
    mapb_init(&s->tables);
    mapb_init(&s->plans);
    list_init(&s->plan_lru);
    sql_tokens_init(&s->tokens);
    sql_rewritten_init(&s->rewritten);
    vars_init(s);
    s->opt.application_name = NULL;
    sql_error_clear(&s->err);
    int rc = sqlite3_open_v2(":memory:", &s->db,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                             "spanlite-session");
    bool ok =
        rc == SQLITE_OK && session_add_functions(s) &&
        vtab_register(s->db, "spanlite", &session_source_ops, s) == SQLITE_OK &&
        session_exec(s, "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;"
                        "PRAGMA cache_size = -512; PRAGMA max_page_count = " WORKING_SET_PAGES);
    if (!ok) {
        (void)span_fail(err, SPAN_NOMEM, "cannot open a SQL session: %s",
                        s->db == NULL ? "out of memory" : sqlite3_errmsg(s->db));
        sql_session_free(s);
        return NULL;
    }
    session_guard(s);
    if (opt->application_name != NULL) {
        (void)vars_set(s, "application_name", opt->application_name);
    }
    s->last_active_ns = session_mono_ns(s);
    return s;
}

void sql_session_free(struct sql_session *s)
{
    if (s == NULL) {
        return;
    }
    s->sink = NULL;
    if (s->db != NULL) {
        block_rollback(s);
        session_undeclare_all(s);
        session_plans_clear(s);
        sqlite3_close(s->db);
    }
    session_scans_reset(s);
    mapb_deinit(&s->tables);
    mapb_deinit(&s->plans);
    sql_tokens_deinit(&s->tokens);
    sql_rewritten_deinit(&s->rewritten);
    buf_deinit(&s->scratch);
    vars_deinit(s);
    span_free(s->user);
    span_free(s->database);
    if (s->kv != NULL) {
        s->kv->ops->free(s->kv);
    }
    span_free(s);
}

/* --- binding --- */

static bool bind_literal(sqlite3_stmt *st, int at, const struct sql_literal *l, struct buf *scratch)
{
    char text[64];
    switch (l->kind) {
    case TOK_STRING:
    case TOK_BLOB:
        if (l->kind == TOK_STRING && l->src.data[0] == '\'' &&
            memchr(l->src.data + 1, '\'', l->src.size - 2) == NULL) {
            return sqlite3_bind_text(st, at, (const char *)l->src.data + 1, (int)l->src.size - 2,
                                     SQLITE_TRANSIENT) == SQLITE_OK;
        }
        sql_literal_value(l, scratch);
        if (l->kind == TOK_BLOB) {
            return (scratch->size == 0 ? sqlite3_bind_zeroblob(st, at, 0)
                                       : sqlite3_bind_blob64(st, at, scratch->data, scratch->size,
                                                             SQLITE_TRANSIENT)) == SQLITE_OK;
        }
        return sqlite3_bind_text64(st, at, buf_cstr(scratch), scratch->size, SQLITE_TRANSIENT,
                                   SQLITE_UTF8) == SQLITE_OK;
    case TOK_NUMBER: {
        struct sql_value v = {.type = SQL_TEXT, .s = l->src};
        if (l->src.size > 1 && (l->src.data[1] == 'x' || l->src.data[1] == 'X')) {
            snprintf(text, sizeof text, "%.*s", (int)l->src.size, (const char *)l->src.data);
            return sqlite3_bind_int64(st, at, (sqlite3_int64)strtoull(text, NULL, 16)) == SQLITE_OK;
        }
        sql_value_apply_affinity(&v, AFF_NUMERIC, NULL);
        return sql_value_bind(st, at, &v) == SQLITE_OK;
    }
    case TOK_WORD:
    case TOK_QUOTED:
    case TOK_PARAM:
    case TOK_OP:
        break;
    }
    return false;
}

static bool unhex(struct slice s, struct buf *out)
{
    for (size_t i = 2; i + 1 < s.size; i += 2) {
        int hi = s.data[i] <= '9' ? s.data[i] - '0' : (s.data[i] | 0x20) - 'a' + 10;
        int lo = s.data[i + 1] <= '9' ? s.data[i + 1] - '0' : (s.data[i + 1] | 0x20) - 'a' + 10;
        if (hi < 0 || hi > 15 || lo < 0 || lo > 15) {
            return false;
        }
        buf_append_byte(out, (uint8_t)(hi << 4 | lo));
    }
    return true;
}

/* A parameter in text format as the type its OID says; unknown ones stay text, which columns
 * convert. */
static bool param_value(struct slice text, uint32_t oid, struct sql_value *v, struct buf *scratch)
{
    *v = (struct sql_value){.type = SQL_TEXT, .s = text};
    switch (oid) {
    case PG_OID_INT8:
    case PG_OID_INT4:
    case PG_OID_INT2:
    case PG_OID_OID:
    case PG_OID_NUMERIC:
        sql_value_apply_affinity(v, AFF_NUMERIC, NULL);
        return v->type != SQL_TEXT;
    case PG_OID_FLOAT4:
    case PG_OID_FLOAT8:
        sql_value_apply_affinity(v, AFF_REAL, NULL);
        if (v->type == SQL_INT) {
            *v = (struct sql_value){.type = SQL_REAL, .r = (double)v->i};
        }
        return v->type == SQL_REAL;
    case PG_OID_BOOL: {
        bool t = text.size > 0 && strchr("tTyY1", text.data[0]) != NULL;
        bool on = text.size == 2 && strncasecmp((const char *)text.data, "on", 2) == 0;
        *v = sql_value_int(t || on ? 1 : 0);
        return text.size > 0;
    }
    case PG_OID_BYTEA:
        if (text.size >= 2 && text.data[0] == '\\' && text.data[1] == 'x') {
            if (!unhex(text, scratch)) {
                return false;
            }
            *v = (struct sql_value){.type = SQL_BLOB, .s = buf_slice(scratch)};
        } else {
            v->type = SQL_BLOB;
        }
        return true;
    default:
        return true;
    }
}

bool session_bind_params(struct sql_session *s, sqlite3_stmt *stmt, const struct sql_params *p)
{
    int n = sqlite3_bind_parameter_count(stmt);
    sqlite3_clear_bindings(stmt);
    for (size_t i = 0; i < s->rewritten.literal_count && (int)i < n && s->rewritten.normalised;
         i++) {
        if (!bind_literal(stmt, (int)i + 1, &s->rewritten.literals[i], &s->scratch)) {
            sql_error_set(&s->err, "54000", "a literal is too large");
            return false;
        }
    }
    for (size_t i = 0; p != NULL && i < p->count && (int)i < n; i++) {
        struct sql_value v;
        if (p->values[i].is_null) {
            continue;
        }
        buf_clear(&s->scratch);
        if (!param_value(p->values[i].text, p->oids[i], &v, &s->scratch)) {
            sql_error_set(&s->err, "22P02", "invalid value for parameter $%zu: \"%.*s\"", i + 1,
                          (int)p->values[i].text.size, (const char *)p->values[i].text.data);
            return false;
        }
        if (sql_value_bind(stmt, (int)i + 1, &v) != SQLITE_OK) {
            sql_error_set(&s->err, "54000", "parameter $%zu is too large", i + 1);
            return false;
        }
    }
    return true;
}
