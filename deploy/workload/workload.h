/* Load generators, `spanlite workload`: libpq clients that put a known load on a cluster and check
 * what must hold. One so far: the bank. */
#ifndef SPAN_DEPLOY_WORKLOAD_WORKLOAD_H
#define SPAN_DEPLOY_WORKLOAD_WORKLOAD_H

/* argv[0] is the verb ("workload"). Exit codes: 0 done and every check held, 1 a check or a
 * statement failed, 2 wrong usage or no connection. */
int workload_main(int argc, char **argv);

#endif
