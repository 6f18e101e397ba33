/* One spanlite node inside this process: what `spanlite start` runs once and `spanlite demo` three
 * or five times. This header is the seam between the commands, which turn flags, environment and
 * file into a struct server_options, and the server, which turns the options into a running node.
 *
 * Life: server_options_init, fill, server_options_check; server_start; server_wait blocks until the
 * node has stopped (somebody called server_stop, or it could not go on); server_free. Several
 * servers may live in one process when their ids, data folders and addresses differ. */
#ifndef SPAN_COORDINATOR_SERVER_H
#define SPAN_COORDINATOR_SERVER_H

#include "base/limits.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum server_clock {
    SERVER_CLOCK_EMULATED, /* system clock + clock_offset + drift; true time is the system clock */
    SERVER_CLOCK_SYSTEM,   /* adjtimex's maxerror */
    SERVER_CLOCK_FIXED,    /* system clock with a constant epsilon that nobody checks */
};

/* A member of the cluster as a node of it dials it. */
struct server_peer {
    unsigned id;
    char *url; /* tcp://host:port, ipc://path, inproc://name; owned by the options */
};

/* Strings are owned by the options (span_strdup); NULL means "not given". server_start copies what
 * it keeps, so the options may be freed once it returned. */
struct server_options {
    unsigned id;       /* 1 .. LIMIT_PEERS; the node's number in the cluster, for ever */
    char *data_dir;    /* created when missing */
    char *cluster;     /* name of the cluster; a node of another name is refused by its peers */
    char *peer_listen; /* own peer URL; NULL: the URL that `peers` gives for `id` */
    struct server_peer peers[LIMIT_PEERS]; /* every node of the cluster, this one too, by id */
    size_t peer_count;
    char *sql_listen;  /* host:port; port 0: any free one, see server_addresses_get */
    char *sql_socket;  /* folder for a unix socket beside it; NULL: none */
    char *http_listen; /* host:port, port 0 as above; NULL: no HTTP */
    char *bind;        /* source address of outgoing peer connections; NULL: the system's choice */

    enum server_clock clock;
    uint64_t epsilon_ns;     /* half width of the interval at start; SET CLUSTER changes it later */
    int64_t clock_offset_ns; /* emulated only */
    int64_t clock_drift_ppb; /* emulated only; parts per billion */
    uint64_t lease_ns; /* leader lease, >= 10 * epsilon_ns (rule B10) and <= LEASE_NS_MAX (B3) */

    uint64_t version_window_ns; /* how far back a read may go */
    uint64_t txn_idle_ns; /* an open transaction without a statement for so long is rolled back */
    uint64_t cache_bytes; /* SQLite page cache of the whole node */
    uint64_t flush_bytes; /* size of a replica's memory table that starts a flush */
    uint64_t wal_segment_bytes; /* of the log's files, at least 16 MiB; 0: WAL_SEGMENT_BYTES. A node
                                   keeps three */
    unsigned sessions_max;      /* client connections, then SQLSTATE 53300 */
    unsigned workers;           /* worker threads */

    bool join;                    /* a new node of a running cluster (node add): no ranges yet */
    bool enable_faults;           /* fault hooks may be set through the HTTP port */
    bool throwaway;               /* mark a new data folder as throw-away (kept in it for good) */
    bool unsafe_skip_commit_wait; /* breaks external consistency on purpose; throw-away folders only
                                   */
};

/* Defaults of every field as `spanlite start` has them; no strings. */
void server_options_init(struct server_options *o);
void server_options_deinit(struct server_options *o);
/* Copies everything, strings too. `to` need not be initialised. */
void server_options_copy(struct server_options *to, const struct server_options *from);
/* Adds "1=tcp://127.0.0.1:7100,2=tcp://127.0.0.1:7101"; INVALID names the entry that is wrong
 * (number, URL scheme, an id given twice, more than LIMIT_PEERS). */
SPAN_CHECKED span_status server_options_add_peers(struct server_options *o, const char *text,
                                                  struct span_error *err);
/* What can be said without touching anything: required fields, own id among the peers, host:port
 * and URL syntax, bounds between fields (lease against epsilon). INVALID with the flag's name. */
SPAN_CHECKED span_status server_options_check(const struct server_options *o,
                                              struct span_error *err);
/* Splits "host:port", "[v6]:port" or ":port" (host then empty). INVALID when it is neither. */
SPAN_CHECKED span_status server_address_split(const char *text, char *host, size_t host_size,
                                              unsigned *port);

struct server;

/* What a started server really listens on (ports that were 0 are filled in). */
struct server_addresses {
    char sql[128];  /* host:port */
    char http[128]; /* host:port; empty when there is no HTTP */
    char peer[256]; /* URL */
};

/* Opens the data folder (coordinator/data_dir.h), recovers the store, binds every address and
 * starts the threads. On success the node takes part in its cluster and accepts connections;
 * whether ranges have leaders yet is what /readyz says. On failure nothing is left behind and err
 * names what and where: IO (folder, address in use), CORRUPT (file and offset), INVALID (options,
 * folder of another cluster or node). */
SPAN_CHECKED span_status server_start(const struct server_options *o, struct server **out,
                                      struct span_error *err);
/* Asks for a graceful end and returns at once: leaderships are handed over, transactions in
 * progress get up to 10 s, then everything is synced and closed. May be called from any thread, any
 * number of times. */
void server_stop(struct server *s);
/* Blocks until the server has stopped. OK: on request. Else why it could not go on, in err. */
SPAN_CHECKED span_status server_wait(struct server *s, struct span_error *err);
/* After server_wait returned (or NULL). */
void server_free(struct server *s);
/* Any thread, from server_start's return until server_free. */
void server_addresses_get(const struct server *s, struct server_addresses *out);
/* True when this node could answer a SQL statement now: the range of the directory has a leader
 * known here and the clock is not fenced. What /readyz answers. Any thread. */
bool server_is_ready(const struct server *s);
/* Why it is not, for people, without a full stop: the nodes that a majority lacks, the clock, or a
 * leader that is still to be found; "" when it is ready. Any thread. */
void server_waiting_for(const struct server *s, char *out, size_t size);
/* Blocks until the server is ready: OK. DEADLINE after timeout_ms; CLOSED when it is stopping or
 * cannot go on, which server_wait then tells. On the thread that calls server_wait, before it. */
SPAN_CHECKED span_status server_wait_ready(struct server *s, unsigned timeout_ms);

#endif
