/* The file SETTINGS of a data folder: what cluster settings the node applied, kept over restarts.
 *
 * Epsilon and the lease hold from a node's first moment on (rule B10): the bound of its clock may
 * not be smaller after a restart than what the cluster was told before, and range 1, where the
 * settings lie, can only be read later. A file that is not whole is therefore refused, never passed
 * over. Calls come from one thread at a time; no state but the file. */
#ifndef SPAN_COORDINATOR_SERVER_SETTINGS_H
#define SPAN_COORDINATOR_SERVER_SETTINGS_H

#include "base/status.h"

#include <stdint.h>

struct server_settings {
    uint64_t epsilon_ns; /* truetime.epsilon, at most EPSILON_NS_MAX */
    uint64_t lease_ns;   /* raft.lease, 2 * LEASE_RENEW_NS .. LEASE_NS_MAX */
};

/* Replaces DIR/SETTINGS; when it returns OK, the new one is what a crash leaves, else the old or
 * the new one, whole. IO or NO_SPACE with the path. */
SPAN_CHECKED span_status server_settings_write(const char *dir, const struct server_settings *set,
                                               struct span_error *err);
/* NOT_FOUND (err untouched): there is none, nothing was ever set. CORRUPT names file and line: a
 * line that is malformed, unknown, repeated, out of bounds or missing, or a wrong checksum. IO. */
SPAN_CHECKED span_status server_settings_read(const char *dir, struct server_settings *out,
                                              struct span_error *err);

#endif
