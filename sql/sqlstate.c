/* Errors to SQLSTATE; see sqlstate.h. SQLite tells most errors apart only by their text. */
#include "sql/sqlstate.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void sql_error_clear(struct sql_error *e)
{
    memset(e, 0, sizeof *e);
}

void sql_error_set(struct sql_error *e, const char *code, const char *fmt, ...)
{
    va_list ap;
    sql_error_clear(e);
    snprintf(e->code, sizeof e->code, "%s", code);
    va_start(ap, fmt);
    vsnprintf(e->message, sizeof e->message, fmt, ap);
    va_end(ap);
}

void sql_error_hint(struct sql_error *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->hint, sizeof e->hint, fmt, ap);
    va_end(ap);
}

const char *sqlstate_of_status(span_status st)
{
    switch (st) {
    case SPAN_OK:
        return "00000";
    case SPAN_CONFLICT:
    case SPAN_WOUNDED:
    case SPAN_NOT_LEADER:
    case SPAN_STALE_DESCRIPTOR:
    case SPAN_STALE_SCHEMA:
    case SPAN_LOCKS_LOST:
    case SPAN_WOULD_WAIT:
    case SPAN_ABORTED:
        return "40001";
    case SPAN_OVERLOADED:
        return "53000";
    case SPAN_DEADLINE: /* a lock's holder outlasted it: as PostgreSQL's lock_timeout */
        return "55P03";
    case SPAN_CANCELED:
        return "57014";
    case SPAN_UNAVAILABLE: /* for as long as an operation may take: no quorum, not a fail-over */
    case SPAN_CLOCK:
        return "57P03";
    case SPAN_UNKNOWN_OUTCOME:
        return "40003";
    case SPAN_INVALID:
    case SPAN_IN_FUTURE:
        return "22023";
    case SPAN_NOT_FOUND:
        return "42704";
    case SPAN_EXISTS:
        return "42710";
    case SPAN_TOO_LARGE:
        return "54000";
    case SPAN_UNSUPPORTED:
        return "0A000";
    case SPAN_BELOW_HORIZON:
        return "72000";
    case SPAN_PROTOCOL:
        return "08P01";
    case SPAN_CORRUPT:
        return "XX001";
    case SPAN_NOMEM:
        return "53200";
    case SPAN_IO:
        return "58030";
    case SPAN_NO_SPACE:
        return "53100";
    case SPAN_CLOSED:
        return "57P01";
    case SPAN_INTERNAL:
        break;
    }
    return "XX000";
}

bool sqlstate_is_retryable(span_status st)
{
    /* DEADLINE, UNAVAILABLE: it had all the time that an operation gets. CLOCK: this node's own
     * stays as it is for seconds at least (rule B9). */
    return span_status_kind(st) == SPAN_KIND_RETRY && st != SPAN_DEADLINE &&
           st != SPAN_UNAVAILABLE && st != SPAN_CLOCK;
}

void sql_error_from_status(struct sql_error *e, span_status st, const char *text)
{
    const char *code = sqlstate_of_status(st);
    bool own = text != NULL && text[0] != '\0';
    if (strcmp(code, "40001") == 0) {
        sql_error_set(e, code, "restart transaction: %s", own ? text : span_status_text(st));
        sql_error_hint(e, "The transaction had no effect; run it again.");
    } else if (st == SPAN_CANCELED) {
        sql_error_set(e, code, "canceling statement due to user request");
    } else {
        sql_error_set(e, code, "%s", own ? text : span_status_text(st));
    }
    if (st == SPAN_UNAVAILABLE) {
        sql_error_hint(e, "It needs a majority of its replicas, up and connected: SHOW NODES and "
                          "SHOW RANGES tell. What was not committed had no effect.");
    }
    if (st == SPAN_UNKNOWN_OUTCOME) {
        sql_error_hint(
            e, "The transaction may have committed. SHOW TRANSACTION STATUS 'id' tells, with "
               "the id that the session got as parameter spanlite.txn_id; a statement "
               "outside BEGIN has none.");
    }
    e->status = st;
}

struct text_rule {
    const char *part; /* occurs in the message */
    const char *code;
};

static const char *code_of_text(const char *msg)
{
    static const struct text_rule rules[] = {
        {"no such table", "42P01"},
        {"no such view", "42P01"},
        {"no such column", "42703"},
        {"has no column named", "42703"},
        {"no such function", "42883"},
        {"wrong number of arguments", "42883"},
        {"ambiguous column name", "42702"},
        {"no such collation", "42704"},
        {"no such index", "42704"},
        {"already exists", "42P07"},
        {"there is already", "42P07"},
        {"duplicate column name", "42701"},
        {"misuse of aggregate", "42803"},
        {"misuse of window", "42P20"},
        {"ON CONFLICT clause does not match", "42P10"},
        {"UNIQUE constraint failed", "23505"},
        {"PRIMARY KEY must be unique", "23505"},
        {"NOT NULL constraint failed", "23502"},
        {"CHECK constraint failed", "23514"},
        {"FOREIGN KEY constraint failed", "23503"},
        {"cannot store", "42804"},
        {"datatype mismatch", "42804"},
        {"integer overflow", "22003"},
        {"malformed JSON", "22P02"},
        {"string or blob too big", "54000"},
        {"too many", "54000"},
        {"too large", "54000"},
        {"parser stack overflow", "54001"},
        {"Expression tree is too large", "54001"},
        {"not authorized", "42501"},
        {"prohibited", "42501"},
        {"generated column", "428C9"},
        {"syntax error", "42601"},
        {"incomplete input", "42601"},
        {"unrecognized token", "42601"},
        {"values for", "42601"},
        {"values were supplied", "42601"},
        {"all VALUES must have", "42601"},
        {"do not have the same number", "42601"},
        {"sub-select returns", "42601"},
        {"row value misused", "42601"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (strstr(msg, rules[i].part) != NULL) {
            return rules[i].code;
        }
    }
    return "42000";
}

/* "NOT NULL constraint failed: t.a" fills table and column. */
static void split_column(struct sql_error *e)
{
    const char *colon = strstr(e->message, "failed: ");
    if (colon == NULL) {
        return;
    }
    const char *name = colon + strlen("failed: ");
    const char *dot = strchr(name, '.');
    if (strcmp(e->code, "23514") == 0) {
        snprintf(e->constraint, sizeof e->constraint, "%.255s", name);
    } else if (dot != NULL && strchr(name, ',') == NULL) {
        snprintf(e->table, sizeof e->table, "%.*s", (int)(dot - name), name);
        snprintf(e->column, sizeof e->column, "%.255s", dot + 1);
    } else if (dot != NULL) {
        snprintf(e->table, sizeof e->table, "%.*s", (int)(dot - name), name);
    }
}

void sql_error_from_sqlite(struct sql_error *e, sqlite3 *db, int rc)
{
    char msg[1024];
    snprintf(msg, sizeof msg, "%s", sqlite3_errmsg(db));
    int offset = sqlite3_error_offset(db);
    switch (rc & 0xff) {
    case SQLITE_INTERRUPT:
        sql_error_set(e, "57014", "canceling statement due to user request");
        e->status = SPAN_CANCELED;
        return;
    case SQLITE_NOMEM:
        sql_error_set(e, "53200", "out of memory");
        return;
    case SQLITE_TOOBIG:
        sql_error_set(e, "54000", "%s", msg);
        return;
    case SQLITE_AUTH:
        sql_error_set(e, "42501", "%s", msg);
        return;
    case SQLITE_FULL:
        sql_error_set(e, "54000", "the statement touches too many rows at once");
        sql_error_hint(e, "Split it by ranges of the primary key.");
        return;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        sql_error_set(e, "58030", "%s", msg);
        return;
    case SQLITE_CORRUPT:
    case SQLITE_MISUSE:
    case SQLITE_INTERNAL:
        sql_error_set(e, "XX000", "%s", msg);
        return;
    default:
        break;
    }
    char *schema = strstr(msg, "table main."); /* the working set, not the client's */
    if (schema != NULL) {
        schema += strlen("table ");
        memmove(schema, schema + strlen("main."), strlen(schema + strlen("main.")) + 1);
    }
    sql_error_set(e, code_of_text(msg), "%s", msg);
    e->offset = offset >= 0 ? (size_t)offset + 1 : 0;
    if (strncmp(e->code, "23", 2) == 0) {
        split_column(e);
    }
}
