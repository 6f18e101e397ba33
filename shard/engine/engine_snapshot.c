/* Snapshots: a replica's flushed content as a stream of chunks, and a file of the next generation
 * out of them.
 *
 * A chunk, little-endian (base/codec.h):
 *
 *   u32 magic "SLS1"   u32 number (0, 1, ...)   records...   u32 CRC32C of all before it
 *
 * A record is a byte and its fields; byte strings have a varint length before them:
 *
 *   1 INFO     applied, horizon, max_ts (u64 each), start, end     first record of chunk 0
 *   2 META     key, value
 *   3 CURRENT  key, ts (u64), value
 *   4 HISTORY  key, ts (u64), end_ts (u64), value
 *   5 END      number of META, CURRENT and HISTORY records (u64)    last record of the last chunk
 *
 * Records of a kind come in key order, so that the receiver's inserts append. Rows outside the
 * bounds (left over from a split) are not sent. */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/planted.h"
#include "shard/engine/engine_internal.h"

#define CHUNK_MAGIC 0x31534c53U

enum record { REC_INFO = 1, REC_META, REC_CURRENT, REC_HISTORY, REC_END };

/* ---- out ---------------------------------------------------------------------------------------
 */

struct engine_snapshot {
    struct file_name name;
    struct file_db conn;
    struct file_state state;
    sqlite3_stmt *stmt; /* of the present table; NULL: begin the next */
    enum record table;  /* what is being sent; REC_INFO before the first */
    bool has_row;       /* stmt stands on a row that is not sent yet */
    uint32_t number;
    uint64_t records;
    bool ended;
};

span_status engine_snapshot_open(const struct engine_options *opt, struct engine_snapshot **out,
                                 struct engine_snapshot_info *info, struct span_error *err)
{
    *out = NULL;
    struct engine_snapshot *s = SPAN_NEW(struct engine_snapshot);
    file_name_init(&s->name, opt);
    enum engine_file_state there = ENGINE_FILE_ABSENT;
    span_status st = FAILPOINT(SNAPSHOT_OPEN) ? file_injected(&s->name, err)
                                              : engine_file_state(opt, &there, err);
    if (st == SPAN_OK && there != ENGINE_FILE_COMPLETE) {
        st = span_fail(err, SPAN_NOT_FOUND, "%s: no such file, or not finished", s->name.path);
    }
    if (st == SPAN_OK) {
        st = file_db_open(&s->conn, &s->name, false, err);
    }
    if (st == SPAN_OK) {
        st = file_db_exec(&s->conn, "BEGIN", err);
    }
    if (st == SPAN_OK) {
        st = file_db_load_state(&s->conn, &s->state, err); /* the first read pins */
    }
    if (st != SPAN_OK) {
        engine_snapshot_close(s);
        return st;
    }
    s->table = REC_INFO;
    *info = (struct engine_snapshot_info){.applied = s->state.applied,
                                          .horizon = tt_ts_of(s->state.horizon),
                                          .max_ts = tt_ts_of(s->state.max_ts)};
    *out = s;
    return SPAN_OK;
}

void engine_snapshot_close(struct engine_snapshot *s)
{
    if (s == NULL) {
        return;
    }
    file_db_close(&s->conn); /* ends the transaction with it */
    file_state_deinit(&s->state);
    file_name_deinit(&s->name);
    span_free(s);
}

static span_status next_table(struct engine_snapshot *s, struct span_error *err)
{
    static const char *const sql[] = {
        [REC_META] = "SELECT k, 0, v, crc FROM meta ORDER BY k",
        [REC_CURRENT] = "SELECT k, ts, v, crc FROM current ORDER BY k",
        [REC_HISTORY] = "SELECT k, ts, v, crc, end_ts FROM history ORDER BY k, ts DESC",
    };
    (void)sqlite3_finalize(s->stmt);
    s->stmt = NULL;
    s->table = s->table + 1;
    if (s->table == REC_END) {
        return SPAN_OK;
    }
    return file_db_prepare(&s->conn, sql[s->table], &s->stmt, err);
}

/* Stands on the next row to send, or at REC_END. */
static span_status next_row(struct engine_snapshot *s, struct span_error *err)
{
    while (s->table != REC_END) {
        if (s->stmt == NULL) {
            span_status st = next_table(s, err);
            if (st != SPAN_OK) {
                return st;
            }
            continue;
        }
        int rc = sqlite3_step(s->stmt);
        if (rc == SQLITE_DONE) {
            (void)sqlite3_finalize(s->stmt);
            s->stmt = NULL;
            continue;
        }
        if (rc != SQLITE_ROW) {
            return file_db_fail(&s->conn, rc, err, "snapshot");
        }
        struct slice key = stmt_slice(s->stmt, 0);
        if (stmt_u64(s->stmt, 3) != row_crc(key, stmt_u64(s->stmt, 1), stmt_slice(s->stmt, 2)) &&
            !PLANTED(DAMAGE_SENT_ON)) {
            return span_fail(err, SPAN_CORRUPT, "%s: checksum of a row does not match",
                             s->name.path);
        }
        if (s->table == REC_META || file_state_has_key(&s->state, key)) {
            s->has_row = true;
            return SPAN_OK;
        }
    }
    return SPAN_OK;
}

static void put_row(struct engine_snapshot *s, struct buf *chunk)
{
    enc_u8(chunk, (uint8_t)s->table);
    enc_bytes(chunk, stmt_slice(s->stmt, 0));
    if (s->table != REC_META) {
        enc_u64(chunk, stmt_u64(s->stmt, 1));
    }
    if (s->table == REC_HISTORY) {
        enc_u64(chunk, stmt_u64(s->stmt, 4));
    }
    enc_bytes(chunk, stmt_slice(s->stmt, 2));
    s->records++;
    s->has_row = false;
}

static void put_info(const struct engine_snapshot *s, struct buf *chunk)
{
    enc_u8(chunk, REC_INFO);
    enc_u64(chunk, s->state.applied);
    enc_u64(chunk, s->state.horizon);
    enc_u64(chunk, s->state.max_ts);
    enc_bytes(chunk, buf_slice(&s->state.start));
    enc_bytes(chunk, buf_slice(&s->state.end));
}

span_status engine_snapshot_next(struct engine_snapshot *s, size_t max_bytes, struct buf *chunk,
                                 bool *done, struct span_error *err)
{
    REQUIRE(!s->ended);
    if (FAILPOINT(SNAPSHOT_READ)) {
        return file_injected(&s->name, err);
    }
    buf_clear(chunk);
    enc_u32(chunk, CHUNK_MAGIC);
    enc_u32(chunk, s->number);
    if (s->number == 0) {
        put_info(s, chunk);
    }
    do {
        if (s->has_row) {
            put_row(s, chunk);
        }
        span_status st = next_row(s, err);
        if (st != SPAN_OK) {
            return st;
        }
    } while (s->has_row && chunk->size < max_bytes);
    if (!s->has_row) {
        enc_u8(chunk, REC_END);
        enc_u64(chunk, s->records);
        s->ended = true;
    }
    enc_u32(chunk, crc32c(0, chunk->data, chunk->size));
    s->number++;
    *done = s->ended;
    return SPAN_OK;
}

/* ---- in ----------------------------------------------------------------------------------------
 */

struct engine_restore {
    struct builder builder;
    struct file_state state;
    uint32_t number;
    uint64_t records;
    bool has_info;
    bool ended;
};

span_status engine_restore_begin(const struct engine_options *opt, struct engine_restore **out,
                                 struct span_error *err)
{
    *out = NULL;
    struct engine_restore *r = SPAN_NEW(struct engine_restore);
    span_status st = FAILPOINT(SNAPSHOT_BEGIN)
                         ? span_fail(err, SPAN_IO, "injected at a failpoint: Input/output error")
                         : builder_begin(&r->builder, opt, err);
    if (st != SPAN_OK) {
        span_free(r);
        return st;
    }
    *out = r;
    return SPAN_OK;
}

static void restore_free(struct engine_restore *r)
{
    file_state_deinit(&r->state);
    span_free(r);
}

void engine_restore_abort(struct engine_restore *r)
{
    if (r == NULL) {
        return;
    }
    builder_abort(&r->builder);
    restore_free(r);
}

static span_status bad_chunk(const struct engine_restore *r, const char *what,
                             struct span_error *err)
{
    return span_fail(err, SPAN_CORRUPT, "%s: snapshot chunk %u: %s", r->builder.name.path,
                     r->number, what);
}

static bool is_key(struct slice key)
{
    return key.size != 0 && key.size <= ENGINE_KEY_BYTES_MAX;
}

static span_status feed_info(struct engine_restore *r, struct cursor *c, struct span_error *err)
{
    r->state.applied = dec_u64(c);
    r->state.horizon = dec_u64(c);
    r->state.max_ts = dec_u64(c);
    buf_set(&r->state.start, dec_bytes(c));
    buf_set(&r->state.end, dec_bytes(c));
    if (!cursor_ok(c) || r->has_info || r->state.horizon > INT64_MAX ||
        r->state.max_ts > INT64_MAX) {
        return bad_chunk(r, "malformed description", err);
    }
    r->has_info = true;
    return SPAN_OK;
}

static span_status feed_row(struct engine_restore *r, enum record kind, struct cursor *c,
                            struct span_error *err)
{
    struct writer *w = &r->builder.writer;
    struct slice key = dec_bytes(c);
    uint64_t ts = kind == REC_META ? 0 : dec_u64(c);
    uint64_t end_ts = kind == REC_HISTORY ? dec_u64(c) : 0;
    struct slice value = dec_bytes(c);
    if (!cursor_ok(c) || !is_key(key) || value.size > ENGINE_VALUE_BYTES_MAX) {
        return bad_chunk(r, "malformed row", err);
    }
    r->records++;
    if (kind == REC_META) {
        return writer_meta(w, key, value, err);
    }
    if (ts == 0 || ts > r->state.max_ts || end_ts > r->state.max_ts ||
        (kind == REC_HISTORY && end_ts <= ts)) {
        return bad_chunk(r, "row with an impossible timestamp", err);
    }
    return kind == REC_CURRENT ? writer_current(w, key, ts, value, err)
                               : writer_history(w, key, ts, end_ts, value, err);
}

static span_status feed_record(struct engine_restore *r, struct cursor *c, struct span_error *err)
{
    uint8_t kind = dec_u8(c);
    if (r->ended || r->has_info == (kind == REC_INFO)) {
        return bad_chunk(r, "record out of place", err);
    }
    switch (kind) {
    case REC_INFO:
        return feed_info(r, c, err);
    case REC_META:
    case REC_CURRENT:
    case REC_HISTORY:
        return feed_row(r, (enum record)kind, c, err);
    case REC_END:
        r->ended = true;
        if (dec_u64(c) != r->records || !cursor_done(c)) {
            return bad_chunk(r, "wrong number of records", err);
        }
        return SPAN_OK;
    default:
        return bad_chunk(r, "unknown record", err);
    }
}

span_status engine_restore_feed(struct engine_restore *r, struct slice chunk,
                                struct span_error *err)
{
    if (FAILPOINT(SNAPSHOT_FEED)) {
        return file_injected(&r->builder.name, err);
    }
    if (chunk.size < 12) {
        return bad_chunk(r, "too short", err);
    }
    struct cursor tail = cursor_of(slice_of(chunk.data + chunk.size - 4, 4));
    if (crc32c(0, chunk.data, chunk.size - 4) != dec_u32(&tail)) {
        return bad_chunk(r, "checksum does not match", err);
    }
    struct cursor c = cursor_of(slice_of(chunk.data, chunk.size - 4));
    if (dec_u32(&c) != CHUNK_MAGIC) {
        return bad_chunk(r, "not a snapshot chunk", err);
    }
    uint32_t number = dec_u32(&c);
    if (number != r->number || r->ended) {
        return bad_chunk(r, "out of order", err);
    }
    while (cursor_left(&c) != 0) {
        span_status st = feed_record(r, &c, err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    r->number++;
    FAILPOINT_MARK(SNAPSHOT_FED);
    return SPAN_OK;
}

span_status engine_restore_finish(struct engine_restore *r, struct engine_snapshot_info *info,
                                  struct span_error *err)
{
    if (!r->ended) {
        span_status st = bad_chunk(r, "the last chunk is missing", err);
        engine_restore_abort(r);
        return st;
    }
    if (FAILPOINT(SNAPSHOT_FINISH)) {
        span_status st = file_injected(&r->builder.name, err);
        engine_restore_abort(r);
        return st;
    }
    *info = (struct engine_snapshot_info){.applied = r->state.applied,
                                          .horizon = tt_ts_of(r->state.horizon),
                                          .max_ts = tt_ts_of(r->state.max_ts)};
    span_status st = builder_finish(&r->builder, &r->state, err);
    restore_free(r);
    FAILPOINT_MARK(SNAPSHOT_FINISHED);
    return st;
}
