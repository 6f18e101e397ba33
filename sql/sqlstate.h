/* The only map from span_status and SQLite's messages to SQLSTATE (STYLE 5), and the error a
 * session reports. */
#ifndef SPAN_SQL_SQLSTATE_H
#define SPAN_SQL_SQLSTATE_H

#include "base/status.h"

#include <sqlite3.h>
#include <stdbool.h>

struct table_desc;

struct sql_error {
    span_status status; /* what the store said; OK for SQL's own errors: decides on retries */
    char code[6];       /* SQLSTATE; "" when there is no error */
    char message[1024];
    char detail[512];
    char hint[512];
    char table[256];
    char column[256];
    char constraint[256];
    size_t offset; /* byte offset in the text given to SQLite plus 1; 0: none */
};

void sql_error_clear(struct sql_error *e);
void sql_error_set(struct sql_error *e, const char *code, const char *fmt, ...) SPAN_PRINTF(3, 4);
void sql_error_hint(struct sql_error *e, const char *fmt, ...) SPAN_PRINTF(2, 3);
/* text NULL or "": the status's own. */
void sql_error_from_status(struct sql_error *e, span_status st, const char *text);
/* After a failed prepare or step with result rc. */
void sql_error_from_sqlite(struct sql_error *e, sqlite3 *db, int rc);
const char *sqlstate_of_status(span_status st);
/* May an autocommit statement that failed so be run again by the gateway? */
bool sqlstate_is_retryable(span_status st);

#endif
