/* The log's format on disk: pure encoding, checking and walking of bytes, no I/O. Used by the
 * writer (wal.c), by recovery (wal_recover.c) and by tests. All integers are little-endian.
 *
 * FILES of a log directory
 *   wal-<id, 16 hex digits>.seg  segments. The one with the greatest id that has a valid head unit
 * is the *tip*: it is the one being written. Greater ids are *spares*, prepared ahead of time.
 * Smaller ids are the chain, or left over from before `oldest`. identity             magic,
 * version, store id: tells a new log from one that lost its segments clean                present
 * after a clean stop: where the log ends; removed by the next open reserve              one segment
 * of zeros, becomes a spare when the disk is full prepare.tmp          a spare in the making, any
 * contents lock                 flock: one owner
 *
 * SEGMENT: a header of one sector (512 bytes), then append units back to back, each beginning on a
 * sector so that a torn write of one unit never damages another. Past the last unit lie zeros, or,
 * in a recycled file, units of an earlier life, which do not check out because every checksum
 * covers the segment id (and the store id).
 *
 *   0  u8[8] magic "SPANWAL\n"     16 u64 segment id        32 u64 segment bytes (header included)
 *   8  u32   version               24 u64 store id          40 zeros up to 512
 *   12 u32   CRC32C of all other bytes of the sector
 *
 * UNIT (one writer round; written by one pwrite and made durable by one fdatasync, or together with
 * the head unit before it): a header of 64 bytes, the records, zeros up to a whole sector.
 *
 *   0  u32 magic                   16 u64 seq: 1, 2, 3 ... over the whole life of the log
 *   4  u32 CRC32C                  24 u64 durable: all units up to this seq were durable when
 * written 8  u32 unit bytes, whole       32 u64 oldest: segments below this id are not needed any
 * more 12 u32 record bytes            40 u64 newest: segment files up to this id exist, durably 56
 * u32 flags (UNIT_HEAD)       48 u64 prev: in a head unit the segment that comes before; else 0 60
 * u32 number of records
 *
 * The CRC covers segment id and store id (as two u64), then everything of the unit from byte 8 to
 * its end, padding included. A unit is valid if it checks out; there is nothing else to trust.
 *
 * HEAD: the first unit of a segment, and only it, has UNIT_HEAD. It holds the sticky state of all
 * ranges as of just before it (rule H3), links to the previous segment by `prev` (ids may have
 * holes: a segment whose first sync failed is never linked), and takes the next seq; so it
 * supersedes any unit of the previous segment with that seq or a later one: those were written but
 * their sync failed (rule H4).
 *
 * DURABLE: the writer syncs each unit before it writes the next, so a valid unit proves that all
 * before it were durable; `durable` says so in the format's own terms. An empty unit follows when
 * the log goes idle, so that the last records are covered too (rule H1, H2).
 *
 * RECORD: 16 bytes of header (32 for an entry), then the payload; no padding.
 *
 *   0 u8 kind (wal_record_kind)    4 u32 payload bytes      16 u64 index  (entries only)
 *   1 u8 type or sticky kind       8 u64 range              24 u64 term   (entries only)
 *   2 u16 zero */
#ifndef SPAN_SHARD_WAL_WAL_SEGMENT_H
#define SPAN_SHARD_WAL_WAL_SEGMENT_H

#include "base/buf.h"
#include "shard/wal/wal.h"

#define SEG_SECTOR_BYTES 512U
#define SEG_VERSION      1U
#define SEG_BYTES_MIN    (8ULL * 1024)
#define SEG_BYTES_MAX    (1024ULL * 1024 * 1024)
#define SEG_NAME_BYTES   32

#define UNIT_HEADER_BYTES 64U
#define UNIT_HEAD         1U

#define RECORD_HEADER_BYTES 16U
#define RECORD_ENTRY_BYTES  32U

struct seg_header {
    uint64_t id;
    uint64_t store_id;
    uint64_t bytes;
};

/* Writes SEG_SECTOR_BYTES. */
void seg_header_encode(const struct seg_header *h, uint8_t *out);
/* in: the first sector of a file, `size` bytes of it there. `name` is for messages. CORRUPT,
 * INVALID (another store or another segment's file), UNSUPPORTED (version). */
SPAN_CHECKED span_status seg_header_decode(const uint8_t *in, size_t size, const char *name,
                                           uint64_t id, uint64_t store_id, struct seg_header *out,
                                           struct span_error *err);

/* File name of a segment, at least SEG_NAME_BYTES of room; and back (false: not a segment's name).
 */
void seg_name(uint64_t id, char *out);
bool seg_name_parse(const char *name, uint64_t *id);

struct unit {
    uint64_t seq;
    uint64_t durable;
    uint64_t oldest;
    uint64_t newest;
    uint64_t prev;
    uint32_t flags;
    uint32_t record_count;
    uint32_t bytes;       /* whole sectors; set by unit_seal and unit_check */
    struct slice records; /* set by unit_check, borrowed from the input */
};

/* Whole bytes of a unit with so many bytes of records. */
uint64_t unit_bytes_for(uint64_t record_bytes);

/* A unit is built in a buf: unit_begin leaves room for the header at the end of out and returns its
 * place, the caller appends records, unit_seal pads, fills the header in and checks it all. */
size_t unit_begin(struct buf *out);
void unit_seal(struct buf *out, size_t at, uint64_t segment_id, uint64_t store_id, struct unit *u);

/* Is there a valid unit at `offset` of a segment whose first `size` bytes are `seg`? */
bool unit_check(const uint8_t *seg, uint64_t size, uint64_t offset, uint64_t segment_id,
                uint64_t store_id, struct unit *out);

/* Appends the header of a record; its payload of that many bytes must follow. */
void record_encode(struct buf *out, const struct wal_record *r);

struct record_cursor {
    const uint8_t *start;
    const uint8_t *p;
    const uint8_t *end;
};

struct record_cursor record_cursor_of(struct slice records);
/* 1: a record; 0: the end; -1: malformed (a bug of the writer: the checksum was right). */
int record_next(struct record_cursor *c, struct wal_record *out);

/* Little-endian loads and stores, for fixed layouts. */
uint32_t le32_get(const uint8_t *p);
uint64_t le64_get(const uint8_t *p);
void le32_put(uint8_t *p, uint32_t v);
void le64_put(uint8_t *p, uint64_t v);

/* The two small files: magic, version, fields, CRC32C. */
struct seg_clean {
    uint64_t segment_id; /* 0: nothing was ever written */
    uint64_t offset;     /* first byte after the last unit */
    uint64_t seq;        /* of the last unit */
};

void identity_encode(uint64_t store_id, struct buf *out);
SPAN_CHECKED span_status identity_decode(struct slice in, const char *name, uint64_t store_id,
                                         struct span_error *err);
void clean_encode(const struct seg_clean *c, uint64_t store_id, struct buf *out);
SPAN_CHECKED span_status clean_decode(struct slice in, const char *name, uint64_t store_id,
                                      struct seg_clean *out, struct span_error *err);

#endif
