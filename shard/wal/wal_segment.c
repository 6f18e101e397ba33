/* Encoding and checking of the log's bytes; wal_segment.h describes the format in full. */
#include "shard/wal/wal_segment.h"

#include "base/codec.h"
#include "base/invariant.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define UNIT_MAGIC    0x31555753U /* "SWU1" */
#define SMALL_VERSION 1U

static const char SEG_MAGIC[8] = {'S', 'P', 'A', 'N', 'W', 'A', 'L', '\n'};
static const char IDENTITY_MAGIC[8] = {'S', 'P', 'A', 'N', 'W', 'I', 'D', '\n'};
static const char CLEAN_MAGIC[8] = {'S', 'P', 'A', 'N', 'W', 'E', 'N', 'D'};

uint32_t le32_get(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t le64_get(const uint8_t *p)
{
    return (uint64_t)le32_get(p) | (uint64_t)le32_get(p + 4) << 32;
}

void le32_put(uint8_t *p, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

void le64_put(uint8_t *p, uint64_t v)
{
    for (unsigned i = 0; i < 8; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

/* ---- Segment header ---- */

static uint32_t seg_header_crc(const uint8_t *sector)
{
    uint32_t crc = crc32c(0, sector, 12);
    return crc32c(crc, sector + 16, SEG_SECTOR_BYTES - 16);
}

void seg_header_encode(const struct seg_header *h, uint8_t *out)
{
    memset(out, 0, SEG_SECTOR_BYTES);
    memcpy(out, SEG_MAGIC, sizeof SEG_MAGIC);
    le32_put(out + 8, SEG_VERSION);
    le64_put(out + 16, h->id);
    le64_put(out + 24, h->store_id);
    le64_put(out + 32, h->bytes);
    le32_put(out + 12, seg_header_crc(out));
}

span_status seg_header_decode(const uint8_t *in, size_t size, const char *name, uint64_t id,
                              uint64_t store_id, struct seg_header *out, struct span_error *err)
{
    if (size < SEG_SECTOR_BYTES) {
        return span_fail(err, SPAN_CORRUPT, "%s: only %zu bytes, no segment header at offset 0",
                         name, size);
    }
    if (memcmp(in, SEG_MAGIC, sizeof SEG_MAGIC) != 0) {
        return span_fail(err, SPAN_CORRUPT,
                         "%s: not a log segment (wrong magic number at offset 0)", name);
    }
    uint32_t version = le32_get(in + 8);
    bool crc_ok = le32_get(in + 12) == seg_header_crc(in);
    if (version != SEG_VERSION && crc_ok) {
        return span_fail(err, SPAN_UNSUPPORTED,
                         "%s: format version %" PRIu32 ", this program reads version %u", name,
                         version, SEG_VERSION);
    }
    if (!crc_ok) {
        return span_fail(err, SPAN_CORRUPT, "%s: segment header at offset 0 has a wrong checksum",
                         name);
    }
    out->id = le64_get(in + 16);
    out->store_id = le64_get(in + 24);
    out->bytes = le64_get(in + 32);
    if (out->store_id != store_id) {
        return span_fail(err, SPAN_INVALID,
                         "%s belongs to store %016" PRIx64 ", this is store %016" PRIx64, name,
                         out->store_id, store_id);
    }
    if (out->id != id) {
        return span_fail(err, SPAN_CORRUPT, "%s holds segment %016" PRIx64 " (header at offset 0)",
                         name, out->id);
    }
    if (out->bytes < SEG_BYTES_MIN || out->bytes > SEG_BYTES_MAX ||
        out->bytes % SEG_SECTOR_BYTES != 0) {
        return span_fail(err, SPAN_CORRUPT, "%s: impossible segment size %" PRIu64 " at offset 32",
                         name, out->bytes);
    }
    return SPAN_OK;
}

void seg_name(uint64_t id, char *out)
{
    snprintf(out, SEG_NAME_BYTES, "wal-%016" PRIx64 ".seg", id);
}

bool seg_name_parse(const char *name, uint64_t *id)
{
    if (strlen(name) != 24 || strncmp(name, "wal-", 4) != 0 || strcmp(name + 20, ".seg") != 0) {
        return false;
    }
    uint64_t v = 0;
    for (const char *p = name + 4; p < name + 20; p++) {
        unsigned digit;
        if (*p >= '0' && *p <= '9') {
            digit = (unsigned)(*p - '0');
        } else if (*p >= 'a' && *p <= 'f') {
            digit = (unsigned)(*p - 'a') + 10;
        } else {
            return false;
        }
        v = v << 4 | digit;
    }
    *id = v;
    return v != 0;
}

/* ---- Units ---- */

uint64_t unit_bytes_for(uint64_t record_bytes)
{
    uint64_t n = UNIT_HEADER_BYTES + record_bytes;
    return (n + SEG_SECTOR_BYTES - 1) / SEG_SECTOR_BYTES * SEG_SECTOR_BYTES;
}

size_t unit_begin(struct buf *out)
{
    size_t at = out->size;
    memset(buf_grow(out, UNIT_HEADER_BYTES), 0, UNIT_HEADER_BYTES);
    return at;
}

static uint32_t unit_crc(const uint8_t *unit, size_t bytes, uint64_t segment_id, uint64_t store_id)
{
    uint8_t seed[16];
    le64_put(seed, segment_id);
    le64_put(seed + 8, store_id);
    return crc32c(crc32c(0, seed, sizeof seed), unit + 8, bytes - 8);
}

void unit_seal(struct buf *out, size_t at, uint64_t segment_id, uint64_t store_id, struct unit *u)
{
    REQUIRE(out->size >= at + UNIT_HEADER_BYTES);
    uint64_t record_bytes = out->size - at - UNIT_HEADER_BYTES;
    uint64_t bytes = unit_bytes_for(record_bytes);
    INVARIANT(bytes <= SEG_BYTES_MAX);
    size_t pad = (size_t)bytes - (out->size - at);
    if (pad != 0) {
        memset(buf_grow(out, pad), 0, pad);
    }
    uint8_t *p = out->data + at;
    u->bytes = (uint32_t)bytes;
    le32_put(p, UNIT_MAGIC);
    le32_put(p + 8, u->bytes);
    le32_put(p + 12, (uint32_t)record_bytes);
    le64_put(p + 16, u->seq);
    le64_put(p + 24, u->durable);
    le64_put(p + 32, u->oldest);
    le64_put(p + 40, u->newest);
    le64_put(p + 48, u->prev);
    le32_put(p + 56, u->flags);
    le32_put(p + 60, u->record_count);
    le32_put(p + 4, unit_crc(p, u->bytes, segment_id, store_id));
}

bool unit_check(const uint8_t *seg, uint64_t size, uint64_t offset, uint64_t segment_id,
                uint64_t store_id, struct unit *out)
{
    if (offset % SEG_SECTOR_BYTES != 0 || offset < SEG_SECTOR_BYTES || offset > size ||
        size - offset < SEG_SECTOR_BYTES) {
        return false;
    }
    const uint8_t *p = seg + offset;
    uint32_t bytes = le32_get(p + 8);
    uint32_t record_bytes = le32_get(p + 12);
    if (le32_get(p) != UNIT_MAGIC || bytes > size - offset ||
        bytes != unit_bytes_for(record_bytes)) {
        return false;
    }
    if (le32_get(p + 4) != unit_crc(p, bytes, segment_id, store_id)) {
        return false;
    }
    out->seq = le64_get(p + 16);
    out->durable = le64_get(p + 24);
    out->oldest = le64_get(p + 32);
    out->newest = le64_get(p + 40);
    out->prev = le64_get(p + 48);
    out->flags = le32_get(p + 56);
    out->record_count = le32_get(p + 60);
    out->bytes = bytes;
    out->records = slice_of(p + UNIT_HEADER_BYTES, record_bytes);
    return true;
}

/* ---- Records ---- */

void record_encode(struct buf *out, const struct wal_record *r)
{
    bool entry = r->kind == WAL_ENTRY;
    uint8_t *p = buf_grow(out, entry ? RECORD_ENTRY_BYTES : RECORD_HEADER_BYTES);
    p[0] = (uint8_t)r->kind;
    p[1] = r->type;
    p[2] = 0;
    p[3] = 0;
    le32_put(p + 4, (uint32_t)r->payload.size);
    le64_put(p + 8, r->range);
    if (entry) {
        le64_put(p + 16, r->index);
        le64_put(p + 24, r->term);
    }
    buf_append_slice(out, r->payload);
}

struct record_cursor record_cursor_of(struct slice records)
{
    return (struct record_cursor){records.data, records.data, records.data + records.size};
}

int record_next(struct record_cursor *c, struct wal_record *out)
{
    size_t left = (size_t)(c->end - c->p);
    if (left == 0) {
        return 0;
    }
    if (left < RECORD_HEADER_BYTES || c->p[0] < WAL_ENTRY || c->p[0] > WAL_TOMBSTONE ||
        c->p[2] != 0 || c->p[3] != 0) {
        return -1;
    }
    const uint8_t *p = c->p;
    *out = (struct wal_record){.kind = (enum wal_record_kind)p[0], .type = p[1]};
    size_t header = out->kind == WAL_ENTRY ? RECORD_ENTRY_BYTES : RECORD_HEADER_BYTES;
    size_t payload = le32_get(p + 4);
    if (left < header || left - header < payload) {
        return -1;
    }
    out->range = le64_get(p + 8);
    if (out->kind == WAL_ENTRY) {
        out->index = le64_get(p + 16);
        out->term = le64_get(p + 24);
        if (out->index == 0) {
            return -1;
        }
    }
    out->payload = slice_of(p + header, payload);
    c->p += header + payload;
    return 1;
}

/* ---- The small files ---- */

static void small_begin(struct buf *out, const char *magic, uint64_t store_id)
{
    buf_clear(out);
    buf_append(out, magic, 8);
    enc_u32(out, SMALL_VERSION);
    enc_u64(out, store_id);
}

static void small_end(struct buf *out)
{
    enc_u32(out, crc32c(0, out->data, out->size));
}

/* Checks magic, version, checksum and store; leaves *c after the store id. */
static span_status small_open(struct slice in, const char *magic, const char *name,
                              uint64_t store_id, size_t size, struct cursor *c,
                              struct span_error *err)
{
    if (in.size != size || memcmp(in.data, magic, 8) != 0) {
        return span_fail(err, SPAN_CORRUPT,
                         "%s: %zu bytes that are not what belongs there (offset 0)", name, in.size);
    }
    *c = cursor_of(slice_of(in.data + 8, size - 12));
    uint32_t version = dec_u32(c);
    uint64_t store = dec_u64(c);
    if (le32_get(in.data + size - 4) != crc32c(0, in.data, size - 4)) {
        return span_fail(err, SPAN_CORRUPT, "%s: wrong checksum at offset %zu", name, size - 4);
    }
    if (version != SMALL_VERSION) {
        return span_fail(err, SPAN_UNSUPPORTED,
                         "%s: format version %" PRIu32 ", this program reads version %u", name,
                         version, SMALL_VERSION);
    }
    if (store != store_id) {
        return span_fail(err, SPAN_INVALID,
                         "%s belongs to store %016" PRIx64 ", this is store %016" PRIx64, name,
                         store, store_id);
    }
    return SPAN_OK;
}

void identity_encode(uint64_t store_id, struct buf *out)
{
    small_begin(out, IDENTITY_MAGIC, store_id);
    small_end(out);
}

span_status identity_decode(struct slice in, const char *name, uint64_t store_id,
                            struct span_error *err)
{
    struct cursor c;
    return small_open(in, IDENTITY_MAGIC, name, store_id, 24, &c, err);
}

void clean_encode(const struct seg_clean *clean, uint64_t store_id, struct buf *out)
{
    small_begin(out, CLEAN_MAGIC, store_id);
    enc_u64(out, clean->segment_id);
    enc_u64(out, clean->offset);
    enc_u64(out, clean->seq);
    small_end(out);
}

span_status clean_decode(struct slice in, const char *name, uint64_t store_id,
                         struct seg_clean *out, struct span_error *err)
{
    struct cursor c;
    span_status st = small_open(in, CLEAN_MAGIC, name, store_id, 48, &c, err);
    if (st == SPAN_OK) {
        out->segment_id = dec_u64(&c);
        out->offset = dec_u64(&c);
        out->seq = dec_u64(&c);
        INVARIANT(cursor_done(&c));
    }
    return st;
}
