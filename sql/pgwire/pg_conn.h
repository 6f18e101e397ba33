/* One client connection of the PostgreSQL protocol as a machine: bytes in, calls to a SQL session,
 * bytes out. No socket, clock, thread or random number of its own (STYLE section 2): the listener
 * feeds it bytes, steps it, and writes what it left in its output, and a test does the same.
 *
 *              feed                          step                        out
 *     socket ---------> [ input buffer ] ---------> pg_session_ops ---> [ output buffer ] --->
 * gate, socket one message     sink
 *
 * States:  START --StartupMessage--> (authentication) --> READY --Terminate, FATAL--> CLOSED
 *          START --CancelRequest--> CLOSED
 *          READY --error in an extended-protocol message--> READY, skipping to Sync
 *
 * Answer gate (rule D0): the output has one not_before, the highest the session asked for since the
 * output was last flushed. Whoever writes the output waits for it first. While a statement runs and
 * its rows pile up, the machine calls the flush hook, which does exactly that.
 *
 * Threads: one at a time, see pg_session.h; pg_conn_session() gives what cancel needs. */
#ifndef SPAN_SQL_PGWIRE_PG_CONN_H
#define SPAN_SQL_PGWIRE_PG_CONN_H

#include "sql/pgwire/pg_msg.h"
#include "sql/pgwire/pg_session.h"

/* Output above this is handed to the flush hook while a statement still runs. */
#define PG_CONN_FLUSH_BYTES (64u * 1024u)

struct pg_conn;

struct pg_conn_config {
    struct pg_session_factory factory;
    const char
        *server_version; /* of spanlite, such as "0.1.0"; borrowed for the connection's life */
    uint32_t pid;        /* BackendKeyData; random, drawn by the caller */
    uint32_t key;
    /* Not NULL: after the StartupMessage the client is refused with this (53300, 57P03). Borrowed.
     */
    const struct pg_error *refuse;
    /* Writes the output (after its gate) and calls pg_conn_flushed(). Called from inside step, only
     * while rows stream. CLOSED: the client is gone. NULL: the output grows without bound. */
    span_status (*flush)(void *ctx, struct pg_conn *c);
    void *flush_ctx;
};

enum pg_conn_step {
    PG_CONN_NEED_INPUT, /* no whole message is buffered */
    PG_CONN_MORE,       /* one message was handled: write the output if it wants it, step again */
    PG_CONN_CANCEL,     /* a CancelRequest: see pg_conn_cancel_target(); then close */
    PG_CONN_CLOSE,      /* write the output, then close */
};

/* cfg is copied, what it points to is borrowed. */
struct pg_conn *pg_conn_new(const struct pg_conn_config *cfg);
/* Frees portals, statements, then the session (which rolls back). */
void pg_conn_free(struct pg_conn *c);

/* Room for received bytes, at least 4 KiB, of *size; then how many of them were received. */
uint8_t *pg_conn_in_space(struct pg_conn *c, size_t *size);
void pg_conn_in_add(struct pg_conn *c, size_t size);
/* Copying form of the two. */
void pg_conn_feed(struct pg_conn *c, struct slice bytes);

/* Handles at most one message. May block inside the session and inside the flush hook. */
enum pg_conn_step pg_conn_step(struct pg_conn *c);

/* Bytes to write, borrowed until the next call of anything but the accessors. */
struct slice pg_conn_out(const struct pg_conn *c);
/* They may leave when tt_after(this); 0: at once. */
uint64_t pg_conn_not_before(const struct pg_conn *c);
/* The client waits for the output: ReadyForQuery or Flush. Until then it may be gathered. */
bool pg_conn_wants_flush(const struct pg_conn *c);
/* The output was written: forget it and its gate. */
void pg_conn_flushed(struct pg_conn *c);
/* The output can not be written, ever: forgets it and its gate, says e (FATAL) in its place and
 * closes. Also from inside the flush hook. */
void pg_conn_discard(struct pg_conn *c, const struct pg_error *e);
/* A commit that may write has begun since the output was last written: its tag is in there, or is
 * still to come. */
bool pg_conn_commit_begun(const struct pg_conn *c);

void pg_conn_cancel_target(const struct pg_conn *c, uint32_t *pid, uint32_t *key);
/* The session, from the moment the client may know its cancel key; NULL before. Borrowed. */
const struct pg_session *pg_conn_session(const struct pg_conn *c);
/* 'I', 'T', 'E'; 0 before the session is open. */
char pg_conn_txn_status(const struct pg_conn *c);
/* Nothing half-received or half-answered: between messages and not inside a pipeline before Sync.
 */
bool pg_conn_is_at_rest(const struct pg_conn *c);

/* Session timeouts; only between messages. CLOSE or MORE; output may want to be written. */
enum pg_conn_step pg_conn_idle_check(struct pg_conn *c, uint64_t mono_ns);
/* Says e (FATAL) to the client and closes: write the output, then free. */
void pg_conn_shutdown(struct pg_conn *c, const struct pg_error *e);

#endif
