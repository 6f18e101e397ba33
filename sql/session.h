/* A client's SQL session: SQLite over the key-value store.
 *
 * The session owns an in-memory SQLite database. `temp.T` is a read-only virtual table over the
 * store, declared when a statement first names T; `main.T` is a real, empty table made with the
 * user's own DDL, the working set in which INSERT, UPDATE and DELETE run (dml.h). It implements the
 * interface the PostgreSQL wire asks for (sql/pgwire/pg_session.h).
 *
 * A caller (gateway) makes one schema cache per node, and per client: a struct kv of its own, a
 * session over it, and hands sql_session_pg() to the wire. One thread at a time; pg cancel from
 * any. */
#ifndef SPAN_SQL_SESSION_H
#define SPAN_SQL_SESSION_H

#include "sql/kv.h"
#include "sql/pgwire/pg_session.h"
#include "sql/schema.h"

struct sql_session;

struct sql_session_options {
    const char *user;
    const char *database;
    const char *application_name;
    uint32_t backend_pid;                  /* pg_backend_pid() */
    uint64_t seed;                         /* of random(); 0: from the system */
    uint64_t (*mono_ns)(void *ctx);        /* monotonic clock; NULL: the system's */
    void (*sleep)(void *ctx, uint64_t ns); /* between tries; NULL: the system's */
    void *clock_ctx;
    uint64_t retry_ns; /* how long the gateway retries an autocommit statement; 0: 10 s */
};

/* Once per process before the first session (thread-safe, repeatable): the VFS that gives
 * statements their `now`. */
void sql_global_init(void);

/* Takes over kv (freed with the session). cache is borrowed and outlives the session. Strings are
 * copied. NULL with err when SQLite cannot open a database. */
struct sql_session *sql_session_new(struct kv *kv, struct schema_cache *cache,
                                    const struct sql_session_options *opt, struct span_error *err);
void sql_session_free(struct sql_session *s);
/* The interface for the wire; its ops->free is sql_session_free. */
struct pg_session sql_session_pg(struct sql_session *s);
/* A setting from the StartupMessage, as SET would do it. False: refused, err has the SQL text. */
bool sql_session_set(struct sql_session *s, const char *name, const char *value,
                     struct span_error *err);
/* Settings to report after authentication (server_version ...): calls f for each. */
void sql_session_each_reported(struct sql_session *s,
                               void (*f)(void *ctx, const char *name, const char *value),
                               void *ctx);

#endif
