/* Recovery of the log from any bytes. The first byte chooses: even, the rest is a segment file as
 * it is; odd, the rest is a list of commands that build segments, units and records with right
 * checksums in any order, so that what lies behind the checksum is reached too.
 *
 * Whatever the bytes: wal_open gives a refusal with a text, or a log that takes a batch, closes and
 * opens again with that batch in it. */
#include "base/codec.h"
#include "base/limits.h"
#include "shard/wal/wal_file.h"
#include "shard/wal/wal_segment.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/wal_memfile.h"

#include <stdlib.h>

#define STORE         77ULL
#define SEGMENT_BYTES 8192ULL
#define FILES_MAX     6

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static uint64_t clock_ns;

static uint64_t now(void *ctx)
{
    (void)ctx;
    return clock_ns += 1000000;
}

static span_status on_replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    bool *marked = ctx;
    (void)err;
    INVARIANT(r->kind >= WAL_ENTRY && r->kind <= WAL_TOMBSTONE);
    *marked = *marked || (r->kind == WAL_STICKY && r->range == 4242);
    return SPAN_OK;
}

static void on_done(void *ctx, uint64_t cookie, span_status st)
{
    (void)cookie;
    *(bool *)ctx = st == SPAN_OK;
}

static void put_file(struct wal_memfs *m, const char *name, struct slice contents)
{
    struct wal_fs *fs = wal_memfs_fs(m);
    struct wal_file *f = NULL;
    struct span_error err;
    if (fs->ops->open(fs, name, true, &f, &err) != SPAN_OK) {
        abort();
    }
    if (contents.size != 0 &&
        fs->ops->write(fs, f, 0, contents.data, contents.size, &err) != SPAN_OK) {
        abort();
    }
    if (fs->ops->sync(fs, f, &err) != SPAN_OK || fs->ops->sync_dir(fs, &err) != SPAN_OK) {
        abort();
    }
    fs->ops->close(fs, f);
}

static span_status try_open(struct wal_memfs *m, struct wal **out, bool *marked)
{
    struct span_error err = {0};
    struct wal_options opt = {.segment_bytes = SEGMENT_BYTES,
                              .no_reserve = true,
                              .manual = true,
                              .fs = wal_memfs_fs(m),
                              .now_ns = now};
    *marked = false;
    span_status st = wal_open("mem", STORE, &opt, on_replay, marked, out, &err);
    INVARIANT(st == SPAN_OK || err.text[0] != '\0');
    return st;
}

static void use(struct wal_memfs *m)
{
    struct wal *w = NULL;
    bool marked = false;
    bool durable = false;
    if (try_open(m, &w, &marked) != SPAN_OK) {
        return;
    }
    struct wal_batch b;
    wal_batch_init(&b);
    wal_batch_add_sticky(&b, 4242, 1, slice_str("mark"));
    span_status st = wal_submit(w, &b, on_done, &durable, 1);
    INVARIANT(st == SPAN_OK || st == SPAN_TOO_LARGE); /* sticky state may fill a segment already */
    for (int i = 0; i < 20 && st == SPAN_OK && !durable; i++) {
        (void)wal_run(w);
    }
    INVARIANT(st != SPAN_OK || durable);
    wal_batch_deinit(&b);
    INVARIANT(wal_close(w) == SPAN_OK);
    wal_memfs_kill(m); /* lets go of the lock */
    INVARIANT(try_open(m, &w, &marked) == SPAN_OK);
    INVARIANT(marked || !durable);
    wal_abandon(w);
}

struct builder {
    struct wal_memfs *m;
    struct buf seg; /* the segment being built */
    struct buf records;
    uint64_t id;
    uint64_t seq;
    size_t files;
    uint32_t count;
};

static void end_segment(struct builder *b)
{
    char name[SEG_NAME_BYTES];
    if (b->seg.size != 0 && b->files++ < FILES_MAX) {
        if (b->seg.size < SEGMENT_BYTES) {
            size_t more = SEGMENT_BYTES - b->seg.size;
            memset(buf_grow(&b->seg, more), 0, more);
        }
        seg_name(b->id, name);
        put_file(b->m, name, buf_slice(&b->seg));
    }
    buf_clear(&b->seg);
}

static void begin_segment(struct builder *b, struct cursor *c)
{
    struct seg_header h = {.store_id = STORE, .bytes = SEGMENT_BYTES};
    end_segment(b);
    b->id += dec_u8(c) % 4;
    h.id = b->id;
    h.bytes += 512ULL * (dec_u8(c) % 3 == 0 ? dec_u8(c) : 0);
    seg_header_encode(&h, buf_grow(&b->seg, SEG_SECTOR_BYTES));
}

static void add_unit(struct builder *b, struct cursor *c)
{
    struct unit u = {0};
    if (b->seg.size == 0 || b->seg.size > 64 * SEGMENT_BYTES) {
        return;
    }
    size_t at = unit_begin(&b->seg);
    buf_append_slice(&b->seg, buf_slice(&b->records));
    u.record_count = b->count;
    b->seq += dec_u8(c) % 3;
    u.seq = b->seq;
    u.durable = b->seq - dec_u8(c) % 4;
    u.oldest = b->id - dec_u8(c) % 4;
    u.newest = b->id + dec_u8(c) % 4;
    uint8_t flags = dec_u8(c);
    u.flags = flags % 4;
    u.prev = b->id - flags / 4 % 4;
    unit_seal(&b->seg, at, b->id, STORE, &u);
    buf_clear(&b->records);
    b->count = 0;
}

static void add_record(struct builder *b, struct cursor *c)
{
    struct slice payload = dec_raw(c, dec_u8(c) % 64);
    struct wal_record r = {.kind = (enum wal_record_kind)(1 + dec_u8(c) % 3),
                           .type = dec_u8(c),
                           .range = dec_u8(c),
                           .index = dec_u8(c),
                           .term = dec_u8(c),
                           .payload = payload};
    record_encode(&b->records, &r);
    buf_append_slice(&b->records, payload);
    b->count++;
}

static void build(struct builder *b, struct slice commands)
{
    struct cursor c = cursor_of(commands);
    while (cursor_ok(&c) && cursor_left(&c) != 0 && b->files < FILES_MAX) {
        switch (dec_u8(&c) % 8) {
        case 0:
            begin_segment(b, &c);
            break;
        case 1:
        case 2:
            add_unit(b, &c);
            break;
        case 3:
        case 4:
            add_record(b, &c);
            break;
        case 5: { /* a byte of damage */
            uint16_t at = dec_u16(&c);
            uint8_t bits = dec_u8(&c);
            if (b->seg.size != 0) {
                b->seg.data[at % b->seg.size] ^= bits;
            }
            break;
        }
        case 6: { /* the clean-stop mark */
            struct buf mark = {0};
            struct seg_clean clean = {
                .segment_id = b->id, .offset = 512ULL * dec_u8(&c), .seq = b->seq};
            clean_encode(&clean, STORE, &mark);
            put_file(b->m, "clean", buf_slice(&mark));
            buf_deinit(&mark);
            break;
        }
        default: { /* bytes that are no records */
            struct slice raw = dec_raw(&c, dec_u8(&c));
            buf_append_slice(&b->records, raw);
            b->count += dec_u8(&c) % 2;
        }
        }
    }
    end_segment(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct builder b = {.m = wal_memfs_new(), .id = 1, .seq = 0};
    struct buf identity = {0};
    clock_ns = 1000000000;
    if (size != 0 && size < 65536) {
        identity_encode(STORE, &identity);
        put_file(b.m, "identity", buf_slice(&identity));
        if (data[0] % 2 == 0) {
            char name[SEG_NAME_BYTES];
            seg_name(1, name);
            put_file(b.m, name, slice_of(data + 1, size - 1));
        } else {
            build(&b, slice_of(data + 1, size - 1));
        }
        use(b.m);
    }
    buf_deinit(&identity);
    buf_deinit(&b.seg);
    buf_deinit(&b.records);
    wal_memfs_free(b.m);
    return 0;
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    /* segment, record, head unit, record, unit; then a second segment linked to it */
    static const uint8_t two[] = {1, 0, 0, 1, 3, 4, 'a', 'b', 'c', 'd', 1, 1, 1, 0, 0,
                                  1, 1, 1, 0, 0, 1, 3,   2,   'x', 'y', 0, 9, 1, 5, 2,
                                  1, 1, 1, 0, 0, 0, 0,   1,   1,   1,   1, 1, 1, 0, 5,
                                  3, 0, 0, 1, 2, 0, 0,   1,   1,   1,   0, 0, 0};
    static const uint8_t clean[] = {1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 6, 2};
    static const uint8_t torn[] = {1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 5, 9, 4, 255};
    struct wal_memfs *m = wal_memfs_new();
    struct wal *w = NULL;
    bool marked = false;
    bool durable = false;
    emit(ctx, "two-segments", slice_of(two, sizeof(two)));
    emit(ctx, "clean", slice_of(clean, sizeof(clean)));
    emit(ctx, "torn", slice_of(torn, sizeof(torn)));
    if (try_open(m, &w, &marked) != SPAN_OK) {
        abort();
    }
    struct wal_batch b;
    wal_batch_init(&b);
    wal_batch_add_sticky(&b, 1, 1, slice_str("vote"));
    wal_batch_add_entry(&b, 1, 1, 1, 16, slice_str("entry"));
    if (wal_submit(w, &b, on_done, &durable, 1) != SPAN_OK) {
        abort();
    }
    for (int i = 0; i < 20 && !durable; i++) {
        (void)wal_run(w);
    }
    wal_batch_deinit(&b);
    wal_abandon(w);
    struct buf file = {0};
    char name[SEG_NAME_BYTES];
    buf_append_byte(&file, 0);
    seg_name(1, name);
    if (!wal_memfs_get(m, name, &file)) {
        abort();
    }
    file.size = file.size > 2561 ? 2561 : file.size; /* header, head, the unit; zeros are cheap */
    emit(ctx, "file", buf_slice(&file));
    buf_deinit(&file);
    wal_memfs_free(m);
}
