/* The bank's books: what must be true of the accounts, the ledger and what clients were told. Pure:
 * `bank check` fills it from the database and the acknowledgement file, a test from its own lists.
 *
 * What must hold:
 *  - every account is there, none below 0, and their sum is what was paid in;
 *  - with a ledger: each account's balance is its initial one plus its ledger entries;
 *  - every acknowledged transfer is in the ledger exactly once, with the amount and accounts it
 * had;
 *  - no transfer whose client was told for good that it did not happen is in the ledger;
 *  - one whose outcome the client never learned may be there or not, but at most once. */
#ifndef SPAN_DEPLOY_WORKLOAD_BANK_LEDGER_H
#define SPAN_DEPLOY_WORKLOAD_BANK_LEDGER_H

#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct bank_transfer {
    uint64_t id; /* not 0 */
    uint64_t from;
    uint64_t to;
    int64_t amount;
};

enum bank_told { BANK_TOLD_DONE, BANK_TOLD_NOT_DONE, BANK_TOLD_UNKNOWN };

struct bank_ledger;

struct bank_verdict {
    uint64_t accounts;
    int64_t total;
    uint64_t transfers; /* rows of the ledger */
    uint64_t acknowledged;
    uint64_t refused;
    uint64_t unknown;
    uint64_t unknown_done; /* of those, how many are in the ledger */
    /* Violations; all 0 when the books are right. */
    uint64_t missing_accounts;
    uint64_t negative;
    uint64_t total_wrong;   /* 0 or 1 */
    uint64_t balance_wrong; /* accounts whose balance is not what the ledger says */
    uint64_t lost;          /* acknowledged, not in the ledger */
    uint64_t doubled;       /* in the ledger more than once */
    uint64_t undead;        /* refused, yet in the ledger */
    uint64_t different;     /* in the ledger with other accounts or amount */
};

/* Accounts are 1 .. accounts, each paid in `initial`. */
struct bank_ledger *bank_ledger_new(uint64_t accounts, int64_t initial);
void bank_ledger_free(struct bank_ledger *b);
void bank_ledger_account(struct bank_ledger *b, uint64_t id, int64_t balance);
void bank_ledger_transfer(struct bank_ledger *b, const struct bank_transfer *t);
/* The last word to a client about transfer t counts: an unknown one may be resolved later. */
void bank_ledger_told(struct bank_ledger *b, const struct bank_transfer *t, enum bank_told told);
/* compare_balances: every transfer was written to the ledger, so it explains each balance. Up to a
 * few sentences about what is wrong are appended to `say`. True: nothing is. */
bool bank_ledger_verify(struct bank_ledger *b, bool compare_balances, struct bank_verdict *out,
                        struct buf *say);

/* One line of an acknowledgement file: "done|not|unknown ID FROM TO AMOUNT\n". */
void bank_told_encode(const struct bank_transfer *t, enum bank_told told, struct buf *out);
/* INVALID: not such a line (without its newline). A torn last line is the caller's to forgive. */
SPAN_CHECKED span_status bank_told_decode(struct slice line, struct bank_transfer *t,
                                          enum bank_told *told);

#endif
