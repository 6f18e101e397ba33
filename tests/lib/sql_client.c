/* A client of a SQL session in process; see sql_client.h. */
#include "tests/lib/sql_client.h"

#include "base/alloc.h"

#include <stdio.h>
#include <string.h>

static void clear_columns(struct sql_client *c)
{
    for (size_t i = 0; i < c->columns; i++) {
        span_free(c->names[i]);
    }
    span_free(c->names);
    span_free(c->types);
    c->names = NULL;
    c->types = NULL;
    c->columns = 0;
}

static void on_row_description(void *ctx, const struct pg_column *cols, size_t count)
{
    struct sql_client *c = ctx;
    clear_columns(c);
    c->columns = count;
    c->names = span_calloc(count + 1, sizeof *c->names);
    c->types = span_calloc(count + 1, sizeof *c->types);
    for (size_t i = 0; i < count; i++) {
        c->names[i] = span_strdup(cols[i].name);
        c->types[i] = cols[i].type_oid;
    }
    c->described++;
    buf_clear(&c->cells);
    c->rows = 0;
}

static span_status on_data_row(void *ctx, const struct pg_value *v, size_t n)
{
    struct sql_client *c = ctx;
    if (c->gone) {
        return SPAN_CLOSED;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t size = v[i].is_null ? 0 : (uint32_t)v[i].text.size;
        buf_append_byte(&c->cells, v[i].is_null ? 1 : 0);
        buf_append(&c->cells, &size, sizeof size);
        buf_append(&c->cells, v[i].text.data, size);
        buf_append_byte(&c->cells, 0);
    }
    if (c->columns == 0) {
        c->columns = n; /* execute() sends no description */
        c->names = span_calloc(n + 1, sizeof *c->names);
        c->types = span_calloc(n + 1, sizeof *c->types);
    }
    c->rows++;
    return SPAN_OK;
}

static void on_complete(void *ctx, const char *tag)
{
    struct sql_client *c = ctx;
    size_t n = strlen(c->tags);
    snprintf(c->tags + n, sizeof c->tags - n, "%s%s", n == 0 ? "" : "; ", tag);
}

static void on_empty(void *ctx)
{
    on_complete(ctx, "EMPTY");
}

static void on_suspended(void *ctx)
{
    ((struct sql_client *)ctx)->suspended = true;
}

static void on_no_data(void *ctx)
{
    ((struct sql_client *)ctx)->no_data = true;
}

static void on_params(void *ctx, const uint32_t *oids, size_t count)
{
    (void)ctx;
    (void)oids;
    (void)count;
}

static void on_error(void *ctx, const struct pg_error *e)
{
    struct sql_client *c = ctx;
    snprintf(c->code, sizeof c->code, "%s", e->sqlstate);
    snprintf(c->message, sizeof c->message, "%s", e->message);
    snprintf(c->detail, sizeof c->detail, "%s", e->detail == NULL ? "" : e->detail);
    snprintf(c->hint, sizeof c->hint, "%s", e->hint == NULL ? "" : e->hint);
    snprintf(c->constraint, sizeof c->constraint, "%s", e->constraint == NULL ? "" : e->constraint);
    c->position = e->position;
}

static void on_notice(void *ctx, const struct pg_error *e)
{
    struct sql_client *c = ctx;
    snprintf(c->notice, sizeof c->notice, "%s", e->message);
}

static void on_param(void *ctx, const char *name, const char *value)
{
    struct sql_client *c = ctx;
    snprintf(c->param, sizeof c->param, "%s=%s", name, value);
}

static void on_gate(void *ctx, uint64_t ns)
{
    struct sql_client *c = ctx;
    c->gate = ns > c->gate ? ns : c->gate;
}

static bool on_stmt_put(void *ctx, struct slice name, struct pg_stmt *s)
{
    (void)ctx;
    (void)name;
    (void)s;
    return false;
}

static struct pg_stmt *on_stmt_get(void *ctx, struct slice name)
{
    (void)ctx;
    (void)name;
    return NULL;
}

static bool on_stmt_drop(void *ctx, struct slice name)
{
    (void)ctx;
    (void)name;
    return false;
}

static void on_stmt_drop_all(void *ctx)
{
    (void)ctx;
}

static const struct pg_sink_ops sink_ops = {
    .row_description = on_row_description,
    .data_row = on_data_row,
    .command_complete = on_complete,
    .empty_query = on_empty,
    .portal_suspended = on_suspended,
    .no_data = on_no_data,
    .parameter_description = on_params,
    .error = on_error,
    .notice = on_notice,
    .parameter_status = on_param,
    .gate = on_gate,
    .stmt_put = on_stmt_put,
    .stmt_get = on_stmt_get,
    .stmt_drop = on_stmt_drop,
    .stmt_drop_all = on_stmt_drop_all,
};

void sql_client_init(struct sql_client *c, struct pg_session s)
{
    memset(c, 0, sizeof *c);
    c->session = s;
    c->sink.ops = &sink_ops;
    c->sink.ctx = c;
}

void sql_client_deinit(struct sql_client *c)
{
    clear_columns(c);
    buf_deinit(&c->cells);
}

void sql_client_clear(struct sql_client *c)
{
    clear_columns(c);
    buf_clear(&c->cells);
    c->rows = 0;
    c->tags[0] = '\0';
    c->code[0] = '\0';
    c->message[0] = '\0';
    c->detail[0] = '\0';
    c->hint[0] = '\0';
    c->constraint[0] = '\0';
    c->notice[0] = '\0';
    c->position = 0;
    c->gate = 0;
    c->suspended = false;
    c->no_data = false;
    c->described = 0;
}

bool sql_client_query(struct sql_client *c, const char *sql)
{
    sql_client_clear(c);
    return c->session.ops->simple(c->session.impl, slice_str(sql), &c->sink);
}

const char *sql_client_cell(struct sql_client *c, size_t row, size_t column)
{
    size_t at = 0;
    size_t want = row * c->columns + column;
    for (size_t i = 0; at < c->cells.size; i++) {
        uint32_t size = 0;
        bool null = c->cells.data[at] != 0;
        memcpy(&size, c->cells.data + at + 1, sizeof size);
        if (i == want) {
            return null ? NULL : (const char *)c->cells.data + at + 5;
        }
        at += 6 + (size_t)size;
    }
    return NULL;
}

const char *sql_client_text(struct sql_client *c)
{
    static _Thread_local struct buf text;
    buf_clear(&text);
    size_t at = 0;
    for (size_t i = 0; at < c->cells.size; i++) {
        uint32_t size = 0;
        memcpy(&size, c->cells.data + at + 1, sizeof size);
        if (i > 0) {
            buf_append_str(&text, i % c->columns == 0 ? "\n" : "|");
        }
        if (c->cells.data[at] != 0) {
            buf_append_str(&text, "NULL");
        } else {
            buf_append(&text, c->cells.data + at + 5, size);
        }
        at += 6 + (size_t)size;
    }
    return buf_cstr(&text);
}

const char *sql_client_ask(struct sql_client *c, const char *sql)
{
    static _Thread_local char error[1200];
    if (!sql_client_query(c, sql)) {
        snprintf(error, sizeof error, "ERROR %s", c->code);
        return error;
    }
    return sql_client_text(c);
}
