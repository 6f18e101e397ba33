/* What the files of a session share; private to sql/. See session.h for the whole. */
#ifndef SPAN_SQL_SESSION_IMPL_H
#define SPAN_SQL_SESSION_IMPL_H

#include "base/list.h"
#include "base/map.h"
#include "base/rng.h"
#include "sql/session.h"
#include "sql/split.h"
#include "sql/sqlstate.h"
#include "sql/vtab/vtab.h"

#include <stdatomic.h>

#define UPDATE_PREFIX    "~upd " /* name of the virtual table that locks what it returns (rule C6) */
#define PLAN_CACHE_MAX   128
#define SCAN_CACHE_SLOTS 8
#define SCAN_CACHE_BYTES (4U << 20)
#define SESSION_VARS_MAX 64

/* A table this session has declared to SQLite. */
struct sess_table {
    struct sql_session *s;
    struct table_desc *desc; /* a reference */
    char *quoted;            /* "name" */
    struct vtab_shape shape;
    struct vtab_index *vindexes;
    uint16_t *index_of; /* vindexes[i] is desc->indexes[index_of[i]]; 0 is the primary */
    char *declare;
    const char **column_names; /* borrowed from desc */
    bool has_update;           /* the "~upd" twin exists */
    bool has_shadow;           /* main.T exists */
    sqlite3_stmt *load;        /* INSERT of one stored row into main.T, rowid first if it has one */
    sqlite3_stmt *clear;       /* DELETE FROM main.T */
    sqlite3_stmt *seq;         /* UPDATE sqlite_sequence, for automatic ids */
    uint64_t used_epoch;       /* kv use_table was called in the transaction of this epoch */
    bool is_view;
};

/* Rows a statement scanned more than once, kept for its further scans of the same span. */
struct scan_cache {
    uint32_t table;
    bool reverse;
    enum kv_lock lock;
    struct buf start;
    struct buf end;
    struct buf rows; /* per row: u32 key length, u32 value length, bytes */
    unsigned scans;
    bool recording;
    bool complete;
};

/* A prepared statement, found by its rewritten text. */
struct plan {
    struct list lru;
    char *text;
    size_t text_size;
    enum sql_verb verb;
    struct table_desc *target; /* DML: reference */
    sqlite3_stmt *run;         /* SELECT, or the DML statement on main.T */
    sqlite3_stmt *prefetch;    /* UPDATE, DELETE: target rows into main.T */
    char *survey; /* UPSERT: text that captures every row it would insert, see dml.c; or NULL */
    bool for_update;
    bool returning;
    bool resolves_conflicts; /* OR REPLACE, OR IGNORE, ON CONFLICT, or the table's own clauses */
    bool auto_rowid;         /* INSERT whose column list lacks the rowid column */
    bool maybe_auto_rowid;   /* INSERT where NULL may stand for an automatic id */
    bool is_insert;
    size_t values_rows;
    int param_count;
    size_t column_count;
    struct pg_column *columns;
    unsigned busy; /* uses on the stack: not evicted */
};

struct overlay { /* a name whose meaning the open transaction changed */
    char *name;
    struct table_desc *desc; /* NULL: dropped */
    bool created;            /* its table id was born in this transaction */
    bool pinned;             /* not DDL: an old descriptor for a read at an old timestamp */
};

struct savepoint {
    char *name;
    struct kv_mark mark;
    uint64_t ddl_count; /* DDL cannot be rolled back alone: refused when it differs */
    size_t var_mark;    /* settings changed behind it are undone */
};

enum block {
    BLOCK_NONE,
    BLOCK_IMPLICIT, /* several statements in one message, or a pipeline before Sync */
    BLOCK_EXPLICIT, /* BEGIN */
};

struct session_var {
    char *value;
    char *kept; /* SET LOCAL: what it becomes when the transaction commits; NULL: it stays */
};

struct var_undo { /* a setting before it was changed in the open block */
    size_t var;
    char *value;
    char *kept;
};

struct sql_session {
    struct kv *kv;
    struct schema_cache *cache;
    struct sql_session_options opt;
    char *user;
    char *database;
    sqlite3 *db;

    struct mapb tables; /* lower-case name -> struct sess_table */
    uint64_t cache_seen;
    size_t view_count;    /* declared views */
    uint64_t views_epoch; /* transaction in which they were last compared with the store */
    bool resync; /* compare every declared table with the cache before the next statement */
    struct mapb plans;
    struct list plan_lru;
    size_t plan_count;
    bool internal;          /* the gateway's own SQL runs: the authorizer lets everything pass */
    const char *dml_target; /* a statement on main.<this> is being prepared */

    enum block block;
    bool failed;
    bool kv_open; /* kv has a transaction */
    bool read_only;
    bool refuse_writes; /* of a block that turned READ ONLY behind its first statements */
    bool historical;    /* a read-only block: its schema is that of its timestamp */
    uint64_t epoch;     /* of the kv transaction, for used_epoch */
    struct overlay *overlays;
    size_t overlay_count;
    struct savepoint *savepoints;
    size_t savepoint_count;
    char txn_id[128];
    char last_txn_id[128]; /* the newest that was told: SHOW TRANSACTION STATUS without an id */
    bool sweep_due;        /* the open transaction leaves keys to ddl_sweep */
    uint64_t ddl_count;    /* statements that changed the schema, ever */
    struct pg_portal *pipelined; /* the one write of a pipeline so far, for another try at Sync */
    uint64_t block_statements;   /* that succeeded in this kv transaction: none, and it can be begun
                                    again */
    struct kv_txn_options begun; /* how it was begun */

    /* the running statement */
    const struct pg_sink *sink;
    struct sql_error err;
    span_status fault; /* what the store said inside a virtual table call */
    struct span_error fault_err;
    enum kv_lock read_lock;
    uint64_t deadline_ns;
    atomic_bool running;
    atomic_bool canceled;
    uint64_t seed; /* of this statement: the same in repeated runs (rule G2) */
    struct rng rng;
    int64_t now_ms; /* Unix milliseconds: the same in repeated runs */
    struct scan_cache scans[SCAN_CACHE_SLOTS];
    size_t scan_slots;
    struct dml_capture *capture; /* preupdate changes go here; NULL: not capturing */
    bool rows_sent;
    bool client_gone;
    uint64_t gated;
    bool unbounded_pick; /* an UPDATE picked its rows with an unbounded scan */

    uint64_t last_active_ns;
    struct session_var vars[SESSION_VARS_MAX];
    size_t var_count;
    struct var_undo *var_undo;
    size_t var_undo_count;
    size_t var_undo_cap;
    uint64_t statement_timeout_ns;
    uint64_t lock_timeout_ns;
    uint64_t idle_timeout_ns;         /* inside a block */
    uint64_t idle_session_timeout_ns; /* outside */
    struct sql_tokens tokens;
    struct sql_rewritten rewritten;
    struct buf scratch;
};

/* session.c */
uint64_t session_mono_ns(const struct sql_session *s);
/* Runs the gateway's own SQL. False with s->err set. */
bool session_exec(struct sql_session *s, const char *sql);
/* Prepares user text; declares tables as SQLite asks for them. NULL with s->err set. persistent
 * statements are kept. */
sqlite3_stmt *session_prepare(struct sql_session *s, const char *sql, bool own);
/* s->err from the store's fault if there was one, else from SQLite. */
void session_sqlite_error(struct sql_session *s, int rc);
/* The error of a query on the catalogs of PostgreSQL. */
void session_no_catalog(struct sql_session *s);
/* Store's error into s->err; always false, for `return session_fail(...)`. */
bool session_fail(struct sql_session *s, span_status st, const struct span_error *err);

/* tables.c */
/* Descriptor as this session sees it: *out a reference or NULL when there is none. False with
 * s->err. */
bool session_find_desc(struct sql_session *s, const char *name, struct table_desc **out);
/* Declared table; NULL with s->err (42P01 when there is none). */
struct sess_table *session_table(struct sql_session *s, const char *name);
/* Declares it if it exists: *declared. */
bool session_declare(struct sql_session *s, const char *name, bool *declared);
bool session_need_shadow(struct sql_session *s, struct sess_table *t);
bool session_need_update_twin(struct sql_session *s, struct sess_table *t);
/* Column list of what a row stores: the hidden rowid first, no generated columns. */
void session_stored_columns(const struct table_desc *d, struct buf *out);
void session_undeclare(struct sql_session *s, const char *name);
void session_undeclare_all(struct sql_session *s);
/* Drops what the cache or the transaction has newer versions of. Before each statement. */
void session_sync_schema(struct sql_session *s);
/* After STALE_SCHEMA: forgets cached descriptors of every table of this transaction. */
void session_forget_schema(struct sql_session *s);
/* Loads, at the transaction's own timestamp, the descriptors of the tables used. */
bool session_pin_old_schema(struct sql_session *s);
/* DDL: the name means this from now on in this transaction. Takes the reference; NULL: dropped. */
void session_overlay_set(struct sql_session *s, const char *name, struct table_desc *d,
                         bool created);
struct overlay *session_overlay_find(struct sql_session *s, const char *name);
/* End of the transaction: publishes or forgets. */
void session_overlay_end(struct sql_session *s, bool committed);
void session_use_table(struct sql_session *s, struct sess_table *t);
void session_use_desc(struct sql_session *s, const struct table_desc *d);

/* source.c */
extern const struct vtab_source_ops session_source_ops;
void session_scans_reset(struct sql_session *s);
enum kv_lock session_lock(const struct sql_session *s, enum kv_lock wanted);

/* funcs.c */
bool session_add_functions(struct sql_session *s);
void session_guard(struct sql_session *s);
void session_statement_clock(struct sql_session *s);
void session_enter(struct sql_session *s);
void session_leave(struct sql_session *s);

/* plans.c */
/* The plan of the rewritten statement in s->rewritten; NULL with s->err. */
struct plan *session_plan(struct sql_session *s, const struct sql_stmt *st);
void session_plans_clear(struct sql_session *s);

/* block.c */
bool block_begin_kv(struct sql_session *s, bool read_only, bool autocommit);
/* Commits or rolls back the kv transaction and ends the block. False with s->err. */
bool block_commit(struct sql_session *s);
void block_rollback(struct sql_session *s);
/* Rolls the kv transaction back and leaves the block as it is (failed, or about to be begun again).
 */
void block_drop_kv(struct sql_session *s);
bool block_begin_again(struct sql_session *s);
bool block_savepoint(struct sql_session *s, const char *name);
bool block_release(struct sql_session *s, const char *name);
bool block_rollback_to(struct sql_session *s, const char *name);
void block_report_txn_id(struct sql_session *s);
bool block_begin_statement(struct sql_session *s, const struct sql_stmt *st);

/* What BEGIN and SET TRANSACTION can ask for. */
struct block_mode {
    struct kv_txn_options opt;
    bool only;  /* READ ONLY, or what implies it */
    bool write; /* READ WRITE */
};

/* The modes in tokens [at, last), and those of a BEGIN statement. False with s->err. */
bool block_parse_mode(struct sql_session *s, size_t at, size_t last, struct block_mode *m);
bool block_parse_begin(struct sql_session *s, const struct sql_stmt *st, struct block_mode *m);
/* Would the mode change the open block? */
bool block_mode_differs(const struct sql_session *s, const struct block_mode *m);
/* Gives the open block the mode: READ ONLY at any time, the others before its first statement.
 * False with s->err. */
bool block_change_mode(struct sql_session *s, const struct block_mode *m);
/* Is this transaction, or the statement's own that is about to begin, read-only? */
bool block_refuses_writes(struct sql_session *s);

/* vars.c */
void vars_init(struct sql_session *s);
void vars_deinit(struct sql_session *s);
const char *vars_get(struct sql_session *s, const char *name);             /* NULL: unknown */
bool vars_set(struct sql_session *s, const char *name, const char *value); /* false with s->err */
/* SET LOCAL: ends with the transaction. */
bool vars_set_local(struct sql_session *s, const char *name, const char *value);
bool vars_reset(struct sql_session *s, const char *name, bool local);
/* Settings changed in a block follow it: undone by ROLLBACK, and those of SET LOCAL by COMMIT. */
void vars_rollback_to(struct sql_session *s, size_t mark);
void vars_end(struct sql_session *s, bool committed);
/* Does client_min_messages let a message of this weight pass? */
bool vars_wants_notice(struct sql_session *s, bool warning);
void vars_reset_all(struct sql_session *s);
bool parse_duration_ns(const char *text, uint64_t default_unit_ns, uint64_t *out);

/* Values bound to a statement's parameters. */
struct sql_params {
    const struct pg_value *values;
    const uint32_t *oids; /* [count], 0: unknown */
    size_t count;
};

bool session_bind_params(struct sql_session *s, sqlite3_stmt *stmt, const struct sql_params *p);

/* rows.c: results on their way to the client */
struct row_set { /* rendered rows kept in memory */
    struct buf data;
    size_t rows;
    size_t columns;
};

void row_set_init(struct row_set *r, size_t columns);
void row_set_deinit(struct row_set *r);
void row_set_add(struct row_set *r, const struct pg_value *v, size_t n);
/* Sends rows from *at on, at most max (0: all); *at moves. */
span_status SPAN_CHECKED row_set_send(const struct row_set *r, size_t *at, size_t max,
                                      const struct pg_sink *sink, size_t *sent);
uint32_t pg_oid_of_decl(const char *decl_type);
/* Text of a column of the current row; appended to out. False: NULL. */
bool render_value(sqlite3_value *v, uint32_t oid, struct buf *out);
/* Raises the answer gate for what the session has read so far (rule D0). */
void session_gate(struct sql_session *s);
/* The same for an error or a ROLLBACK: it tells what it saw just as well. */
void session_gate_failure(struct sql_session *s);

#endif
