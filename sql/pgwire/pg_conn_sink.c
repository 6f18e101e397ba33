/* What a session says to its client, turned into messages: the struct pg_sink of a connection. Rows
 * are encoded straight into the output buffer; above PG_CONN_FLUSH_BYTES the flush hook takes it,
 * so a large result needs no large memory and a slow client slows its statement (back-pressure). */
#include "base/alloc.h"
#include "base/invariant.h"
#include "sql/pgwire/pg_conn_internal.h"

#include <stdio.h>

void conn_error(struct pg_conn *c, const char *severity, const char *sqlstate, const char *message,
                const char *detail, const char *hint)
{
    struct pg_error e = {.severity = severity,
                         .sqlstate = sqlstate,
                         .message = message,
                         .detail = detail,
                         .hint = hint};
    pg_sink_error(&c->sink, &e);
}

static void sink_row_description(void *ctx, const struct pg_column *cols, size_t count)
{
    struct pg_conn *c = ctx;
    if (c->capture != NULL) {
        if (c->capture->columns) {
            span_free(c->capture->oids);
            c->capture->oids = span_calloc(count + 1, sizeof(uint32_t));
            c->capture->count = count;
            for (size_t i = 0; i < count; i++) {
                c->capture->oids[i] = cols[i].type_oid;
            }
        }
        return;
    }
    if (c->in_execute) {
        return; /* the extended protocol has Describe for that */
    }
    const struct conn_portal *form = c->row_form;
    bool fits = form != NULL && form->formats != NULL && form->column_count == count;
    pg_put_row_description(&c->out, cols, fits ? form->formats : NULL, count);
}

/* Rows and notices may pile up while a statement runs; everything else is one message a call. */
static span_status flush_if_large(struct pg_conn *c)
{
    if (c->dead) {
        return SPAN_CLOSED;
    }
    if (c->out.size >= PG_CONN_FLUSH_BYTES && c->cfg.flush != NULL) {
        if (c->cfg.flush(c->cfg.flush_ctx, c) != SPAN_OK) {
            c->dead = true;
            return SPAN_CLOSED;
        }
    }
    return SPAN_OK;
}

/* A row with binary columns: the converted values gather in `scratch`, and only when all are there
 * are they addressed, because scratch moves as it grows. */
static bool put_mixed_row(struct pg_conn *c, const struct pg_value *values, size_t count)
{
    const struct conn_portal *form = c->row_form;
    if (form->column_count != count) {
        (void)snprintf(c->row_error, sizeof(c->row_error),
                       "row has %zu columns, described were %zu", count, form->column_count);
        return false;
    }
    struct pg_value *converted = span_calloc(count + 1, sizeof(*converted));
    size_t *offsets = span_calloc(count + 1, sizeof(*offsets));
    bool ok = true;
    buf_clear(&c->scratch);
    for (size_t i = 0; i < count && ok; i++) {
        offsets[i] = c->scratch.size;
        if (form->formats[i] != 0 && !values[i].is_null) {
            ok = pg_text_to_binary(form->types[i], values[i].text, &c->scratch) == SPAN_OK;
            if (!ok) {
                (void)snprintf(c->row_error, sizeof(c->row_error),
                               "value of column %zu cannot be sent in binary as type %u", i + 1,
                               form->types[i]);
            }
        }
    }
    offsets[count] = c->scratch.size;
    for (size_t i = 0; i < count && ok; i++) {
        converted[i] = values[i];
        if (form->formats[i] != 0 && !values[i].is_null) {
            size_t size = offsets[i + 1] - offsets[i];
            converted[i].text =
                size == 0 ? slice_of("", 0) : slice_of(c->scratch.data + offsets[i], size);
        }
    }
    if (ok) {
        pg_put_data_row(&c->out, converted, count);
    }
    span_free(offsets);
    span_free(converted);
    return ok;
}

static span_status sink_data_row(void *ctx, const struct pg_value *values, size_t count)
{
    struct pg_conn *c = ctx;
    if (c->dead || c->row_failed) {
        return SPAN_CLOSED;
    }
    if (c->row_form != NULL && c->row_form->formats != NULL) {
        if (!put_mixed_row(c, values, count)) {
            c->row_failed = true;
            return SPAN_CLOSED;
        }
    } else {
        pg_put_data_row(&c->out, values, count);
    }
    return flush_if_large(c);
}

static void sink_command_complete(void *ctx, const char *tag)
{
    struct pg_conn *c = ctx;
    c->commit_told = c->commit_told || c->commit_begun;
    c->commit_begun = false;
    pg_put_command_complete(&c->out, tag);
}

static void sink_empty_query(void *ctx)
{
    struct pg_conn *c = ctx;
    pg_put_simple(&c->out, 'I');
}

static void sink_portal_suspended(void *ctx)
{
    struct pg_conn *c = ctx;
    pg_put_simple(&c->out, 's');
}

static void sink_no_data(void *ctx)
{
    struct pg_conn *c = ctx;
    if (c->capture == NULL && !c->in_execute) {
        pg_put_simple(&c->out, 'n');
    }
}

static void sink_parameter_description(void *ctx, const uint32_t *oids, size_t count)
{
    struct pg_conn *c = ctx;
    if (c->capture == NULL) {
        pg_put_parameter_description(&c->out, oids, count);
        return;
    }
    if (!c->capture->columns) {
        span_free(c->capture->oids);
        c->capture->oids = span_calloc(count + 1, sizeof(uint32_t));
        c->capture->count = count;
        if (count != 0) {
            memcpy(c->capture->oids, oids, count * sizeof(uint32_t));
        }
    }
}

static void sink_error(void *ctx, const struct pg_error *e)
{
    struct pg_conn *c = ctx;
    bool fatal = strcmp(e->severity, "FATAL") == 0 || strcmp(e->severity, "PANIC") == 0;
    if (c->in_idle_check && !fatal) {
        return; /* nobody asked: the client reads it at its next statement */
    }
    c->call_errors++;
    if (c->call_errors > 1 && !fatal) {
        return; /* a call says one error; a second one would look like the next answer */
    }
    if (strcmp(e->sqlstate, "40003") != 0) {
        c->commit_begun = false; /* it failed */
    }
    pg_put_error(&c->out, e);
    if (fatal) {
        c->state = CONN_CLOSED;
        c->wants_flush = true;
    }
}

static void sink_notice(void *ctx, const struct pg_error *e)
{
    struct pg_conn *c = ctx;
    pg_put_notice(&c->out, e);
    if (c->state == CONN_READY && !c->in_idle_check && flush_if_large(c) != SPAN_OK) {
        return; /* the next row or the end of the statement meets c->dead */
    }
}

static void sink_parameter_status(void *ctx, const char *name, const char *value)
{
    struct pg_conn *c = ctx;
    pg_put_parameter_status(&c->out, name, value);
    c->id_unsent = c->id_unsent || strcmp(name, "spanlite.txn_id") == 0;
}

static void sink_commit_begins(void *ctx)
{
    struct pg_conn *c = ctx;
    if (c->id_unsent && !c->dead && c->cfg.flush != NULL &&
        c->cfg.flush(c->cfg.flush_ctx, c) != SPAN_OK) {
        c->dead = true;
    }
    c->commit_begun = true;
}

static void sink_gate(void *ctx, uint64_t not_before_ns)
{
    struct pg_conn *c = ctx;
    if (not_before_ns > c->not_before) {
        c->not_before = not_before_ns;
    }
}

static bool sink_stmt_put(void *ctx, struct slice name, struct pg_stmt *s)
{
    struct pg_conn *c = ctx;
    return name.size != 0 && conn_stmt_add(c, name, s);
}

static struct pg_stmt *sink_stmt_get(void *ctx, struct slice name)
{
    const struct conn_stmt *s = conn_stmt_find(ctx, name);
    return s == NULL ? NULL : s->stmt;
}

static bool sink_stmt_drop(void *ctx, struct slice name)
{
    return conn_stmt_drop(ctx, name);
}

static void sink_stmt_drop_all(void *ctx)
{
    conn_stmts_drop(ctx);
}

static const struct pg_sink_ops sink_ops = {
    .row_description = sink_row_description,
    .data_row = sink_data_row,
    .command_complete = sink_command_complete,
    .empty_query = sink_empty_query,
    .portal_suspended = sink_portal_suspended,
    .no_data = sink_no_data,
    .parameter_description = sink_parameter_description,
    .error = sink_error,
    .notice = sink_notice,
    .parameter_status = sink_parameter_status,
    .commit_begins = sink_commit_begins,
    .gate = sink_gate,
    .stmt_put = sink_stmt_put,
    .stmt_get = sink_stmt_get,
    .stmt_drop = sink_stmt_drop,
    .stmt_drop_all = sink_stmt_drop_all,
};

void conn_sink_init(struct pg_conn *c)
{
    c->sink.ops = &sink_ops;
    c->sink.ctx = c;
}

char conn_call_begin(struct pg_conn *c)
{
    c->call_errors = 0;
    c->row_failed = false;
    return pg_conn_txn_status(c);
}

bool conn_call_end(struct pg_conn *c, char status_before, bool ok)
{
    if (c->row_failed && c->call_errors == 0) {
        conn_error(c, "ERROR", "22P03", c->row_error, NULL,
                   "Ask for this column in text format, or CAST it in the query.");
    }
    if (!ok && c->call_errors == 0 && !c->dead) {
        conn_error(c, "ERROR", "XX000", "statement failed without a reason", NULL, NULL);
    }
    char status = pg_conn_txn_status(c);
    if (status != status_before && status != 'T') {
        conn_portals_drop(c); /* portals do not outlive their transaction */
    }
    return ok && c->call_errors == 0 && !c->dead;
}
