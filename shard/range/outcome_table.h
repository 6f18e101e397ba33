/* How transactions of this range ended: txn id -> committed at s, or aborted (rule C3). Part of the
 * replicated state. Kept compact (24 bytes a record), because a busy range makes thousands a second
 * and each is kept until the watermark W passes its transaction's begin: then late messages of its
 * age are refused and the record may go.
 *
 * Records are grouped in blocks in the order they were added. A block is what one meta row of the
 * engine holds, so the flusher writes each record once; a block goes when every id in it began
 * before W. */
#ifndef SPAN_SHARD_RANGE_OUTCOME_TABLE_H
#define SPAN_SHARD_RANGE_OUTCOME_TABLE_H

#include "base/status.h"
#include "txn/txn_types.h"

struct outcome {
    struct txn_id txn;
    struct tt_ts ts; /* none: aborted */
};

/* Records in one block: a row of the engine is at most LIMIT_ENTRY_BYTES. */
#define OUTCOME_BLOCK_MAX 32768

struct outcome_table;

struct outcome_table *outcome_table_new(void);
void outcome_table_free(struct outcome_table *t);
/* The record, or NULL. Valid until the next change. */
const struct outcome *outcome_table_get(const struct outcome_table *t, const struct txn_id *txn);
/* EXISTS if the id is there with another outcome (corruption), OK if it is there with the same. */
SPAN_CHECKED span_status outcome_table_add(struct outcome_table *t, const struct txn_id *txn,
                                           struct tt_ts ts);
size_t outcome_table_count(const struct outcome_table *t);

/* Closes the oldest block that is not sealed and appends its encoding to out; returns its number
 * (> 0), or 0 when nothing is left to seal: to be called until then. The row key of a block is its
 * number, which is greater than any that was loaded. */
uint64_t outcome_table_seal(struct outcome_table *t, struct buf *out);
/* Takes a stored block back (recovery, snapshot). PROTOCOL when malformed. */
SPAN_CHECKED span_status outcome_table_load(struct outcome_table *t, uint64_t number,
                                            struct slice block);
/* Drops sealed blocks whose ids all began before w: calls gone(ctx, number) for each. */
void outcome_table_expire(struct outcome_table *t, struct tt_ts w,
                          void (*gone)(void *ctx, uint64_t number), void *ctx);
/* Every record, oldest block first. */
void outcome_table_each(const struct outcome_table *t,
                        void (*fn)(void *ctx, const struct outcome *o), void *ctx);

#endif
