/* A run of the simulator: cluster, clients with their history, faults, and what the parts (sim.c,
 * sim_bank.c, sim_faults.c, sim_history.c) share.
 *
 * The workload is a bank whose values name their writer, so that the history can be checked
 * exactly: each balance carries the number of the transaction that wrote it; half of the transfers
 * also add a row of their own to a journal, which tells at the end what happened to the ones whose
 * answer was lost. Registers and lists are the same rows read and written by other kinds of
 * transactions. */
#ifndef SPAN_TESTS_SIM_SIM_WORLD_H
#define SPAN_TESTS_SIM_SIM_WORLD_H

#include "base/limits.h"
#include "tests/sim/sim.h"
#include "tests/sim/sim_check.h"
#include "tests/sim/sim_cluster.h"

#define TABLE_ACCOUNTS 1024
#define TABLE_JOURNAL  1025
#define TABLE_LISTS    5000 /* SQL clients of scripts have tables behind these two */
#define TABLE_REQUESTS 5001
#define LISTS_MAX      6
#define CLIENTS_MAX    16
#define ACCOUNTS_MAX   48
#define REGISTERS_MAX  8
#define START_BALANCE  1000
#define RETRY_AGE_NS   (10 * SEC_NS)

enum ending {
    OUT_OPEN,
    OUT_COMMITTED,
    OUT_ABORTED,
    OUT_UNKNOWN,
};

enum kind {
    K_TRANSFER,  /* two accounts, X locks, both written */
    K_WATCH,     /* reads a third account under S, too */
    K_BLIND,     /* writes that nothing was read for */
    K_AUDIT,     /* read-only at now: all accounts */
    K_PAST,      /* read-only at a past timestamp */
    K_STALE,     /* read-only, bounded staleness */
    K_LOCKED,    /* read-write that only reads: all accounts under S, validated */
    K_ROLLBACK,  /* a transfer that is given up */
    K_PUT,       /* registers: written or deleted without being read */
    K_LONG,      /* K_WATCH by a client that takes long between its statements */
    K_LIST,      /* appends to one list or two, reads another; tried until it is known to be done */
    K_LIST_READ, /* read-only: all lists, now or in the past */
    K_COUNT,
};

struct cell {
    unsigned account;
    int64_t balance;
    uint64_t writer; /* number of the transaction in the history */
    bool absent;     /* a register that was deleted or never written */
};

struct list_read {
    unsigned list;
    size_t count;
    int64_t *values;
};

struct htxn {
    enum kind kind;
    unsigned client;
    enum ending out;
    struct txn_id id;
    bool has_anchor;
    unsigned anchor; /* account */
    uint64_t begun_ns;
    uint64_t acked_ns;  /* 0: never */
    struct tt_ts floor; /* everything acknowledged before it began */
    struct tt_ts ts;    /* commit or read timestamp */
    struct tt_ts seen;
    struct cell *reads;
    size_t read_count;
    struct cell writes[2];
    size_t write_count;
    struct list_read *lists; /* as read */
    size_t list_count;
    unsigned appends[2]; /* lists that its number was appended to */
    size_t append_count;
    uint64_t request; /* that it tries; 0: none */
    uint64_t done_by; /* it read that the request was done by this transaction */
    bool as_of;       /* K_LIST_READ in the past */
    bool journal;
    bool in_journal; /* found at the end */
    bool must_retry; /* its status said so */
    bool timeless;   /* the contract of external consistency was broken while it ran */
};

struct sim_world;

struct client {
    struct sim_world *w;
    unsigned n;
    node_id node;
    struct gateway_op op;
    size_t txn; /* in w->history */
    struct txn_id age;
    uint64_t age_until_ns;
    unsigned accounts[3];
    struct buf keys[3];
    struct slice key_slices[3];
    struct buf values[3];
    struct txn_write writes[3];
    struct buf anchor;
    struct buf span_start;
    struct buf span_end;
    uint64_t request; /* to be tried until it is known to be done; 0: none */
    unsigned lists[3];
    unsigned known_lists;
    size_t appends; /* so many of lists; the rest is read */
    unsigned phase;
    bool busy;
    bool paused;
    uint64_t epoch; /* of the node when the transaction began */
};

struct restart {
    struct sim_world *w;
    node_id node;
};

/* How often each fault is drawn; 0: never. */
enum fault {
    FAULT_CRASH,     /* a node is killed, restarted up to 1.5 s later */
    FAULT_POWER,     /* the same, and what was not synced is lost in parts */
    FAULT_DEATH,     /* it dies in the middle of a turn, of a write, of a start */
    FAULT_CRASH_ALL, /* all at once */
    FAULT_PAUSE,
    FAULT_CUT, /* whole, one way, or to some */
    FAULT_TRANSFER,
    FAULT_SPLIT,
    FAULT_MERGE,
    FAULT_MEMBER, /* a member of a range leaves, another comes */
    FAULT_FLUSH,
    FAULT_STALL,   /* syncs of a node take long */
    FAULT_EIO,     /* a sync fails */
    FAULT_NO_ROOM, /* a disk is full for a while */
    FAULT_FLIP,    /* a bit of a killed node's log */
    FAULT_CLOCK,   /* one beyond its bound */
    FAULT_ROT,     /* bits of rows in a node's range files, always the same node's */
    FAULT_COUNT,
};

struct sim_world {
    uint64_t seed;
    struct sim_options sim;
    struct cluster *c;
    struct sim_check *check;
    struct cluster_options opt;
    struct htxn *history;
    size_t count;
    size_t cap;
    struct client clients[CLIENTS_MAX];
    size_t client_count;
    unsigned accounts;
    unsigned cells; /* accounts, then registers: rows of the same table */
    unsigned lists; /* that are appended to at a time, from list_base on */
    unsigned list_base;
    uint64_t requests;
    uint32_t seq;
    struct tt_ts floor; /* max over what was acknowledged so far */
    bool stopping;
    bool faults;
    unsigned fault_weights[FAULT_COUNT];
    unsigned weights[K_COUNT];
    unsigned weight_sum;
    unsigned readers; /* one in so many clients only audits; 0: none */
    uint64_t think_ns;
    unsigned think_share;  /* of 100 steps */
    uint64_t fault_gap_ns; /* between two faults, at most */
    size_t first_splits;
    uint64_t run_ns;
    size_t busy;
    size_t admin_busy;
    bool op_done;
    struct gateway_op *op_left; /* did not end */
    size_t committed;
    size_t retried;
    size_t unknowns;
    size_t splits;
    size_t digests;
    bool untimed; /* an outcome stayed without a timestamp: no exact replay */
    node_id rotten;
    size_t rots; /* bits flipped */
    bool flip_wanted;
    bool flipped;
    struct restart restarts[SIM_NODES_MAX + 1];
    struct restart repairs[SIM_NODES_MAX + 1]; /* of clocks */
    unsigned wrong_clocks;                     /* at this time */
};

static inline bool world_failed(const struct sim_world *w)
{
    return cluster_failure(w->c) != NULL;
}

/* ---- sim_bank.c: rows and clients ---- */
void sim_table_key(struct buf *b, uint32_t table);
void sim_be32(struct buf *b, uint32_t v);
void sim_account_key(struct buf *b, unsigned account);
void sim_journal_key(struct buf *b, size_t txn);
void sim_value_of(struct buf *b, int64_t balance, uint64_t writer);
bool sim_parse_cell(struct slice key, struct slice value, struct cell *out);
bool sim_is_journal(struct slice key);
void sim_clients_start(struct sim_world *w);
void sim_clients_free(struct sim_world *w);

/* ---- sim_lists.c: lists, requests, and the history as tests/check judges it ---- */
void sim_list_key(struct buf *b, unsigned list);
void sim_request_key(struct buf *b, uint64_t request);
uint32_t sim_table_of(struct slice key);
/* A row of a list was read. */
void sim_list_read(struct sim_world *w, struct htxn *t, struct slice key, struct slice value);
/* NULL: not read, or not there. */
const struct list_read *sim_list_find(const struct htxn *t, unsigned list);
/* It was read too, and if it has no row it is empty. */
void sim_list_absent(struct htxn *t, unsigned list);
void sim_list_value(struct buf *b, const struct list_read *old, uint64_t txn);
void sim_lists_free(struct htxn *t);
void sim_check_serial(struct sim_world *w);

/* ---- sim_faults.c: administration and faults ---- */
void world_split_at_random(struct sim_world *w);
/* Asked at the node's gateway; counted in admin_busy until answered. */
void world_move(struct sim_world *w, node_id at, range_id range, node_id add, node_id remove);
void world_transfer(struct sim_world *w, node_id at, range_id range, node_id to);
void sim_faults_start(struct sim_world *w);
node_id sim_any_alive(struct sim_world *w);
/* A range that some node knows. */
range_id sim_any_range(struct sim_world *w);

/* ---- sim_history.c: the start, the end, the history ---- */
/* All rows of tables from .. to - 1 at ts (0: now) as the node sees them; fn for each. */
void sim_scan(struct sim_world *w, node_id node, uint32_t from, uint32_t to, struct tt_ts ts,
              void (*fn)(struct sim_world *w, struct slice key, struct slice value));
bool world_idle(void *ctx);
bool world_admin_idle(void *ctx); /* clients may be busy */
void world_set_up(struct sim_world *w);
/* Faults are over and the clients have stopped: everything must end, and the history be right. */
void sim_finish(struct sim_world *w);

#endif
