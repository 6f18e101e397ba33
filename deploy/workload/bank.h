/* The bank: accounts spread over the ranges, clients that transfer money between random accounts,
 * audits at snapshots whose totals must all be equal. workload.c turns flags into struct
 * bank_options and calls one of the three.
 *
 * Tables: accounts(id, balance), transfers(id, from_id, to_id, amount) (the ledger, written with
 * --ledger in the same transaction), bank_info(key, value): what init made, for run and check. */
#ifndef SPAN_DEPLOY_WORKLOAD_BANK_H
#define SPAN_DEPLOY_WORKLOAD_BANK_H

#include "base/status.h"
#include "deploy/workload/cluster_url.h"

#include <stdbool.h>
#include <stdint.h>

struct bank_options {
    const struct cluster_url *url;
    bool json;
    bool quiet; /* no progress lines */
    /* init */
    uint64_t accounts;
    unsigned ranges;
    int64_t balance;
    bool force; /* drop what is there */
    /* run */
    unsigned clients;
    double seconds;
    uint64_t transfers_max; /* 0: no limit; else stop after so many */
    bool ledger;
    bool prepared;
    bool pipeline; /* one message a transaction */
    int64_t amount_max;
    unsigned audit_ms; /* pause between audits; 0: none */
    unsigned timeout_ms;
    uint64_t seed;
    const char *acks;    /* file to append to (run), to compare with (check); NULL: none */
    const char *history; /* run: file for `spanlite check`; NULL: none */
    uint64_t keys;       /* register and append (history_run.h) */
};

/* Exit codes of workload_main: 0 all held, 1 something did not, 2 no connection. */
int bank_init(const struct bank_options *o);
int bank_run(const struct bank_options *o);
int bank_check(const struct bank_options *o);

/* What init made. */
struct bank_info {
    uint64_t accounts;
    int64_t balance;
};

/* Reads bank_info on *conn. NOT_FOUND: there is no bank. */
SPAN_CHECKED span_status bank_info_read(const struct cluster_url *u, PGconn **conn,
                                        struct bank_info *out, struct span_error *err);

/* Prints "spanlite workload: text" on stderr; returns 2 for a lost connection, else 1. */
int bank_fail(const struct span_error *err);

#endif
