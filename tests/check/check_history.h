/* Does a serial order explain this history, one that agrees with real time? Strict serializability
 * of list-append and register histories, bank totals, and commit timestamps that agree with real
 * time and with who read and overwrote whom. Written apart from the code it checks: it knows only
 * the recorded history. Pure.
 *
 * What it takes for granted: within one key every written value is written once (the workloads draw
 * them so; a history that breaks it is malformed). A transaction of unknown outcome counts as
 * committed when one of its values was read, and is left out otherwise. Reads of transactions that
 * failed are not looked at; their writes must never be seen.
 *
 * How versions of a key are ordered:
 *  - append: by the longest list read. An append that no list shows comes after all of it, so it is
 *    later than every read that ends without it.
 *  - register: by commit timestamp where it is known; and a transaction that read u and wrote v
 * puts v behind u. Blind writes without a timestamp stay unordered: less is found, nothing is found
 *    wrongly. */
#ifndef SPAN_TESTS_CHECK_CHECK_HISTORY_H
#define SPAN_TESTS_CHECK_CHECK_HISTORY_H

#include "tests/check/history.h"

/* X(name, text): what can be wrong, as the literature calls it. */
#define CHECK_ANOMALIES(X)                                                                         \
    X(GARBAGE_READ, "garbage read: a value that nobody wrote")                                     \
    X(ABORTED_READ, "aborted read (G1a): a value of a transaction that did not happen")            \
    X(INTERMEDIATE_READ, "intermediate read (G1b): a value its own transaction wrote over")        \
    X(DUPLICATE, "duplicate: one append stands in a list twice")                                   \
    X(INCOMPATIBLE_ORDER, "incompatible order: two lists of one key, neither begins the other")    \
    X(INTERNAL, "internal: a transaction did not read what it had read or written itself")         \
    X(LOST_UPDATE, "lost update: two transactions changed the same version")                       \
    X(LOST_WRITE, "lost write: an acknowledged append that later reads do not show")               \
    X(WRITE_SKEW, "write skew: two transactions, each changed what the other had read")            \
    X(LONG_FORK, "long fork: two readers saw two writes in opposite orders")                       \
    X(STALE_READ, "stale read: it began after a write had ended and did not see it")               \
    X(FUTURE_READ, "future read: it ended before the write that it saw had begun")                 \
    X(CAUSAL_REVERSE, "causal reverse: a later write was seen without an earlier one")             \
    X(G0, "G0 (dirty write): writes over each other in a circle")                                  \
    X(G1C, "G1c (circular information flow): each read what the next one wrote")                   \
    X(G_SINGLE, "G-single (read skew): one of them saw half of the others")                        \
    X(G2, "G2 (anti-dependency cycle): no order explains their reads")                             \
    X(G0_REALTIME, "G0 with real time: write order against real time")                             \
    X(G1C_REALTIME, "G1c with real time: information flow against real time")                      \
    X(G_SINGLE_REALTIME, "G-single with real time: no order agrees with real time")                \
    X(G2_REALTIME, "G2 with real time: no order agrees with real time")                            \
    X(TIMESTAMP_INVERSION, "timestamp inversion: it ended before the other began, and has the "    \
                           "later timestamp")                                                      \
    X(TIMESTAMP_ORDER, "timestamp order: it depends on the other and has the lower timestamp")     \
    X(WRONG_TOTAL, "wrong total: money was made or lost in a snapshot")                            \
    X(MISSING_ACCOUNTS, "missing accounts: a snapshot without all accounts")

enum check_anomaly {

#define X(name, text) CHECK_##name,
    CHECK_ANOMALIES(X)
#undef X
        CHECK_ANOMALY_COUNT
};

struct check_report {
    /* What was looked at. */
    uint64_t transactions;
    uint64_t ok;
    uint64_t failed;
    uint64_t unknown;
    uint64_t unknown_seen; /* of those, taken as committed because a value of theirs was read */
    uint64_t reads;
    uint64_t writes;
    uint64_t keys;
    uint64_t edges;       /* orders derived from reads and writes */
    uint64_t timestamps;  /* transactions with a commit timestamp */
    uint64_t pairs;       /* of those, that began after another one of those had ended */
    uint64_t audits;      /* bank */
    uint64_t audits_past; /* of those, in the past */
    /* What was found: how often each. All 0: it holds. */
    uint64_t found[CHECK_ANOMALY_COUNT];
    uint64_t found_total;
    struct buf say; /* the first of them in words, each a paragraph */
};

/* *out is owned by the caller, check_report_deinit. INVALID: the history cannot be judged (a value
 * written twice to one key); the text names the line. */
SPAN_CHECKED span_status check_history(const struct history *h, struct check_report *out,
                                       struct span_error *err);
void check_report_deinit(struct check_report *r);
const char *check_anomaly_text(enum check_anomaly a);
/* "LOST_UPDATE" */
const char *check_anomaly_name(enum check_anomaly a);

#endif
