/* What must hold at every step, whatever the clients do (DESIGN section 8). Fed by the cluster
 * (struct cluster_watch), written apart from the code it checks, and looks into the nodes only by
 * reading:
 *
 *   - one leader per term; one content per (range, index, term) (log matching)
 *   - what one node has committed at an index, every node that commits it has (state-machine
 *     safety), across crashes
 *   - a vote, an acknowledged entry and a promise outlive a crash; nobody votes while it has
 * promised not to
 *   - nobody applies a write at or below a safe time that it has published
 *   - no transaction is committed in one range and aborted in another, or at two timestamps
 *   - leases of one range are disjoint in true time
 *   - at rest, and now and then: replicas with the same applied index have the same digest
 *   - memory and log stay within bounds */
#ifndef SPAN_TESTS_SIM_SIM_CHECK_H
#define SPAN_TESTS_SIM_SIM_CHECK_H

#include "tests/sim/sim_cluster.h"

struct sim_check;

struct sim_check *sim_check_new(struct cluster *c);
void sim_check_free(struct sim_check *k);
/* Compares digests of replicas that have applied as much as each other, on all nodes now. Reads
 * everything. Returns how many were compared. */
size_t sim_check_digests(struct sim_check *k);
/* What is kept in memory and in the log is within bounds; `rest`: the load is over and nobody waits
 * any more, so that next to nothing may be left. */
void sim_check_bounds(struct sim_check *k, const struct cluster_options *o, bool rest);
/* sim_check_bounds of rest would find nothing. */
bool sim_check_rests(struct sim_check *k, const struct cluster_options *o);

#endif
