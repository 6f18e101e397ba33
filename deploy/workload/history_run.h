/* The workloads whose histories can be checked (`spanlite workload register|append run`): clients
 * that read and write a few keys in transactions, each value written once, and record what they
 * were told. They check nothing themselves: that is `spanlite check`.
 *
 * Tables: check_register(id, v) and check_append(id, v), v a list "1,2,3"; made anew by each run.
 */
#ifndef SPAN_DEPLOY_WORKLOAD_HISTORY_RUN_H
#define SPAN_DEPLOY_WORKLOAD_HISTORY_RUN_H

#include "deploy/workload/bank.h"

/* Of bank_options: url, json, quiet, ranges, clients, seconds, keys, transfers_max, timeout_ms,
 * seed, history. Exit codes as bank_run. */
int history_run_register(const struct bank_options *o);
int history_run_append(const struct bank_options *o);

#endif
