/* The receiver of snapshot chunks. Input: chunks, each a u16 length and its bytes; the first byte
 * of the input says whether they get a right magic, number and checksum (odd) or are taken as they
 * are. A stream that is taken to its end gives a file that opens. */
#include "base/alloc.h"
#include "base/codec.h"
#include "shard/engine/engine.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_MAGIC 0x31534c53U

static char dir[64];

static void remove_dir(void)
{
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 2};
    struct span_error err;
    span_status st = engine_remove_files(&opt, &err);
    (void)st;
    (void)rmdir(dir);
}

static void make_dir(void)
{
    if (dir[0] != '\0') {
        return;
    }
    (void)snprintf(dir, sizeof(dir), "%s/fuzz-snapshot-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(dir) == NULL) {
        abort();
    }
    (void)atexit(remove_dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    make_dir();
    return 0;
}

/* False: the stream is refused. */
static bool feed(struct engine_restore *r, struct slice body, bool seal, uint32_t number)
{
    struct buf chunk = {0};
    struct span_error err = {0};
    if (seal) {
        enc_u32(&chunk, CHUNK_MAGIC);
        enc_u32(&chunk, number);
    }
    buf_append_slice(&chunk, body);
    if (seal) {
        enc_u32(&chunk, crc32c(0, chunk.data, chunk.size));
    }
    span_status st = engine_restore_feed(r, buf_slice(&chunk), &err);
    INVARIANT(st == SPAN_OK || err.text[0] != '\0');
    buf_deinit(&chunk);
    return st == SPAN_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct engine_options opt = {.dir = dir, .range_id = 1, .generation = 2, .cache_kib = 256};
    struct span_error err = {0};
    struct engine_restore *r = NULL;
    struct engine_snapshot_info info;
    struct cursor c = cursor_of(slice_of(data, size));
    if (size < 3 || size > 65536) {
        return 0;
    }
    make_dir();
    bool seal = dec_u8(&c) % 2 == 1;
    INVARIANT(engine_remove_files(&opt, &err) == SPAN_OK);
    INVARIANT(engine_restore_begin(&opt, &r, &err) == SPAN_OK);
    bool good = true;
    for (uint32_t n = 0; good && cursor_left(&c) >= 2; n++) {
        size_t length = dec_u16(&c);
        length = length > cursor_left(&c) ? cursor_left(&c) : length;
        good = feed(r, dec_raw(&c, length), seal, n);
    }
    if (!good) {
        engine_restore_abort(r);
        return 0;
    }
    if (engine_restore_finish(r, &info, &err) == SPAN_OK) {
        struct engine *e = NULL;
        uint64_t digest = 0;
        /* What only a hostile peer can send, which has the cluster's key, may still be refused. */
        if (engine_open(&opt, &e, &err) == SPAN_OK) {
            span_status st = engine_digest(e, tt_ts_of(INT64_MAX), NULL, NULL, &digest);
            INVARIANT(st == SPAN_OK || span_status_kind(st) != SPAN_KIND_NONE);
            engine_close(e);
        } else {
            INVARIANT(err.text[0] != '\0');
        }
    } else {
        INVARIANT(err.text[0] != '\0');
    }
    return 0;
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    struct engine_options opt = {.range_id = 1, .generation = 2, .create = true};
    struct span_error err = {0};
    struct engine *e = NULL;
    struct engine_snapshot *s = NULL;
    struct engine_snapshot_info info;
    struct buf sealed = {0};
    struct buf raw = {0};
    bool done = false;
    make_dir();
    opt.dir = dir;
    INVARIANT(engine_open(&opt, &e, &err) == SPAN_OK);
    for (uint64_t i = 1; i <= 12; i++) {
        char key[16];
        (void)snprintf(key, sizeof(key), "\x01key%02u", (unsigned)(i % 6));
        INVARIANT(engine_put(e, slice_str(key), tt_ts_of(i * 10), slice_str("value")) == SPAN_OK);
        INVARIANT(engine_meta_put(e, slice_str(key), slice_str("meta")) == SPAN_OK);
        engine_set_applied(e, i);
    }
    INVARIANT(engine_flush_now(e, &err) == SPAN_OK);
    INVARIANT(engine_snapshot_open(&opt, &s, &info, &err) == SPAN_OK);
    buf_append_byte(&sealed, 1);
    buf_append_byte(&raw, 0);
    while (!done) {
        struct buf chunk = {0};
        INVARIANT(engine_snapshot_next(s, 200, &chunk, &done, &err) == SPAN_OK);
        enc_u16(&raw, (uint16_t)chunk.size);
        buf_append_slice(&raw, buf_slice(&chunk));
        enc_u16(&sealed, (uint16_t)(chunk.size - 12));
        buf_append(&sealed, chunk.data + 8, chunk.size - 12);
        buf_deinit(&chunk);
    }
    engine_snapshot_close(s);
    engine_close(e);
    emit(ctx, "sealed", buf_slice(&sealed));
    emit(ctx, "raw", buf_slice(&raw));
    buf_deinit(&sealed);
    buf_deinit(&raw);
}
