/* Encoding of integers and byte strings, little-endian, and the bounded cursor that decodes them.
 * The cursor's error is sticky: after a short or malformed read every further read gives 0 or an
 * empty slice and cursor_ok() is false, so a decoder reads all fields and checks once. Never trust
 * a count from a cursor without comparing it with cursor_left(). */
#ifndef SPAN_BASE_CODEC_H
#define SPAN_BASE_CODEC_H

#include "base/buf.h"

void enc_u8(struct buf *b, uint8_t v);
void enc_u16(struct buf *b, uint16_t v);
void enc_u32(struct buf *b, uint32_t v);
void enc_u64(struct buf *b, uint64_t v);
void enc_var(struct buf *b, uint64_t v);       /* LEB128, at most 10 bytes */
void enc_bytes(struct buf *b, struct slice s); /* varint length, then the bytes */
void enc_bool(struct buf *b, bool v);
/* Overwrites four bytes at `at`, for lengths and checksums known only later. */
void enc_u32_at(struct buf *b, size_t at, uint32_t v);

struct cursor {
    const uint8_t *p;
    const uint8_t *end;
    bool bad;
};

struct cursor cursor_of(struct slice s);
uint8_t dec_u8(struct cursor *c);
uint16_t dec_u16(struct cursor *c);
uint32_t dec_u32(struct cursor *c);
uint64_t dec_u64(struct cursor *c);
uint64_t dec_var(struct cursor *c);
bool dec_bool(struct cursor *c);                  /* anything but 0 and 1 is malformed */
struct slice dec_bytes(struct cursor *c);         /* borrowed from the input */
struct slice dec_raw(struct cursor *c, size_t n); /* n bytes, borrowed */
/* A count that is followed by at least count * min_size bytes; else the cursor goes bad. */
size_t dec_count(struct cursor *c, size_t min_size);
size_t cursor_left(const struct cursor *c);
bool cursor_ok(const struct cursor *c);   /* nothing malformed so far */
bool cursor_done(const struct cursor *c); /* ok and all consumed */

/* CRC32C (Castagnoli), with SSE4.2 where the processor has it. crc32c(0, ...) starts; the result
 * can be passed on to cover several pieces. */
uint32_t crc32c(uint32_t crc, const void *p, size_t n);
/* The same by tables only; crc32c() uses it where there is no SSE4.2. For tests. */
uint32_t crc32c_portable(uint32_t crc, const void *p, size_t n);

#endif
