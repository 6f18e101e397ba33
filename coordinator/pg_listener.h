/* The sockets of the PostgreSQL port: accepts clients, runs each one's pg_conn machine, and stands
 * between its output and the wire with the answer gate (rule D0). server.c makes one per node.
 *
 * Threads: a leader/follower pool. All pool threads wait on one epoll descriptor in which every
 * connection is armed for one event. The thread that gets a readable connection reads, steps the
 * machine, runs the statement itself (which may block on locks, consensus or commit wait), writes
 * the answer and arms the connection again: one wake-up a client message and no hand-off (50 us,
 * probe). A thread that takes an event and sees nobody left waiting starts another, so a blocked
 * statement never keeps a COMMIT from running; extra threads leave after some idle seconds. A
 * connection at rest costs memory, not a thread. */
#ifndef SPAN_COORDINATOR_PG_LISTENER_H
#define SPAN_COORDINATOR_PG_LISTENER_H

#include "base/metrics.h"
#include "base/status.h"
#include "sql/pgwire/pg_session.h"

struct pg_listener;

struct pg_listener_config {
    /* "127.0.0.1:5433", "[::1]:5433", "localhost:0" (any port). "/run/spanlite", an absolute path:
     * a socket in that folder, named after the first address's port as PostgreSQL's clients expect
     * (host=/run/spanlite); not the first. */
    const char *const *addresses;
    size_t address_count;
    struct pg_session_factory factory;
    const char *server_version; /* of spanlite; borrowed for the listener's life */

    /* The answer gate: returns when tt_after(not_before_ns) by this node's clock. Called on a pool
     * thread before bytes leave, only with not_before_ns > 0. False: it cannot be told (clock
     * fenced, node stopping), then nothing of it is sent, the client is told so with FATAL (40003
     * when a commit's answer may be in it, else 57P03 or 57P01) and the connection is closed. NULL:
     * no gate (tests). */
    bool (*hold)(void *ctx, uint64_t not_before_ns);
    /* Why hold refused, for people; "": the node is stopping. NULL: no words for it. */
    void (*hold_refusal)(void *ctx, char *out, size_t size);
    void *hold_ctx;

    /* Optional; 0 or NULL means the default. */
    struct metrics *metrics;     /* borrowed */
    unsigned node;               /* number for log lines and thread names */
    unsigned sessions_max;       /* LIMIT_SESSIONS; beyond it clients get 53300 */
    unsigned idle_thread_ms;     /* an extra thread leaves after so long without work (5,000) */
    unsigned tick_ms;            /* period of idle checks (500) */
    unsigned startup_timeout_ms; /* a client that says nothing is dropped (60,000) */
    unsigned write_timeout_ms;   /* a client that does not read is dropped (60,000) */
};

/* Binds, listens and starts the pool. Strings of the config but server_version are copied. Errors,
 * naming the address: EXISTS (port in use), INVALID (not an address), IO. */
SPAN_CHECKED span_status pg_listener_open(const struct pg_listener_config *cfg,
                                          struct pg_listener **out, struct span_error *err);

/* Port that address i is bound to (after port 0). */
unsigned pg_listener_port(const struct pg_listener *l, size_t i);

/* Stops: accepts nobody any more, tells resting connections outside a transaction 57P01, lets
 * statements in progress finish and open transactions end for up to grace_ms, then cancels and
 * closes what is left. Returns when every connection is closed, its session freed and every thread
 * gone. Any thread but a pool thread; once. */
void pg_listener_drain(struct pg_listener *l, unsigned grace_ms);

/* Drains with no grace if that was not done, then frees. NULL is ignored. */
void pg_listener_free(struct pg_listener *l);

/* For tests and status: connections open now, pool threads alive now. */
size_t pg_listener_connections(struct pg_listener *l);
size_t pg_listener_threads(struct pg_listener *l);

#endif
