/* A client of a SQL session in process: sends text, collects what came back as text. For tests. */
#ifndef SPAN_TESTS_LIB_SQL_CLIENT_H
#define SPAN_TESTS_LIB_SQL_CLIENT_H

#include "sql/pgwire/pg_session.h"

struct sql_client {
    struct pg_session session;
    struct pg_sink sink;
    struct buf cells; /* per cell: u8 is-null, u32 length, bytes */
    size_t rows;
    size_t columns; /* of the last result */
    char **names;
    uint32_t *types;
    char tags[256]; /* command tags, joined by "; " */
    char code[6];   /* SQLSTATE of the error, "" */
    char message[1024];
    char detail[512];
    char hint[512];
    char constraint[256];
    uint32_t position;
    char notice[512];
    char param[256]; /* last ParameterStatus "name=value" */
    uint64_t gate;
    bool suspended;
    bool no_data;
    size_t described; /* row descriptions seen */
    bool gone;        /* data_row answers CLOSED */
};

void sql_client_init(struct sql_client *c, struct pg_session s);
void sql_client_deinit(struct sql_client *c); /* does not free the session */
void sql_client_clear(struct sql_client *c);
/* Simple query; true without error. */
bool sql_client_query(struct sql_client *c, const char *sql);
/* The rows as text: cells joined by "|", rows by "\n", NULL as "NULL". Borrowed until the next
 * call. */
const char *sql_client_text(struct sql_client *c);
/* Cell as a NUL-terminated string borrowed until the next query; NULL for NULL. */
const char *sql_client_cell(struct sql_client *c, size_t row, size_t column);
/* Query and text in one; "ERROR code" when it failed. */
const char *sql_client_ask(struct sql_client *c, const char *sql);

#endif
