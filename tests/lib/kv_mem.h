/* sql/kv.h in memory, for SQL's own tests: multi-version ordered map, snapshot reads, optimistic
 * validation at commit instead of locks (what a transaction read must not have changed), schema
 * versions checked as the ranges do, and failures on request. One thread. */
#ifndef SPAN_TESTS_LIB_KV_MEM_H
#define SPAN_TESTS_LIB_KV_MEM_H

#include "sql/kv.h"

struct kv_mem_store;

struct kv_mem_store *kv_mem_store_new(void);
void kv_mem_store_free(struct kv_mem_store *s); /* after its kvs */
struct kv *kv_mem_new(struct kv_mem_store *s);
/* Time goes on by ns; every commit moves it by 1 us by itself. */
void kv_mem_advance(struct kv_mem_store *s, uint64_t ns);
/* The n-th commit of a read-write transaction from now on fails with st, `times` times (0: never).
 */
void kv_mem_fail_commit(struct kv_mem_store *s, uint64_t nth, span_status st, unsigned times);
/* The n-th get or scan from now on fails with st, once. */
void kv_mem_fail_read(struct kv_mem_store *s, uint64_t nth, span_status st);
/* SHOW says that these nodes ("2, 3", static) did not answer; NULL: all did. */
void kv_mem_miss_nodes(struct kv_mem_store *s, const char *nodes);
size_t kv_mem_boundaries(const struct kv_mem_store *s);
/* Rows in force, for invariants over all keys: calls f for each key of [start, end). */
void kv_mem_each(struct kv_mem_store *s, struct slice start, struct slice end,
                 void (*f)(void *ctx, struct slice key, struct slice value), void *ctx);
uint64_t kv_mem_reads(const struct kv_mem_store *s); /* gets, keys of get_many, scans so far */
/* Locks asked for with KV_LOCK_UPDATE so far: keys and scans. */
uint64_t kv_mem_update_locks(const struct kv_mem_store *s);

#endif
