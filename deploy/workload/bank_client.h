/* One client of `bank run`: a non-blocking libpq connection and what it is in the middle of. All
 * clients belong to one thread, which tells each when its socket is ready or its time has come.
 *
 *   DOWN --wake--> DIALING --> (PREPARING) --> READY --> BEGIN > DEBIT > CREDIT > [LEDGER] > COMMIT
 * --> READY ^                        | error            | 40003, connection lost any, connection
 * lost --> DOWN   |                     ROLLBACK --> PAUSE    v
 *                                    +------------------------------------ STATUS (asks by id) -->
 * READY
 *
 * A transfer is repeated, with the same id, until it is acknowledged, declined for want of money,
 * or the run ends. 40001 means it did not happen, so it may be repeated; after 40003 or a
 * connection lost during COMMIT only SHOW TRANSACTION STATUS can tell (rules C11, E1). */
#ifndef SPAN_DEPLOY_WORKLOAD_BANK_CLIENT_H
#define SPAN_DEPLOY_WORKLOAD_BANK_CLIENT_H

#include "base/heap.h"
#include "base/hist.h"
#include "base/rng.h"
#include "deploy/workload/bank.h"
#include "deploy/workload/bank_ledger.h"
#include "deploy/workload/history_file.h"

enum bank_state {
    BANK_DOWN,
    BANK_DIALING,
    BANK_PREPARING,
    BANK_READY,
    BANK_BEGIN,
    BANK_DEBIT,
    BANK_CREDIT,
    BANK_LEDGER,
    BANK_COMMIT,
    BANK_WHOLE, /* --pipeline: all of it in one message */
    BANK_ROLLBACK,
    BANK_PAUSE,
    BANK_STATUS,
    BANK_STAMP, /* --history: asks for the timestamp of what was just acknowledged */
    BANK_AUDIT_BEGIN,
    BANK_AUDIT_READ,
    BANK_AUDIT_COMMIT,
    BANK_DONE,
};

/* What all clients share: the run. */
struct bank_shared {
    const struct bank_options *o;
    struct bank_info info;
    int epoll_fd;
    struct heap timers; /* by wake time, of struct bank_client.timer */
    uint64_t now;       /* CLOCK_MONOTONIC, read once a turn */
    uint64_t start;
    uint64_t stop_at;
    bool stopping; /* begin no new transfer */
    unsigned active;

    struct hist latency; /* ns, acknowledged transfers, from the first BEGIN to the answer */
    struct hist second;  /* the same, since the last progress line */
    uint64_t committed;
    uint64_t declined;
    uint64_t retries;
    uint64_t unknown;  /* outcomes that could not be learned */
    uint64_t resolved; /* outcomes learned by status */
    uint64_t reconnects;
    uint64_t audits;
    uint64_t stale_audits;
    uint64_t mismatches;
    uint64_t violations; /* a transfer said not to have happened was found to have */
    uint64_t last_ack;
    uint64_t gap_max;             /* longest time without an acknowledged transfer */
    bool no_stale;                /* the server does not know AS OF */
    char fatal[512];              /* not empty: the run cannot go on, and why */
    char trouble[512];            /* the first violation or wrong total */
    struct buf told;              /* lines for the acknowledgement file, written once a turn */
    struct history_file *history; /* or NULL */
};

struct bank_client {
    struct bank_shared *s;
    struct heap_node timer;
    struct rng rng;
    unsigned number;
    bool auditor;
    enum bank_state state;
    PGconn *conn;
    int fd;           /* as registered in epoll; -1: none */
    bool out_pending; /* libpq could not send all of it yet */
    unsigned host;
    unsigned prepare_step;
    uint64_t sent_at; /* of the statement under way, for its timeout; 0: none */

    /* The statement under way. */
    bool failed;
    char sqlstate[6];
    bool not_done; /* its tag says that nothing changed: "UPDATE 0", or ROLLBACK as answer to COMMIT
                    */
    char value[3][64]; /* first row */

    /* The transfer under way. */
    bool has_transfer;
    struct bank_transfer transfer;
    uint64_t begun_at;
    uint64_t attempt_at; /* when the attempt under way began */
    unsigned attempt;
    bool declined;
    bool need_status;
    uint64_t status_since;
    char txn_id[128];
    char old_id[128]; /* of the transaction before: a status of old is not this one's */

    /* The audit under way. */
    unsigned audit_number;
    bool audit_stale;
    uint64_t audit_begun;
    uint64_t audit_rows; /* what it found */
    int64_t audit_total;

    struct history_record record; /* of what was acknowledged, while its timestamp is asked for */
    bool has_record;
    char record_id[128];
};

void bank_client_init(struct bank_client *c, struct bank_shared *s, unsigned number, bool auditor);
void bank_client_deinit(struct bank_client *c);
/* Its socket is ready. */
void bank_client_ready(struct bank_client *c);
/* Its timer went off. */
void bank_client_wake(struct bank_client *c);
/* Drops the connection if its statement or dial is overdue. */
void bank_client_check_timeout(struct bank_client *c);
/* The run ends for good: what is under way is recorded as unknown. */
void bank_client_abandon(struct bank_client *c);

#endif
