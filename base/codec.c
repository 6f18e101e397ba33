/* Little-endian integers, LEB128 counts and length-prefixed bytes, and the bounded cursor.
 *
 * A varint has exactly one encoding: an over-long one (a last byte of zero after a continuation, or
 * bits past the 64th) is malformed. So equal values are equal bytes, and a checksum or a comparison
 * of encodings means what it says. */
#include "base/codec.h"

#include "base/invariant.h"

#define VAR_BYTES_MAX 10

static void enc_le(struct buf *b, uint64_t v, size_t size)
{
    uint8_t *at = buf_grow(b, size);

    for (size_t i = 0; i < size; i++) {
        at[i] = (uint8_t)(v >> (8 * i));
    }
}

void enc_u8(struct buf *b, uint8_t v)
{
    buf_append_byte(b, v);
}

void enc_u16(struct buf *b, uint16_t v)
{
    enc_le(b, v, 2);
}

void enc_u32(struct buf *b, uint32_t v)
{
    enc_le(b, v, 4);
}

void enc_u64(struct buf *b, uint64_t v)
{
    enc_le(b, v, 8);
}

void enc_var(struct buf *b, uint64_t v)
{
    uint8_t bytes[VAR_BYTES_MAX];
    size_t n = 0;

    while (v >= 0x80) {
        bytes[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    bytes[n++] = (uint8_t)v;
    buf_append(b, bytes, n);
}

void enc_bytes(struct buf *b, struct slice s)
{
    enc_var(b, s.size);
    buf_append_slice(b, s);
}

void enc_bool(struct buf *b, bool v)
{
    buf_append_byte(b, v ? 1 : 0);
}

void enc_u32_at(struct buf *b, size_t at, uint32_t v)
{
    REQUIRE(b->size >= 4);
    REQUIRE(at <= b->size - 4);
    for (size_t i = 0; i < 4; i++) {
        b->data[at + i] = (uint8_t)(v >> (8 * i));
    }
}

struct cursor cursor_of(struct slice s)
{
    static const uint8_t nothing[1];
    /* An empty slice may have no memory; the cursor always points somewhere. */
    const uint8_t *p = s.size ? s.data : nothing;

    return (struct cursor){p, p + s.size, false};
}

/* n bytes of the input, or NULL (and the cursor is bad for good). */
static const uint8_t *cursor_take(struct cursor *c, size_t n)
{
    const uint8_t *at = c->p;

    if (c->bad || n > (size_t)(c->end - c->p)) {
        c->bad = true;
        return NULL;
    }
    c->p += n;
    return at;
}

static uint64_t dec_le(struct cursor *c, size_t size)
{
    const uint8_t *at = cursor_take(c, size);
    uint64_t v = 0;

    if (!at) {
        return 0;
    }
    for (size_t i = 0; i < size; i++) {
        v |= (uint64_t)at[i] << (8 * i);
    }
    return v;
}

uint8_t dec_u8(struct cursor *c)
{
    return (uint8_t)dec_le(c, 1);
}

uint16_t dec_u16(struct cursor *c)
{
    return (uint16_t)dec_le(c, 2);
}

uint32_t dec_u32(struct cursor *c)
{
    return (uint32_t)dec_le(c, 4);
}

uint64_t dec_u64(struct cursor *c)
{
    return dec_le(c, 8);
}

uint64_t dec_var(struct cursor *c)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < VAR_BYTES_MAX; i++) {
        const uint8_t *at = cursor_take(c, 1);

        if (!at) {
            return 0;
        }
        if (i == VAR_BYTES_MAX - 1 && *at > 1) {
            break; /* bits past the 64th, or no end */
        }
        v |= (uint64_t)(*at & 0x7f) << (7 * i);
        if (*at < 0x80) {
            if (*at == 0 && i > 0) {
                break; /* over-long */
            }
            return v;
        }
    }
    c->bad = true;
    return 0;
}

bool dec_bool(struct cursor *c)
{
    const uint8_t v = dec_u8(c);

    if (v > 1) {
        c->bad = true;
        return false;
    }
    return v == 1;
}

struct slice dec_raw(struct cursor *c, size_t n)
{
    const uint8_t *at = cursor_take(c, n);

    return at ? (struct slice){at, n} : (struct slice){NULL, 0};
}

struct slice dec_bytes(struct cursor *c)
{
    const uint64_t n = dec_var(c);

    return dec_raw(c, (size_t)n);
}

size_t dec_count(struct cursor *c, size_t min_size)
{
    const uint64_t n = dec_var(c);

    if (n > cursor_left(c) / (min_size ? min_size : 1)) {
        c->bad = true;
        return 0;
    }
    return (size_t)n;
}

size_t cursor_left(const struct cursor *c)
{
    return c->bad ? 0 : (size_t)(c->end - c->p);
}

bool cursor_ok(const struct cursor *c)
{
    return !c->bad;
}

bool cursor_done(const struct cursor *c)
{
    return !c->bad && c->p == c->end;
}
