/* Building a batch: records are encoded once, as they will stand in the unit, and beside them goes
 * a short list of what they do to the log's bookkeeping: runs of entries, places of sticky records,
 * tombstones. The writer then works per run, not per record. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "shard/wal/wal_index.h"
#include "shard/wal/wal_segment.h"

void wal_batch_init(struct wal_batch *b)
{
    *b = (struct wal_batch){0};
}

void wal_batch_deinit(struct wal_batch *b)
{
    buf_deinit(&b->bytes);
    span_free(b->ops);
    *b = (struct wal_batch){0};
}

void wal_batch_clear(struct wal_batch *b)
{
    buf_clear(&b->bytes);
    b->op_count = 0;
    b->record_count = 0;
    b->sticky_bytes = 0;
    b->too_large = false;
}

bool wal_batch_is_empty(const struct wal_batch *b)
{
    return b->record_count == 0 && !b->too_large;
}

size_t wal_batch_bytes(const struct wal_batch *b)
{
    return b->bytes.size;
}

static struct wal_batch_op *batch_op(struct wal_batch *b)
{
    if (b->op_count == b->op_cap) {
        b->op_cap = b->op_cap == 0 ? 16 : b->op_cap * 2;
        b->ops = span_realloc(b->ops, b->op_cap * sizeof *b->ops);
    }
    struct wal_batch_op *op = &b->ops[b->op_count++];
    *op = (struct wal_batch_op){0};
    return op;
}

void wal_batch_add_entry(struct wal_batch *b, uint64_t range, uint64_t index, uint64_t term,
                         uint8_t type, struct slice payload)
{
    REQUIRE(index > 0);
    if (payload.size > LIMIT_ENTRY_BYTES) {
        b->too_large = true;
        return;
    }
    struct wal_batch_op *last = b->op_count == 0 ? NULL : &b->ops[b->op_count - 1];
    if (last != NULL && last->kind == WAL_ENTRY && last->range == range &&
        last->last + 1 == index) {
        last->last = index;
    } else {
        *batch_op(b) = (struct wal_batch_op){WAL_ENTRY, range, index, index, 0};
    }
    record_encode(&b->bytes, &(struct wal_record){.kind = WAL_ENTRY,
                                                  .type = type,
                                                  .range = range,
                                                  .index = index,
                                                  .term = term,
                                                  .payload = payload});
    b->record_count++;
}

void wal_batch_add_sticky(struct wal_batch *b, uint64_t range, uint8_t kind, struct slice payload)
{
    if (payload.size > WAL_STICKY_BYTES_MAX) {
        b->too_large = true;
        return;
    }
    *batch_op(b) = (struct wal_batch_op){WAL_STICKY, range, 0, 0, b->bytes.size};
    record_encode(
        &b->bytes,
        &(struct wal_record){.kind = WAL_STICKY, .type = kind, .range = range, .payload = payload});
    b->record_count++;
    b->sticky_bytes += RECORD_HEADER_BYTES + payload.size;
}

void wal_batch_add_tombstone(struct wal_batch *b, uint64_t range)
{
    *batch_op(b) = (struct wal_batch_op){WAL_TOMBSTONE, range, 0, 0, 0};
    record_encode(&b->bytes, &(struct wal_record){.kind = WAL_TOMBSTONE, .range = range});
    b->record_count++;
}
