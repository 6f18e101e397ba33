/* A SQL client of the simulator: the production wire (pg_conn), session (sql/) and key-value
 * session (coordinator/kv_session.c) over a simulated node's gateway, in the one thread of the run.
 * A call of the session that would sleep until its operation is done runs the cluster until then,
 * so that statements take virtual time; one client runs a statement at a time. */
#ifndef SPAN_TESTS_SIM_SIM_SQL_H
#define SPAN_TESTS_SIM_SIM_SQL_H

#include "tests/sim/sim_world.h"

struct sim_sql;

struct sim_answer {
    char error[6];   /* SQLSTATE, "" if there was none */
    char value[200]; /* first column of the first row */
    size_t rows;
    uint64_t not_before_ns; /* of the answer gate */
};

/* Connects to a node that is up and stays so. */
struct sim_sql *sim_sql_open(struct sim_world *w, node_id node);
void sim_sql_close(struct sim_sql *c);
/* Runs the statements of a simple query; the answer is ready, but has not left. */
void sim_sql_run(struct sim_sql *c, struct sim_answer *out, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The answer leaves: time passes until the gate lets it. */
void sim_sql_leave(struct sim_sql *c);
/* The id of its last transaction with BEGIN (rule E1). */
const char *sim_sql_txn_id(const struct sim_sql *c);

/* ---- scripts (sim_script.h) ---- */
void sim_sql_answers(struct sim_world *w); /* D0: what else shows a commit */
void sim_sql_unique(struct sim_world *w);  /* G1 */

#endif
