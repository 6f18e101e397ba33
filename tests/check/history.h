/* A recorded history: what clients did, when, and what they were told, as `spanlite workload ...
 * --history FILE` writes it and the checkers of this folder read it. README.md is the description
 * of the file for users; in short, JSON lines:
 *
 *   {"spanlite_history":1,"kind":"append"}                     first; bank: "accounts", "balance"
 * too
 *   {"client":3,"start":5,"end":9,"outcome":"ok","ts":7,"ops":[["append",1,10],["r",1,[10]]]}
 *   {"end":true,"transactions":1}                               last: the recording is whole
 *
 * Times are nanoseconds of one clock that never goes back, the recorder's. Pure: text in, arrays
 * out. */
#ifndef SPAN_TESTS_CHECK_HISTORY_H
#define SPAN_TESTS_CHECK_HISTORY_H

#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

#define HISTORY_VERSION 1

enum history_kind { HISTORY_APPEND, HISTORY_REGISTER, HISTORY_BANK };

enum history_outcome {
    HISTORY_OK,      /* acknowledged */
    HISTORY_FAIL,    /* certainly did not happen */
    HISTORY_UNKNOWN, /* may or may not have happened */
};

enum history_op_kind {
    HISTORY_APPEND_OP, /* ["append", key, value] */
    HISTORY_LIST,      /* ["r", key, [values]] of an append history */
    HISTORY_WRITE,     /* ["w", key, value] */
    HISTORY_READ,      /* ["r", key, value or null] */
    HISTORY_TRANSFER,  /* ["transfer", from, to, amount] */
    HISTORY_AUDIT,     /* ["audit", rows, total] */
};

struct history_op {
    enum history_op_kind kind;
    bool is_null;  /* READ: there was no value yet */
    uint64_t key;  /* TRANSFER: from; AUDIT: rows */
    int64_t value; /* TRANSFER: amount; AUDIT: total */
    uint64_t to;   /* TRANSFER */
    size_t list;   /* LIST: index into values */
    size_t list_count;
};

struct history_txn {
    uint64_t line; /* of the file, from 1: what messages name it by */
    uint64_t client;
    uint64_t start; /* before its first statement was sent */
    uint64_t end;   /* after its last answer; UNKNOWN: whenever */
    uint64_t ts;    /* commit timestamp as the cluster tells it; 0: not known */
    bool as_of;     /* read in the past on purpose: need not see what ended before it began */
    enum history_outcome outcome;
    size_t op; /* index into ops */
    size_t op_count;
};

struct history {
    enum history_kind kind;
    uint64_t accounts; /* bank */
    int64_t balance;   /* bank: of each account at first */
    struct history_txn *txns;
    size_t txn_count;
    size_t txn_cap;
    struct history_op *ops;
    size_t op_count;
    size_t op_cap;
    int64_t *values;
    size_t value_count;
    size_t value_cap;
};

/* Not history_init: libedit has one, and in one program ours would be called by the shell's. */
void history_init_empty(struct history *h, enum history_kind kind);
void history_deinit(struct history *h);

/* Building one by hand: a transaction, then its operations. */
struct history_txn *history_add_txn(struct history *h, uint64_t client, uint64_t start,
                                    uint64_t end, enum history_outcome outcome);
/* To the transaction added last. The struct is copied; of a LIST its values too. */
void history_add_op(struct history *h, struct history_op op, const int64_t *list);

/* Reads a whole file's text into *h, which must be deinited afterwards (also after an error).
 * INVALID: malformed, of another version, or cut short (its last line is missing: transactions
 * under way when the recorder died are in nobody's list, so nothing can be said). The text names
 * the line. */
SPAN_CHECKED span_status history_parse(struct slice text, struct history *h,
                                       struct span_error *err);
/* The text of a history, appended to out: what history_parse reads. */
void history_format(const struct history *h, struct buf *out);
const char *history_kind_name(enum history_kind kind);

#endif
