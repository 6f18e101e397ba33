/* Bytes: struct slice borrows, struct buf owns. A borrowed slice does not outlive the call or the
 * message it points into. A zeroed struct buf is a valid empty one. */
#ifndef SPAN_BASE_BUF_H
#define SPAN_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct slice {
    const uint8_t *data;
    size_t size;
};

struct buf {
    uint8_t *data;
    size_t size;
    size_t cap;
};

static inline struct slice slice_of(const void *p, size_t n)
{
    return (struct slice){(const uint8_t *)p, n};
}

static inline struct slice slice_str(const char *s)
{
    return (struct slice){(const uint8_t *)s, strlen(s)};
}

static inline struct slice buf_slice(const struct buf *b)
{
    return (struct slice){b->data, b->size};
}

/* memcmp order, a prefix before what extends it: <0, 0, >0. */
int slice_cmp(struct slice a, struct slice b);
bool slice_eq(struct slice a, struct slice b);
bool slice_has_prefix(struct slice s, struct slice prefix);

void buf_init(struct buf *b);
void buf_deinit(struct buf *b);               /* frees; leaves it empty and usable */
void buf_clear(struct buf *b);                /* size 0, keeps the memory */
void buf_reserve(struct buf *b, size_t more); /* room for `more` bytes past size */
uint8_t *buf_grow(struct buf *b, size_t n);   /* size += n; returns the new, unset, bytes */
void buf_append(struct buf *b, const void *p, size_t n);
void buf_append_slice(struct buf *b, struct slice s);
void buf_append_str(struct buf *b, const char *s);
void buf_append_byte(struct buf *b, uint8_t v);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_set(struct buf *b, struct slice s);     /* replaces the contents */
void buf_move(struct buf *to, struct buf *from); /* to (freed first) takes over from's memory */
/* Contents as a NUL-terminated string (the NUL is not counted in size). Valid until the next
 * change. */
const char *buf_cstr(struct buf *b);

#endif
