/* The nodes of a cluster as a libpq URL names them, and connections to one of them at a time. libpq
 * takes several hosts in a URL but always tries them in order; a load generator spreads its clients
 * over the nodes and goes to another one when its own is gone, so the hosts are taken apart here.
 * One owner, no threads. */
#ifndef SPAN_DEPLOY_WORKLOAD_CLUSTER_URL_H
#define SPAN_DEPLOY_WORKLOAD_CLUSTER_URL_H

#include "base/status.h"

#include <libpq-fe.h>
#include <stdbool.h>
#include <stdint.h>

#define CLUSTER_URL_DEFAULT "postgresql://spanlite@127.0.0.1:5433/"

struct cluster_url;

/* url NULL: $SPANLITE_URL, else PG* variables if PGHOST is set, else CLUSTER_URL_DEFAULT. INVALID:
 * not a URL, with libpq's reason. */
SPAN_CHECKED span_status cluster_url_parse(const char *url, struct cluster_url **out,
                                           struct span_error *err);
void cluster_url_free(struct cluster_url *u);
/* Number of hosts, at least 1. */
unsigned cluster_url_hosts(const struct cluster_url *u);
/* "127.0.0.1:5433" of host i (modulo the number of hosts); borrowed. */
const char *cluster_url_host(const struct cluster_url *u, unsigned i);

/* Begins (PQconnectStart) a connection to host i modulo the number of hosts. Owned by the caller;
 * may be NULL or bad already. */
PGconn *cluster_url_start(const struct cluster_url *u, unsigned i);
/* Connects to any host, beginning with `first`, going round until timeout_ms have passed. Blocks.
 * UNAVAILABLE with the last reason and what to do. */
SPAN_CHECKED span_status cluster_url_connect(const struct cluster_url *u, unsigned first,
                                             unsigned timeout_ms, PGconn **out,
                                             struct span_error *err);

/* Runs a statement that may be run twice without harm, on *conn (NULL: dialled first), going on to
 * other nodes and trying again after retryable errors until timeout_ms have passed, and no longer
 * than 10 s while no node takes the connection. A long wait is told on stderr. Owned by the caller
 * on OK: *result. Otherwise INVALID with the server's words, or UNAVAILABLE: no connection,
 * or nothing but retryable errors for all that time. */
SPAN_CHECKED span_status cluster_url_exec(const struct cluster_url *u, PGconn **conn,
                                          const char *sql, unsigned timeout_ms, PGresult **result,
                                          struct span_error *err);

/* 40001 and what else says "nothing happened, try again": also a node going away (57P01, 57P03). */
bool cluster_sqlstate_is_retryable(const char *sqlstate);
uint64_t workload_now_ns(void); /* CLOCK_MONOTONIC */

#endif
