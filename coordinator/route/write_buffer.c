/* Skip list of keys; each key has a stack of versions, newest first, and the undo log names the key
 * of every version in order, so that rolling back to a mark pops versions in reverse. A version
 * written after the last mark is replaced in place: a hot key that is updated a thousand times in
 * one statement keeps one version. */
#include "coordinator/route/write_buffer.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#define LEVELS         16
#define OVERHEAD_BYTES 64 /* charged for each version: what it costs to keep */

struct wb_version {
    struct wb_version *prev;
    size_t logged_at; /* its place in the undo log */
    size_t size;
    bool tombstone;
    uint8_t data[];
};

struct wb_node {
    struct wb_version *cur; /* never NULL but in the head */
    uint8_t *key;
    size_t key_size;
    unsigned levels;
    struct wb_node *next[];
};

void write_buffer_init(struct write_buffer *w)
{
    memset(w, 0, sizeof *w);
    rng_init(&w->rng, 1);
}

static struct wb_node *node_new(struct slice key, unsigned levels)
{
    struct wb_node *n = span_calloc(1, sizeof *n + levels * sizeof n->next[0]);
    n->levels = levels;
    n->key = key.size == 0 ? NULL : span_memdup(key.data, key.size);
    n->key_size = key.size;
    return n;
}

static void node_free(struct wb_node *n)
{
    while (n->cur != NULL) {
        struct wb_version *v = n->cur;
        n->cur = v->prev;
        span_free(v);
    }
    span_free(n->key);
    span_free(n);
}

void write_buffer_clear(struct write_buffer *w)
{
    if (w->head != NULL) {
        for (struct wb_node *n = w->head->next[0]; n != NULL;) {
            struct wb_node *next = n->next[0];
            node_free(n);
            n = next;
        }
        memset(w->head->next, 0, LEVELS * sizeof w->head->next[0]);
    }
    w->count = 0;
    w->bytes = 0;
    w->undo_count = 0;
    w->last_mark = 0;
}

void write_buffer_deinit(struct write_buffer *w)
{
    write_buffer_clear(w);
    span_free(w->head);
    span_free(w->undo);
    memset(w, 0, sizeof *w);
}

static struct slice key_of(const struct wb_node *n)
{
    return slice_of(n->key, n->key_size);
}

/* Last node below key (or, with `through`, at or below it) on every level. */
static struct wb_node *find_before(const struct write_buffer *w, struct slice key, bool through,
                                   struct wb_node *path[LEVELS])
{
    struct wb_node *n = w->head;
    for (unsigned l = LEVELS; l-- > 0;) {
        for (;;) {
            struct wb_node *next = n->next[l];
            int c = next == NULL ? 1 : slice_cmp(key_of(next), key);
            if (c > 0 || (c == 0 && !through)) {
                break;
            }
            n = next;
        }
        if (path != NULL) {
            path[l] = n;
        }
    }
    return n;
}

static void insert(struct write_buffer *w, struct wb_node *n, struct wb_node *path[LEVELS])
{
    for (unsigned l = 0; l < n->levels; l++) {
        n->next[l] = path[l]->next[l];
        path[l]->next[l] = n;
    }
    w->count++;
}

static void unlink_node(struct write_buffer *w, struct wb_node *n)
{
    struct wb_node *path[LEVELS];
    find_before(w, key_of(n), false, path);
    for (unsigned l = 0; l < n->levels; l++) {
        INVARIANT(path[l]->next[l] == n);
        path[l]->next[l] = n->next[l];
    }
    w->count--;
}

static unsigned draw_levels(struct write_buffer *w)
{
    uint64_t r = rng_u64(&w->rng);
    unsigned l = 1;
    while (l < LEVELS && (r & 3) == 0) { /* one node in four reaches the next level */
        r >>= 2;
        l++;
    }
    return l;
}

static void log_undo(struct write_buffer *w, struct wb_node *n)
{
    if (w->undo_count == w->undo_cap) {
        w->undo_cap = w->undo_cap == 0 ? 32 : w->undo_cap * 2;
        w->undo = span_realloc(w->undo, w->undo_cap * sizeof(struct wb_node *));
    }
    w->undo[w->undo_count++] = n;
}

static span_status check_size(const struct write_buffer *w, struct slice key, struct slice value,
                              size_t need)
{
    if (key.size == 0 || key.size > LIMIT_KEY_BYTES || value.size > LIMIT_ROW_BYTES) {
        return SPAN_TOO_LARGE;
    }
    return w->bytes + need > LIMIT_TXN_WRITE_BYTES ? SPAN_TOO_LARGE : SPAN_OK;
}

static span_status write_one(struct write_buffer *w, struct slice key, struct slice value,
                             bool tombstone)
{
    size_t need = key.size + value.size + OVERHEAD_BYTES;
    span_status st = check_size(w, key, value, need);
    if (st != SPAN_OK) {
        return st;
    }
    if (w->head == NULL) {
        w->head = node_new(slice_of(NULL, 0), LEVELS);
    }
    struct wb_node *path[LEVELS];
    struct wb_node *n = find_before(w, key, false, path)->next[0];
    if (n == NULL || !slice_eq(key_of(n), key)) {
        n = node_new(key, draw_levels(w));
        insert(w, n, path);
    }
    struct wb_version *v = span_malloc(sizeof *v + value.size);
    v->size = value.size;
    v->tombstone = tombstone;
    if (value.size > 0) {
        memcpy(v->data, value.data, value.size);
    }
    struct wb_version *old = n->cur;
    if (old != NULL && old->logged_at >= w->last_mark) {
        v->prev = old->prev;
        v->logged_at = old->logged_at;
        w->bytes -= n->key_size + old->size + OVERHEAD_BYTES;
        span_free(old);
    } else {
        v->prev = old;
        v->logged_at = w->undo_count;
        log_undo(w, n);
    }
    n->cur = v;
    w->bytes += need;
    return SPAN_OK;
}

span_status write_buffer_put(struct write_buffer *w, struct slice key, struct slice value)
{
    return write_one(w, key, value, false);
}

span_status write_buffer_del(struct write_buffer *w, struct slice key)
{
    return write_one(w, key, slice_of(NULL, 0), true);
}

size_t write_buffer_mark(struct write_buffer *w)
{
    w->last_mark = w->undo_count;
    return w->undo_count;
}

void write_buffer_rollback_to(struct write_buffer *w, size_t mark)
{
    while (w->undo_count > mark) {
        struct wb_node *n = w->undo[--w->undo_count];
        struct wb_version *v = n->cur;
        INVARIANT(v != NULL && v->logged_at == w->undo_count);
        n->cur = v->prev;
        w->bytes -= n->key_size + v->size + OVERHEAD_BYTES;
        span_free(v);
        if (n->cur == NULL) {
            unlink_node(w, n);
            node_free(n);
        }
    }
    if (w->last_mark > mark) {
        w->last_mark = mark;
    }
}

static bool give(const struct wb_node *n, struct txn_write *out)
{
    if (n == NULL || n->cur == NULL) {
        return false;
    }
    *out = (struct txn_write){.key = key_of(n),
                              .value = slice_of(n->cur->data, n->cur->size),
                              .tombstone = n->cur->tombstone};
    return true;
}

bool write_buffer_get(const struct write_buffer *w, struct slice key, struct txn_write *out)
{
    return write_buffer_seek(w, key, false, out) && slice_eq(out->key, key);
}

bool write_buffer_seek(const struct write_buffer *w, struct slice key, bool after,
                       struct txn_write *out)
{
    if (w->count == 0) {
        return false;
    }
    return give(find_before(w, key, after, NULL)->next[0], out);
}

bool write_buffer_seek_before(const struct write_buffer *w, struct slice key, struct txn_write *out)
{
    if (w->count == 0) {
        return false;
    }
    if (key.size > 0) {
        struct wb_node *n = find_before(w, key, false, NULL);
        return n != w->head && give(n, out);
    }
    struct wb_node *n = w->head;
    for (unsigned l = LEVELS; l-- > 0;) {
        while (n->next[l] != NULL) {
            n = n->next[l];
        }
    }
    return n != w->head && give(n, out);
}

void write_buffer_list(const struct write_buffer *w, struct txn_write *out)
{
    size_t i = 0;
    for (const struct wb_node *n = w->head == NULL ? NULL : w->head->next[0]; n != NULL;
         n = n->next[0]) {
        bool ok = give(n, &out[i++]);
        INVARIANT(ok);
    }
    ENSURE(i == w->count);
}
