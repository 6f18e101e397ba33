/* The commands' side of SQL: connect, run, print. */
#include "coordinator/sql_client.h"

#include "base/alloc.h"
#include "coordinator/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Type numbers of PostgreSQL's catalog, stable since its beginning. */
enum {
    OID_BOOL = 16,
    OID_INT8 = 20,
    OID_INT2 = 21,
    OID_INT4 = 23,
    OID_FLOAT4 = 700,
    OID_FLOAT8 = 701
};

static bool type_is_number(Oid type)
{
    return type == OID_INT8 || type == OID_INT2 || type == OID_INT4 || type == OID_FLOAT4 ||
           type == OID_FLOAT8;
}

/* libpq's messages end in a newline and may have several lines. */
static void one_line(char *text)
{
    size_t n = strlen(text);

    while (n > 0 && text[n - 1] == '\n') {
        text[--n] = '\0';
    }
    for (char *p = text; *p != '\0'; p++) {
        if (*p == '\n' || *p == '\t') {
            *p = ' ';
        }
    }
}

/* As every client of ours: PG* variables when they name a server, else a node on this machine. */
static const char *default_url(void)
{
    bool named =
        getenv("PGHOST") != NULL || getenv("PGHOSTADDR") != NULL || getenv("PGSERVICE") != NULL;

    return named ? "postgresql://" : "postgresql://spanlite@127.0.0.1:5433/";
}

span_status sql_client_connect(const char *url, PGconn **out, struct span_error *err)
{
    const char *keys[] = {"dbname", "connect_timeout", "application_name", NULL};
    const char *values[] = {url != NULL && url[0] != '\0' ? url : default_url(), "5", "spanlite",
                            NULL};
    PGconn *conn;

    /* Keys behind an expanded URL override it; a timeout of its own must win. */
    if (url != NULL && strstr(url, "connect_timeout") != NULL) {
        keys[1] = "application_name";
        values[1] = "spanlite";
        keys[2] = NULL;
    }
    conn = PQconnectdbParams(keys, values, 1);
    if (PQstatus(conn) != CONNECTION_OK) {
        char *text = span_strdup(PQerrorMessage(conn));
        span_status st;

        one_line(text);
        /* Not the URL, which may hold a password; libpq names host and port. */
        st = span_fail(err, SPAN_UNAVAILABLE, "no connection: %s", text);
        span_free(text);
        PQfinish(conn);
        return st;
    }
    *out = conn;
    return SPAN_OK;
}

span_status sql_client_exec(PGconn *conn, const char *sql, PGresult **out, struct span_error *err)
{
    PGresult *r = PQexec(conn, sql);
    ExecStatusType status = PQresultStatus(r);
    const char *primary;
    const char *state;
    const char *hint;
    span_status st;

    if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) {
        *out = r;
        return SPAN_OK;
    }
    primary = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    hint = PQresultErrorField(r, PG_DIAG_MESSAGE_HINT);
    if (primary == NULL) {
        char *text = span_strdup(PQerrorMessage(conn));

        one_line(text);
        st = span_fail(err, SPAN_UNAVAILABLE, "%s",
                       text[0] != '\0' ? text : "the connection was lost");
        span_free(text);
    } else {
        st = span_fail(err, SPAN_INVALID, "%s (%s)%s%s", primary,
                       state != NULL ? state : "no SQLSTATE", hint != NULL ? "; " : "",
                       hint != NULL ? hint : "");
    }
    PQclear(r);
    return st;
}

/* ---- printing ---------------------------------------------------------------------------------
 */

/* Columns on a screen: UTF-8 bytes that begin a character. Wide characters count one; good enough
 * for names and addresses. */
static size_t display_width(const char *s)
{
    size_t n = 0;

    for (; *s != '\0'; s++) {
        n += ((unsigned char)*s & 0xc0) != 0x80;
    }
    return n;
}

static const char *cell(const PGresult *r, int row, int column)
{
    return PQgetisnull(r, row, column) ? "-" : PQgetvalue(r, row, column);
}

static void append_padded(struct buf *out, const char *text, size_t width, bool right, bool last)
{
    size_t n = display_width(text);
    int pad = n < width ? (int)(width - n) : 0;

    if (right) {
        buf_printf(out, "%*s%s", pad, "", text);
    } else if (last) {
        buf_append_str(out, text);
    } else {
        buf_printf(out, "%s%*s", text, pad, "");
    }
    buf_append_str(out, last ? "\n" : "  ");
}

/* Which columns of the result to print, in which order: their count. */
static int choose_columns(const PGresult *r, const char *only, int *chosen)
{
    int n = 0;
    if (only == NULL) {
        for (; n < PQnfields(r); n++) {
            chosen[n] = n;
        }
        return n;
    }
    char *words = span_strdup(only);
    char *rest = words;
    for (char *name; (name = strsep(&rest, " ")) != NULL && n < PQnfields(r);) {
        int c = PQfnumber(r, name);
        if (c >= 0) {
            chosen[n++] = c;
        }
    }
    span_free(words);
    return n;
}

void sql_client_table(const PGresult *r, const char *only, struct buf *out)
{
    int rows = PQntuples(r);
    size_t *widths;
    int *chosen;
    int columns;

    if (PQnfields(r) == 0) {
        buf_printf(out, "%s\n", PQcmdStatus((PGresult *)(uintptr_t)r));
        return;
    }
    chosen = span_calloc((size_t)PQnfields(r), sizeof(chosen[0]));
    widths = span_calloc((size_t)PQnfields(r), sizeof(widths[0]));
    columns = choose_columns(r, only, chosen);
    for (int k = 0; k < columns; k++) {
        widths[k] = display_width(PQfname(r, chosen[k]));
        for (int i = 0; i < rows; i++) {
            size_t n = display_width(cell(r, i, chosen[k]));

            widths[k] = n > widths[k] ? n : widths[k];
        }
    }
    for (int k = 0; k < columns; k++) {
        append_padded(out, PQfname(r, chosen[k]), widths[k], type_is_number(PQftype(r, chosen[k])),
                      k + 1 == columns);
    }
    for (int k = 0; k < columns; k++) {
        for (size_t i = 0; i < widths[k]; i++) {
            buf_append_byte(out, '-');
        }
        buf_append_str(out, k + 1 == columns ? "\n" : "  ");
    }
    for (int i = 0; i < rows; i++) {
        for (int k = 0; k < columns; k++) {
            append_padded(out, cell(r, i, chosen[k]), widths[k],
                          type_is_number(PQftype(r, chosen[k])), k + 1 == columns);
        }
    }
    span_free(widths);
    span_free(chosen);
}

/* A number as JSON allows it: no NaN, no Infinity, nothing else than digits, sign, point, exponent.
 */
static bool is_json_number(const char *s)
{
    return *s != '\0' && strspn(s, "0123456789+-.eE") == strlen(s) && *s != '+' && *s != '.';
}

static void append_json_value(const PGresult *r, int row, int column, struct buf *out)
{
    Oid type = PQftype(r, column);
    const char *text = PQgetvalue(r, row, column);

    if (PQgetisnull(r, row, column)) {
        buf_append_str(out, "null");
    } else if (type == OID_BOOL) {
        buf_append_str(out, text[0] == 't' || text[0] == '1' ? "true" : "false");
    } else if (type_is_number(type) && is_json_number(text)) {
        buf_append_str(out, text);
    } else {
        json_append_string(out, slice_str(text));
    }
}

void sql_client_json(const PGresult *r, struct buf *out)
{
    int rows = PQntuples(r);
    int columns = PQnfields(r);

    if (columns == 0) {
        buf_append_str(out, "{\"status\": ");
        json_append_string(out, slice_str(PQcmdStatus((PGresult *)(uintptr_t)r)));
        buf_append_str(out, "}\n");
        return;
    }
    buf_append_str(out, "[");
    for (int i = 0; i < rows; i++) {
        buf_append_str(out, i == 0 ? "\n  {" : ",\n  {");
        for (int c = 0; c < columns; c++) {
            buf_append_str(out, c == 0 ? "" : ", ");
            json_append_string(out, slice_str(PQfname(r, c)));
            buf_append_str(out, ": ");
            append_json_value(r, i, c, out);
        }
        buf_append_str(out, "}");
    }
    buf_append_str(out, rows > 0 ? "\n]\n" : "]\n");
}

static int run(const char *verb, struct config *c, const char *sql, const char *only,
               const char *done)
{
    PGconn *conn = NULL;
    PGresult *r = NULL;
    struct buf out = {0};
    struct span_error err;

    if (config_parse_env(c, environ, &err) != SPAN_OK) {
        return command_fail(verb, COMMAND_USAGE, &err);
    }
    if (sql_client_connect(config_text(c, "url"), &conn, &err) != SPAN_OK) {
        (void)command_fail(verb, COMMAND_USAGE, &err);
        fprintf(
            stderr,
            "spanlite %s: 'spanlite demo' or 'deploy/local/cluster up' starts a cluster, --url or "
            "SPANLITE_URL names another\n",
            verb);
        return COMMAND_USAGE;
    }
    if (sql_client_exec(conn, sql, &r, &err) != SPAN_OK) {
        PQfinish(conn);
        return command_fail(verb, COMMAND_FAILED, &err);
    }
    if (config_bool(c, "json")) {
        sql_client_json(r, &out);
    } else if (done != NULL) {
        buf_printf(&out, "%s\n", done);
    } else {
        sql_client_table(r, config_bool(c, "wide") ? NULL : only, &out);
    }
    fputs(buf_cstr(&out), stdout);
    buf_deinit(&out);
    PQclear(r);
    PQfinish(conn);
    return COMMAND_OK;
}

int sql_client_run(const char *verb, struct config *c, const char *sql, const char *only)
{
    return run(verb, c, sql, only, NULL);
}

int sql_client_do(const char *verb, struct config *c, const char *sql, const char *done)
{
    return run(verb, c, sql, NULL, done);
}
