/* Private to sql/pgwire: the connection machine's state, shared by pg_conn.c (bytes, start-up,
 * dispatch), pg_conn_ext.c (extended query, names) and pg_conn_sink.c (what the session says). */
#ifndef SPAN_SQL_PGWIRE_PG_CONN_INTERNAL_H
#define SPAN_SQL_PGWIRE_PG_CONN_INTERNAL_H

#include "base/map.h"
#include "sql/pgwire/pg_conn.h"

/* Prepared statements and portals one connection may hold: each costs memory for as long as the
 * client likes, so there is an end to it. */
#define PG_CONN_STMTS_MAX   4096
#define PG_CONN_PORTALS_MAX 1024

enum conn_state {
    CONN_START, /* nothing but SSLRequest, GSSENCRequest, CancelRequest, StartupMessage is heard */
    /* The place of CONN_AUTH: SASL messages go between here and READY when SCRAM comes. */
    CONN_READY,
    CONN_CLOSED,
};

struct conn_stmt {
    struct pg_stmt *stmt;
    uint32_t *param_oids; /* as the session describes them; NULL until a binary parameter asks */
    size_t param_count;
};

struct conn_portal {
    struct pg_portal *portal;
    /* Per column: format code and, for binary ones, the type to convert to. NULL: all text. */
    uint16_t *formats;
    uint32_t *types;
    size_t column_count;
};

/* While set, descriptions are recorded here instead of being sent (binary formats need types). */
struct conn_capture {
    uint32_t *oids;
    size_t count;
    bool columns; /* record the row description, else the parameter description */
};

#define STATEMENT_TOO_LONG "statement is longer than 1 MiB"

struct pg_conn {
    struct pg_conn_config cfg;
    enum conn_state state;

    struct buf in;
    size_t in_pos;      /* bytes of `in` that were handled */
    uint64_t discard;   /* bytes of an oversized message still to be thrown away */
    bool discard_ready; /* it was a simple query: ReadyForQuery follows its end */

    struct buf out;
    uint64_t not_before;
    bool id_unsent;    /* a transaction id is in the output (rule E1) */
    bool commit_begun; /* since the output was last written, and nothing said how it ended */
    bool commit_told;  /* a tag that may acknowledge a commit is in the output */
    bool wants_flush;
    bool dead; /* the flush hook said CLOSED: nothing more is said */

    bool ssl_asked;
    bool gssenc_asked;
    bool utf8; /* client_encoding; false: SQL_ASCII, bytes as they are */
    uint32_t cancel_pid;
    uint32_t cancel_key;

    struct pg_sink sink;
    struct pg_session session; /* ops NULL before it is open */

    /* Extended protocol. */
    bool skip_to_sync; /* an extended message failed: everything up to Sync is ignored */
    bool in_pipeline;  /* since the last Sync or Query an extended message came */
    struct mapb stmts; /* by name -> struct conn_stmt */
    struct mapb portals;
    struct conn_stmt *unnamed_stmt; /* the name "" */
    struct conn_portal *unnamed_portal;

    /* The current call into the session. */
    bool in_execute;                    /* row_description is not for the client */
    bool in_idle_check;                 /* only FATAL errors are for the client */
    unsigned call_errors;               /* error() calls */
    const struct conn_portal *row_form; /* formats of its rows */
    struct conn_capture *capture;
    bool row_failed; /* a value could not be converted; row_error says so */
    char row_error[256];
    struct buf scratch;
};

/* pg_conn_sink.c */
void conn_sink_init(struct pg_conn *c);
void conn_error(struct pg_conn *c, const char *severity, const char *sqlstate, const char *message,
                const char *detail, const char *hint);
/* Begins and ends a call into the session: the end makes sure that a failed one said exactly why,
 * and drops the portals of a transaction that ended. True: it went well. */
char conn_call_begin(struct pg_conn *c);
bool conn_call_end(struct pg_conn *c, char status_before, bool ok);

/* pg_conn.c: checks text from the client against its encoding; false after an error was said. */
bool conn_text_check(struct pg_conn *c, struct slice text, const char *what);

/* pg_conn_ext.c */
void conn_ext_message(struct pg_conn *c, const struct pg_frame *f);
void conn_portals_drop(struct pg_conn *c);
void conn_stmts_drop(struct pg_conn *c);
void conn_unnamed_drop(struct pg_conn *c);
struct conn_stmt *conn_stmt_find(struct pg_conn *c, struct slice name);
bool conn_stmt_add(struct pg_conn *c, struct slice name, struct pg_stmt *s);
bool conn_stmt_drop(struct pg_conn *c, struct slice name);

#endif
