/* Many libpq connections driven by one thread: for probes and load generators that share the
 * machine with the nodes they measure. A connection sends one statement (or several in one message)
 * at a time and tells its owner by a callback when it is connected, has its answer or is lost. It
 * dials again by itself after it was lost. One thread; callbacks may call everything but
 * pq_loop_free. */
#ifndef SPAN_TESTS_LIB_PQ_LOOP_H
#define SPAN_TESTS_LIB_PQ_LOOP_H

#include "base/heap.h"
#include "deploy/workload/cluster_url.h"

enum pq_event {
    PQ_CONNECTED, /* may send now */
    PQ_ANSWER,    /* result: the last one, or the first that is an error; may send now */
    PQ_LOST, /* the connection is gone, with it the statement under way; dials again by itself */
    PQ_WAKE, /* the time asked for with pq_conn_wake_at has come */
};

enum pq_state { PQ_DOWN, PQ_DIALING, PQ_IDLE, PQ_BUSY };

struct pq_conn;
struct pq_loop;

typedef void pq_callback(struct pq_conn *c, enum pq_event event, const PGresult *result);

/* Embedded by the owner; set by pq_conn_init. */
struct pq_conn {
    struct pq_loop *loop;
    pq_callback *call;
    void *ctx;
    unsigned host; /* of the URL, modulo its hosts; may be changed between PQ_LOST and dialling */
    enum pq_state state;
    PGconn *pg;
    int fd;           /* as registered in epoll; -1: none */
    bool out_pending; /* libpq could not send all of it yet */
    PGresult *kept;
    char why[6];      /* PQ_LOST: the SQLSTATE that the server said good-bye with, or "" */
    uint64_t sent_ns; /* of the statement under way; of dialling */
    struct heap_node redial;
    struct heap_node wake;
};

struct pq_loop *pq_loop_new(const struct cluster_url *url); /* url is borrowed */
void pq_loop_free(struct pq_loop *l);                       /* after every pq_conn_deinit */
uint64_t pq_loop_now(const struct pq_loop *l); /* CLOCK_MONOTONIC in ns, read when it woke up */
/* Waits for at most timeout_ns and handles what has come. */
void pq_loop_turn(struct pq_loop *l, uint64_t timeout_ns);

void pq_conn_init(struct pq_conn *c, struct pq_loop *l, unsigned host, pq_callback *call,
                  void *ctx);
void pq_conn_deinit(struct pq_conn *c);
/* In PQ_IDLE only; the text is copied. A failure comes as PQ_LOST on the next turn. */
void pq_conn_send(struct pq_conn *c, const char *sql);
/* Gives the statement and its connection up and dials again at once; no event until PQ_CONNECTED.
 */
void pq_conn_drop(struct pq_conn *c);
void pq_conn_wake_at(struct pq_conn *c, uint64_t at_ns); /* replaces the one before */
/* SQLSTATE of a result, "" when it is none of an error, "-----" when the server gave none. */
const char *pq_sqlstate(const PGresult *r);

#endif
