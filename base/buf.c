/* Growable bytes. The memory doubles, so appending is O(1) amortized; sizes from outside are
 * checked against limits.h before they come here, so a size that overflows is our own bug. */
#include "base/buf.h"

#include "base/alloc.h"
#include "base/invariant.h"

#include <stdarg.h>
#include <stdio.h>

#define BUF_CAP_MIN 64

int slice_cmp(struct slice a, struct slice b)
{
    const size_t n = a.size < b.size ? a.size : b.size;
    const int order = n ? memcmp(a.data, b.data, n) : 0;

    if (order != 0) {
        return order;
    }
    return (a.size > b.size) - (a.size < b.size);
}

bool slice_eq(struct slice a, struct slice b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

bool slice_has_prefix(struct slice s, struct slice prefix)
{
    return s.size >= prefix.size &&
           (prefix.size == 0 || memcmp(s.data, prefix.data, prefix.size) == 0);
}

void buf_init(struct buf *b)
{
    *b = (struct buf){0};
}

void buf_deinit(struct buf *b)
{
    span_free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b)
{
    b->size = 0;
}

void buf_reserve(struct buf *b, size_t more)
{
    size_t need = 0;
    size_t cap = 0;

    REQUIRE(more <= SIZE_MAX / 4 - b->size);
    need = b->size + more;
    if (need <= b->cap) {
        return;
    }
    cap = b->cap < BUF_CAP_MIN ? BUF_CAP_MIN : b->cap * 2;
    if (cap < need) {
        cap = need;
    }
    b->data = span_realloc(b->data, cap);
    b->cap = cap;
}

uint8_t *buf_grow(struct buf *b, size_t n)
{
    uint8_t *at = NULL;

    /* Room for one byte even when n is 0: the answer is then a pointer that may be used. */
    buf_reserve(b, n ? n : 1);
    at = b->data + b->size;
    b->size += n;
    return at;
}

void buf_append(struct buf *b, const void *p, size_t n)
{
    if (n) {
        memcpy(buf_grow(b, n), p, n);
    }
}

void buf_append_slice(struct buf *b, struct slice s)
{
    buf_append(b, s.data, s.size);
}

void buf_append_str(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_append_byte(struct buf *b, uint8_t v)
{
    *buf_grow(b, 1) = v;
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_list again;
    int n = 0;

    va_start(ap, fmt);
    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    REQUIRE(n >= 0);
    buf_reserve(b, (size_t)n + 1); /* vsnprintf's NUL goes past size */
    (void)vsnprintf((char *)b->data + b->size, (size_t)n + 1, fmt, again);
    va_end(again);
    b->size += (size_t)n;
}

void buf_set(struct buf *b, struct slice s)
{
    /* s may be a part of b itself: it then fits, so nothing moves before memmove. */
    if (s.size > b->cap) {
        b->size = 0;
        buf_reserve(b, s.size);
    }
    if (s.size) {
        memmove(b->data, s.data, s.size);
    }
    b->size = s.size;
}

void buf_move(struct buf *to, struct buf *from)
{
    if (to == from) {
        return;
    }
    buf_deinit(to);
    *to = *from;
    *from = (struct buf){0};
}

const char *buf_cstr(struct buf *b)
{
    buf_reserve(b, 1);
    b->data[b->size] = 0;
    return (const char *)b->data;
}
