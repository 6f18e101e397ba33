/* The heap that never answers NULL: running out of memory is a crash with a line on stderr, and
 * every crash is survived by replaying the log. One counter makes the n-th call fail for tests. */
#include "base/alloc.h"

#include "base/invariant.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Calls left before one fails; 0: none will. */
static _Atomic uint64_t fail_countdown;

void span_alloc_fail_at(uint64_t nth)
{
    atomic_store_explicit(&fail_countdown, nth, memory_order_relaxed);
}

static void (*failed_fn)(void *ctx);
static void *failed_ctx;

void span_alloc_set_failed(void (*fn)(void *ctx), void *ctx)
{
    failed_fn = fn;
    failed_ctx = ctx;
}

uint64_t span_alloc_left(void)
{
    return atomic_load_explicit(&fail_countdown, memory_order_relaxed);
}

static bool alloc_should_fail(void)
{
    uint64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);

    while (left != 0) {
        if (atomic_compare_exchange_weak_explicit(&fail_countdown, &left, left - 1,
                                                  memory_order_relaxed, memory_order_relaxed)) {
            if (left == 1 && failed_fn != NULL) {
                failed_fn(failed_ctx);
                return false;
            }
            return left == 1;
        }
    }
    return false;
}

static _Noreturn void alloc_failed(size_t size)
{
    char text[96];
    const int n =
        snprintf(text, sizeof text, "spanlite: out of memory asking for %zu bytes\n", size);

    if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0) {
        abort();
    }
    abort();
}

void *span_malloc(size_t size)
{
    void *p = alloc_should_fail() ? NULL : malloc(size ? size : 1);

    if (!p) {
        alloc_failed(size);
    }
    return p;
}

void *span_calloc(size_t count, size_t size)
{
    void *p = NULL;

    REQUIRE(size == 0 || count <= SIZE_MAX / size);
    if (!alloc_should_fail()) {
        p = count > 0 && size > 0 ? calloc(count, size) : calloc(1, 1);
    }
    if (!p) {
        alloc_failed(count * size);
    }
    return p;
}

void *span_realloc(void *p, size_t size)
{
    void *grown = alloc_should_fail() ? NULL : realloc(p, size ? size : 1);

    if (!grown) {
        alloc_failed(size);
    }
    return grown;
}

void *span_memdup(const void *p, size_t size)
{
    void *copy = span_malloc(size);

    if (size) {
        memcpy(copy, p, size);
    }
    return copy;
}

char *span_strdup(const char *s)
{
    return span_memdup(s, strlen(s) + 1);
}

char *span_asprintf(const char *fmt, ...)
{
    va_list ap;
    va_list again;
    char *text = NULL;
    int n = 0;

    va_start(ap, fmt);
    va_copy(again, ap);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    REQUIRE(n >= 0);
    text = span_malloc((size_t)n + 1);
    (void)vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    return text;
}

void span_free(void *p)
{
    free(p);
}
