/* What the commands that ask a running cluster share: a libpq connection to any node of it, and a
 * result printed as a table or as JSON. One owner, no threads. */
#ifndef SPAN_COORDINATOR_SQL_CLIENT_H
#define SPAN_COORDINATOR_SQL_CLIENT_H

#include "base/buf.h"
#include "base/status.h"
#include "coordinator/command.h"

#include <libpq-fe.h>
#include <stdbool.h>

/* Flags that every such command has. */
#define SQL_CLIENT_OPTIONS                                                                         \
    {.name = "url",                                                                                \
     .kind = CONFIG_TEXT,                                                                          \
     .where = CONFIG_FLAG_AND_ENV,                                                                 \
     .arg = "URL",                                                                                 \
     .help = "cluster to ask, postgresql://host:port,host:port/; PG* variables work too (default " \
             "postgresql://spanlite@127.0.0.1:5433/)"},                                            \
        {.name = "json",                                                                           \
         .kind = CONFIG_BOOL,                                                                      \
         .where = CONFIG_FLAG_ONLY,                                                                \
         .help = "print JSON, with all columns"},                                                  \
    {                                                                                              \
        .name = "wide", .kind = CONFIG_BOOL, .where = CONFIG_FLAG_ONLY, .help = "all columns"      \
    }

/* url: postgresql://...; NULL or empty: PG* variables when they name a server, else
 * postgresql://spanlite@127.0.0.1:5433/. UNAVAILABLE when no node answers. On success the caller
 * owns *out (PQfinish). */
SPAN_CHECKED span_status sql_client_connect(const char *url, PGconn **out, struct span_error *err);
/* Runs one statement. On success the caller owns *out (PQclear); an error of the server is INVALID
 * (or UNAVAILABLE when the connection broke) with its message, SQLSTATE and hint. */
SPAN_CHECKED span_status sql_client_exec(PGconn *conn, const char *sql, PGresult **out,
                                         struct span_error *err);
/* Columns aligned, numbers to the right, NULL as "-"; the header is underlined. `only` names the
 * columns to print, by spaces; NULL: all. */
void sql_client_table(const PGresult *r, const char *only, struct buf *out);
/* An array of objects, one a line; numbers and booleans bare, by the column's type. A
 * result without columns is {"status": "its command tag"}. */
void sql_client_json(const PGresult *r, struct buf *out);
/* All of it for a command whose config has SQL_CLIENT_OPTIONS: reads SPANLITE_URL, connects, runs
 * one statement, prints its result: as a table the columns `only` unless --wide, as JSON all.
 * Returns the exit code; complaints name `verb`. */
int sql_client_run(const char *verb, struct config *c, const char *sql, const char *only);
/* The same for a statement without rows, of which a person is told `done`. */
int sql_client_do(const char *verb, struct config *c, const char *sql, const char *done);

#endif
