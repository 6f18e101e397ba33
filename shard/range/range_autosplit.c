/* Ranges that grew too large ask to be split. The leader looks at the size of its file now and
 * then; when it is above the bound, it walks back from the range's end, a little at a time, until
 * it has passed a piece's worth of rows, and that is where it wants to be cut. The node's gateway
 * does the rest, because the right side needs a number from range 1 (store_split_wanted).
 *
 * The piece is a bounded part at the end, not half: its file is soon built, and what is written
 * meanwhile has to be added to it while the range stands still; and what grows at the end goes on
 * in a small range. A range that grows everywhere is cut again, once the rows that left it are gone
 * from its file. */
#include "base/alloc.h"
#include "base/log.h"
#include "shard/range/store_impl.h"

#define LOOK_NS         (5 * SEC_NS)
#define STEP_NS         (40 * MS_NS)
#define STEP_BYTES      (128 * KIB)
#define PIECE_BYTES_MAX (4 * MIB)
#define GIVE_UP_NS      (60 * SEC_NS)

void store_set_split_size(struct store *s, uint64_t bytes)
{
    s->split_bytes = bytes;
}

void replica_autosplit_reset(struct replica *r)
{
    buf_clear(&r->cut_at);
    r->cut_bytes = 0;
    r->cut_wanted = false;
    r->cut_look_ns = 0;
}

static bool keep_key(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    (void)value;
    (void)ts;
    buf_set(ctx, key);
    return true;
}

/* One step back from the end. */
static void walk(struct store *s, struct replica *r)
{
    struct buf last = {0};
    struct slice end = r->cut_at.size > 0 ? buf_slice(&r->cut_at) : buf_slice(&r->end);
    struct engine_scan_spec spec = {.start = buf_slice(&r->start),
                                    .end = end,
                                    .at = ENGINE_NEWEST,
                                    .reverse = true,
                                    .max_bytes = STEP_BYTES};
    struct engine_scan_result res;
    uint64_t piece = s->split_bytes / 2 < PIECE_BYTES_MAX ? s->split_bytes / 2 : PIECE_BYTES_MAX;
    span_status st = engine_scan(r->engine, &spec, keep_key, &last, &res);
    if (st != SPAN_OK || res.rows == 0 || !res.more) {
        replica_autosplit_reset(r); /* old versions, or a file that still holds what it lost */
        r->cut_look_ns = s->now->mono_ns + GIVE_UP_NS;
    } else {
        buf_set(&r->cut_at, buf_slice(&last));
        r->cut_bytes += res.bytes;
        r->cut_wanted = r->cut_bytes >= piece;
    }
    buf_deinit(&last);
}

static bool is_large(const struct store *s, struct replica *r)
{
    bool trimming = false;
    uint64_t bytes = engine_file_bytes(r->engine, &trimming);
    if (trimming) {
        r->flush_wanted = true; /* what a split cut off is still in the file */
        store_touch((struct store *)(uintptr_t)s, r);
    }
    return !trimming && bytes >= s->split_bytes;
}

void store_autosplit(struct store *s, const struct tt_now *now)
{
    if (s->split_bytes == 0 || now->mono_ns < s->autosplit_at_ns) {
        return;
    }
    s->autosplit_at_ns = now->mono_ns + STEP_NS;
    for (size_t i = 0; i < s->by_key_count; i++) {
        struct replica *r = s->by_key[i];
        /* Range 1 stays whole: it is small, and what needs it must find it. */
        if (!r->leading || r->id == 1 || !replica_may_serve(r, now) || r->cut_wanted ||
            replica_is_changing(r) || now->mono_ns < r->cut_look_ns) {
            continue;
        }
        if (r->cut_at.size == 0 && !is_large(s, r)) {
            r->cut_look_ns = now->mono_ns + LOOK_NS;
            continue;
        }
        walk(s, r);
        return; /* one step of one range a time */
    }
}

bool store_split_wanted(const struct store *s, struct slice *key)
{
    for (size_t i = 0; i < s->by_key_count; i++) {
        const struct replica *r = s->by_key[i];
        if (r->leading && r->cut_wanted && !replica_is_changing(r) && !replica_member_busy(r)) {
            *key = buf_slice(&r->cut_at);
            return true;
        }
    }
    return false;
}
