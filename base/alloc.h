/* The heap. These never return NULL: a failed allocation stops the process, which is a crash, and
 * every crash is survived (STYLE: after an entry is committed, apply may not fail for lack of
 * memory). Sizes that come from outside are checked against limits.h before they get here.
 * span_alloc_fail_at(n) makes the n-th call fail, for tests; the simulator puts something else in
 * the place of the crash (span_alloc_set_failed). */
#ifndef SPAN_BASE_ALLOC_H
#define SPAN_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

void *span_malloc(size_t size) __attribute__((malloc, returns_nonnull));
void *span_calloc(size_t count, size_t size) __attribute__((malloc, returns_nonnull));
void *span_realloc(void *p, size_t size) __attribute__((returns_nonnull));
void *span_memdup(const void *p, size_t size) __attribute__((malloc, returns_nonnull));
char *span_strdup(const char *s) __attribute__((malloc, returns_nonnull));
/* printf into a new string, owned by the caller. */
char *span_asprintf(const char *fmt, ...)
    __attribute__((malloc, returns_nonnull, format(printf, 1, 2)));
void span_free(void *p);
void span_alloc_fail_at(uint64_t nth); /* 0: never */
uint64_t span_alloc_left(void);        /* calls until the one that fails; 0: none will */
/* What span_alloc_fail_at does instead of stopping the process; the call then succeeds. For a
 * simulator, whose process holds many nodes: it notes that the node is dead and lets nothing leave
 * it any more. NULL: stops the process. Set before any thread starts. */
void span_alloc_set_failed(void (*fn)(void *ctx), void *ctx);

#define SPAN_NEW(type) ((type *)span_calloc(1, sizeof(type)))

#endif
