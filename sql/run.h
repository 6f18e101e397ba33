/* Running one statement of a session; private to sql/. */
#ifndef SPAN_SQL_RUN_H
#define SPAN_SQL_RUN_H

#include "sql/session_impl.h"

/* Where a statement's answer goes. */
struct run_out {
    const struct pg_sink *sink;
    struct row_set
        *keep;     /* not NULL: rows go here instead of to the sink (portals with a row limit) */
    bool describe; /* send RowDescription first (simple protocol) */
    struct pg_column
        *cols; /* not NULL: RowDescription's columns were told before: render by these */
    size_t col_count;
    char tag[64]; /* set on success */
    size_t rows;
};

/* Runs the statement in s->tokens at st, with its transaction: autocommit with retries, or inside
 * the block. False: s->err is set and the session's state has moved; the caller reports.
 * client_gone: stop silently. */
bool run_statement(struct sql_session *s, const struct sql_stmt *st,
                   const struct sql_params *params, struct run_out *out);
/* Does the statement give rows? Its columns into *cols (owned by the caller, names borrowed until
 * the next statement is prepared), and its parameters. False with s->err. */
bool run_describe(struct sql_session *s, const struct sql_stmt *st, const struct pg_column **cols,
                  size_t *count, bool *gives_rows, int *params, struct kv_table *table);

/* refuse.c */
/* Is the statement refused by its look? True with s->err. */
bool sql_refuse(struct sql_session *s, const struct sql_stmt *st);
/* A syntax error in s->err that a spelling of another system explains becomes 0A000 with a hint. */
void sql_explain_syntax(struct sql_session *s, const struct sql_stmt *st);
/* 42601 at a token, which may be beyond the end; false, for `return run_syntax_error(...)`. */
bool run_syntax_error(struct sql_session *s, size_t at);
/* Is token `at` the statement's end? Else 42601. */
bool run_at_end(struct sql_session *s, const struct sql_stmt *st, size_t at);

/* upsert.c: UPSERT runs as another text. Between enter and leave s->tokens are that text's and st
 * its statement. enter: false with s->err, and nothing to leave. */
struct sql_upsert {
    struct sql_stmt st;
    struct buf text;
    struct sql_tokens tokens; /* the client's */
};

bool sql_is_upsert(const struct sql_session *s, const struct sql_stmt *st);
bool sql_upsert_enter(struct sql_session *s, const struct sql_stmt *st, struct sql_upsert *u);
void sql_upsert_leave(struct sql_session *s, struct sql_upsert *u);

/* commands.c: everything that is not a query, DML or DDL. */
bool sql_command_run(struct sql_session *s, const struct sql_stmt *st, struct run_out *out);
bool command_is_control(enum sql_verb v); /* BEGIN, COMMIT, ROLLBACK, SAVEPOINT, RELEASE */
bool run_send_table(struct sql_session *s, const struct kv_table *t, struct run_out *out,
                    const char *tag);
void run_columns_of_table(const struct kv_table *t, struct pg_column **cols);
/* s->err for what sql_stmt_rewrite refused. */
void run_rewrite_error(struct sql_session *s, span_status st, const struct span_error *err);
/* Sends the error in s->err to the sink. */
void run_report(struct sql_session *s, const struct pg_sink *sink);
void run_notice(struct sql_session *s, const struct pg_sink *sink, const char *code,
                const char *text);

#endif
