/* What the PostgreSQL wire needs from a SQL session, and what a session may say to its client.
 *
 * sql/session.c implements struct pg_session_ops; pg_conn.c calls it with decoded requests and
 * passes a struct pg_sink into every call, through which the session answers. Neither side knows
 * the other: a test runs a session with a sink of its own, or pg_conn with a fake session. This
 * header needs only base/, so that sql/ may include it without depending on the wire.
 *
 * Threads: all calls to one session are serialized by the caller, but successive calls may come
 * from different threads (the listener's pool), and a call may block. `cancel` alone may come from
 * any thread, also while another call runs. The sink is valid only during the call it was passed
 * to.
 *
 * Names: pg_conn owns the name tables of prepared statements and portals and their rules (42P05,
 * 42P03, 26000, 34000; unnamed ones are replaced silently). A session only makes and frees nameless
 * handles. SQL-level PREPARE / EXECUTE / DEALLOCATE reach the same tables through the sink.
 *
 * Errors: a call that fails calls sink error() exactly once, as its last word, and returns false.
 * pg_conn then skips to Sync where the protocol says so; the session moves its own transaction
 * state
 * ('T' to 'E', or the implicit transaction rolled back) before it returns.
 *
 * Answer gate (rule D0): before a session gives the sink anything (row, tag, error, notice,
 * parameter) that depends on a timestamp, it calls sink gate(not_before): nothing given to the sink
 * from then on, nor what is still unsent, leaves before tt_after(not_before). Calls only ever raise
 * it. So a COMMIT calls gate(max(commit timestamp, seen)) before command_complete, a strong read
 * calls gate(seen so far) before rows, an error or ROLLBACK gates at `seen` too. Rows inside an
 * open read-write transaction are provisional and need no gate. */
#ifndef SPAN_SQL_PGWIRE_PG_SESSION_H
#define SPAN_SQL_PGWIRE_PG_SESSION_H

#include "base/buf.h"
#include "base/status.h"

/* Type OIDs of PostgreSQL that spanlite gives to columns and accepts for parameters. */
enum pg_oid {
    PG_OID_UNKNOWN = 0, /* parameter: type from context */
    PG_OID_BOOL = 16,
    PG_OID_BYTEA = 17,
    PG_OID_INT8 = 20,
    PG_OID_INT2 = 21,
    PG_OID_INT4 = 23,
    PG_OID_TEXT = 25,
    PG_OID_OID = 26,
    PG_OID_JSON = 114,
    PG_OID_FLOAT4 = 700,
    PG_OID_FLOAT8 = 701,
    PG_OID_UNKNOWN_LITERAL = 705,
    PG_OID_BPCHAR = 1042,
    PG_OID_VARCHAR = 1043,
    PG_OID_DATE = 1082,
    PG_OID_TIMESTAMP = 1114,
    PG_OID_TIMESTAMPTZ = 1184,
    PG_OID_NUMERIC = 1700,
    PG_OID_UUID = 2950,
    PG_OID_JSONB = 3802,
};

struct pg_column {
    const char *name;   /* NUL-terminated, borrowed during the call */
    uint32_t type_oid;  /* enum pg_oid; the true type, or drivers hand out strings */
    uint32_t table_oid; /* 0: not a plain column */
    int16_t attnum;     /* 0: not a plain column */
};

/* One value in PostgreSQL's text format: integers in decimal, bool as t/f, bytea as \x hex. */
struct pg_value {
    struct slice text;
    bool is_null;
};

/* An error or a notice. Strings are borrowed during the call; NULL fields are left out. */
struct pg_error {
    const char
        *severity; /* "ERROR"; "FATAL" closes the connection; "WARNING" / "NOTICE" in notice() */
    const char *sqlstate; /* five characters */
    const char *message;  /* one sentence, no newline at its end */
    const char *detail;
    const char *hint;
    uint32_t position; /* 1-based character (not byte) in the statement text as received; 0: none */
    const char *schema;
    const char *table;
    const char *column;
    const char *constraint;
};

struct pg_stmt;   /* the session's: a prepared statement */
struct pg_portal; /* the session's: a bound statement, perhaps half executed */

/* Where a session's answers go. Call through the inline helpers below. */
struct pg_sink_ops {
    /* Columns of the rows that follow. In execute() it is ignored (the protocol has Describe for
     * that), so simple and execute may share code. */
    void (*row_description)(void *ctx, const struct pg_column *cols, size_t count);
    /* One row. OK, or CLOSED: the client is gone or does not read: stop the statement, no error()
     * needed. May block while the client is slow and while the gate holds. */
    span_status (*data_row)(void *ctx, const struct pg_value *values, size_t count);
    void (*command_complete)(void *ctx, const char *tag); /* "INSERT 0 1", "SELECT 5", "BEGIN" */
    void (*empty_query)(void *ctx);                       /* instead of command_complete */
    void (*portal_suspended)(void *ctx); /* instead of command_complete: max_rows reached */
    void (*no_data)(void *ctx);          /* in describe: gives no rows */
    void (*parameter_description)(void *ctx, const uint32_t *oids, size_t count);
    void (*error)(void *ctx, const struct pg_error *e);
    void (*notice)(void *ctx, const struct pg_error *e);
    /* ParameterStatus, allowed at any time: SET of a reported setting, spanlite.txn_id (rule E1).
     */
    void (*parameter_status)(void *ctx, const char *name, const char *value);
    /* A commit that may write is about to be sent: a transaction id that was reported and is still
     * in the buffer leaves first, so that the client has it if the answer is lost (rule E1). May be
     * NULL. */
    void (*commit_begins)(void *ctx);
    /* Raises the answer gate, see above. 0 is ignored. */
    void (*gate)(void *ctx, uint64_t not_before_ns);
    /* For SQL-level PREPARE, EXECUTE and DEALLOCATE. The table takes over s (freed by stmt_free).
     */
    bool (*stmt_put)(void *ctx, struct slice name,
                     struct pg_stmt *s); /* false: the name exists, s stays the caller's */
    struct pg_stmt *(*stmt_get)(void *ctx, struct slice name); /* borrowed; NULL: none */
    bool (*stmt_drop)(void *ctx, struct slice name);           /* false: none of that name */
    void (*stmt_drop_all)(void *ctx);
};

struct pg_sink {
    const struct pg_sink_ops *ops;
    void *ctx;
};

/* A StartupMessage, after the checks of pg_conn. All strings are borrowed during the call. */
struct pg_startup {
    const char *user;
    const char *database;         /* the user's name when the client gave none */
    const char *application_name; /* "" when the client gave none */
    /* Everything else that behaves like SET at connect: names and values of the other startup
     * parameters, then `-c name=value` / `--name=value` of `options`, in order. */
    const char *const *setting_names;
    const char *const *setting_values;
    size_t setting_count;
};

struct pg_session_ops {
    /* Frees the session; rolls back what is open. Its statements and portals were freed before. */
    void (*free)(void *s);

    /* The process number that the client is told in BackendKeyData, before its first query. May be
     * NULL. */
    void (*told_pid)(void *s, uint32_t pid);

    /* Simple query: the whole text, which may hold several statements: one implicit transaction
     * unless it says otherwise, the rest skipped after an error. For every statement:
     * row_description
     * + data_row*, then command_complete; or empty_query once when there is none. ReadyForQuery is
     * pg_conn's. */
    bool (*simple)(void *s, struct slice sql, const struct pg_sink *sink);

    /* Extended query. parse: a single statement (several: 42601); oids as far as the client gave
     * them (may be fewer than there are, 0: unknown). Empty text is a valid statement. On true *out
     * is owned by the caller until stmt_free. */
    bool (*parse)(void *s, struct slice sql, const uint32_t *oids, size_t oid_count,
                  const struct pg_sink *sink, struct pg_stmt **out);
    /* Calls parameter_description, then row_description or no_data, without executing. */
    bool (*describe_stmt)(void *s, struct pg_stmt *stmt, const struct pg_sink *sink);
    /* Values in text format; the session copies what it keeps. A wrong number of values: 08P01. The
     * portal must not outlive stmt in the session's eyes: the session copies or counts references
     * (a statement may be freed while its portal lives). */
    bool (*bind)(void *s, struct pg_stmt *stmt, const struct pg_value *values, size_t count,
                 const struct pg_sink *sink, struct pg_portal **out);
    /* row_description or no_data. */
    bool (*describe_portal)(void *s, struct pg_portal *portal, const struct pg_sink *sink);
    /* data_row*, then command_complete, or portal_suspended after max_rows (0: no limit), or
     * empty_query. Going on with a suspended portal continues it; a finished one gives no rows and
     * its tag with 0 (row-returning) or error 55000. */
    bool (*execute)(void *s, struct pg_portal *portal, uint32_t max_rows,
                    const struct pg_sink *sink);
    void (*stmt_free)(void *s, struct pg_stmt *stmt);
    void (*portal_free)(void *s, struct pg_portal *portal);
    /* Sync: commits the implicit transaction of the pipeline, if any (rolls it back if failed); an
     * explicit one stays open. Its error (a commit may fail here) is sent before ReadyForQuery. */
    bool (*sync)(void *s, bool failed, const struct pg_sink *sink);

    /* 'I' idle, 'T' in a transaction block, 'E' in a failed one. An implicit transaction is 'I'. */
    char (*txn_status)(const void *s);
    /* Any thread: asks the running statement to end with 57014. Without one: nothing. Never blocks.
     */
    void (*cancel)(void *s);
    /* Periodic, only between client messages: for timeouts of idle transactions. May call error()
     * with FATAL; false closes the connection. mono_ns: monotonic time. */
    bool (*idle_check)(void *s, uint64_t mono_ns, const struct pg_sink *sink);
};

struct pg_session {
    const struct pg_session_ops *ops;
    void *impl;
};

/* Makes the session of an authenticated client. False after sink error() (FATAL: 3D000, 57P03 ...).
 * Runs on a pool thread, may be called concurrently. */
struct pg_session_factory {
    bool (*open)(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                 struct pg_session *out);
    void *ctx;
};

static inline void pg_sink_row_description(const struct pg_sink *k, const struct pg_column *c,
                                           size_t n)
{
    k->ops->row_description(k->ctx, c, n);
}

static inline span_status SPAN_CHECKED pg_sink_data_row(const struct pg_sink *k,
                                                        const struct pg_value *v, size_t n)
{
    return k->ops->data_row(k->ctx, v, n);
}

static inline void pg_sink_command_complete(const struct pg_sink *k, const char *tag)
{
    k->ops->command_complete(k->ctx, tag);
}

static inline void pg_sink_empty_query(const struct pg_sink *k)
{
    k->ops->empty_query(k->ctx);
}

static inline void pg_sink_portal_suspended(const struct pg_sink *k)
{
    k->ops->portal_suspended(k->ctx);
}

static inline void pg_sink_no_data(const struct pg_sink *k)
{
    k->ops->no_data(k->ctx);
}

static inline void pg_sink_parameter_description(const struct pg_sink *k, const uint32_t *oids,
                                                 size_t n)
{
    k->ops->parameter_description(k->ctx, oids, n);
}

static inline void pg_sink_error(const struct pg_sink *k, const struct pg_error *e)
{
    k->ops->error(k->ctx, e);
}

static inline void pg_sink_notice(const struct pg_sink *k, const struct pg_error *e)
{
    k->ops->notice(k->ctx, e);
}

static inline void pg_sink_parameter_status(const struct pg_sink *k, const char *name,
                                            const char *value)
{
    k->ops->parameter_status(k->ctx, name, value);
}

static inline void pg_sink_commit_begins(const struct pg_sink *k)
{
    if (k->ops->commit_begins != NULL) {
        k->ops->commit_begins(k->ctx);
    }
}

static inline void pg_sink_gate(const struct pg_sink *k, uint64_t not_before_ns)
{
    k->ops->gate(k->ctx, not_before_ns);
}

#endif
