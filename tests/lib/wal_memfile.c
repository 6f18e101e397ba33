/* The disk in memory. An inode has two images: `now` (what reads see: the page cache) and `disk`
 * (what a power loss leaves), and per sector whether they may differ. The directory likewise:
 * entries now, entries on disk, and the journal of operations between the two. */
#include "tests/lib/wal_memfile.h"

#include "base/alloc.h"
#include "base/invariant.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512U

struct inode {
    unsigned refs;
    struct buf now;
    struct buf disk;
    struct buf dirty; /* one byte a sector of now */
};

struct entry {
    char name[40];
    struct inode *inode;
};

struct dir {
    struct entry *entries; /* by name */
    size_t count;
    size_t cap;
};

enum dir_op_kind { DIR_LINK, DIR_RENAME, DIR_UNLINK };

struct dir_op {
    enum dir_op_kind kind;
    char name[40];
    char to[40];
    struct inode *inode; /* DIR_LINK */
};

struct wal_memfs {
    struct wal_fs fs;
    pthread_mutex_t mu;
    struct dir now;
    struct dir disk;
    struct dir_op *journal;
    size_t journal_count;
    size_t journal_cap;
    bool locked;
    uint64_t ops;
    uint64_t stop_at;
    uint64_t syncs_to_skip;
    uint64_t syncs_to_fail;
    uint64_t capacity;
    bool lying;
    struct wal_memfs_events events;
    void (*on_stop)(void *ctx);
    void *on_stop_ctx;
};

static struct wal_memfs *mem_of(struct wal_fs *fs)
{
    return (struct wal_memfs *)(void *)fs;
}

static struct inode *inode_of(struct wal_file *f)
{
    return (struct inode *)(void *)f;
}

/* ---- Inodes and directories ---- */

static void inode_unref(struct inode *i)
{
    if (--i->refs == 0) {
        buf_deinit(&i->now);
        buf_deinit(&i->disk);
        buf_deinit(&i->dirty);
        span_free(i);
    }
}

/* Bytes of b up to size, zeros where it had none. */
static void buf_resize(struct buf *b, size_t size)
{
    if (size > b->size) {
        size_t more = size - b->size;
        memset(buf_grow(b, more), 0, more);
    }
    b->size = size;
}

static void inode_resize(struct inode *i, size_t size)
{
    buf_resize(&i->now, size);
    buf_resize(&i->dirty, (size + SECTOR - 1) / SECTOR);
}

static size_t dir_place(const struct dir *d, const char *name)
{
    size_t i = 0;
    while (i < d->count && strcmp(d->entries[i].name, name) < 0) {
        i++;
    }
    return i;
}

static struct inode *dir_get(const struct dir *d, const char *name)
{
    size_t i = dir_place(d, name);
    return i < d->count && strcmp(d->entries[i].name, name) == 0 ? d->entries[i].inode : NULL;
}

static bool dir_unlink(struct dir *d, const char *name)
{
    size_t i = dir_place(d, name);
    if (i == d->count || strcmp(d->entries[i].name, name) != 0) {
        return false;
    }
    inode_unref(d->entries[i].inode);
    memmove(&d->entries[i], &d->entries[i + 1], (d->count - i - 1) * sizeof *d->entries);
    d->count--;
    return true;
}

static void dir_link(struct dir *d, const char *name, struct inode *inode)
{
    inode->refs++;
    (void)dir_unlink(d, name);
    size_t i = dir_place(d, name);
    if (d->count == d->cap) {
        d->cap = d->cap == 0 ? 8 : d->cap * 2;
        d->entries = span_realloc(d->entries, d->cap * sizeof *d->entries);
    }
    memmove(&d->entries[i + 1], &d->entries[i], (d->count - i) * sizeof *d->entries);
    REQUIRE(strlen(name) < sizeof d->entries[i].name);
    strcpy(d->entries[i].name, name);
    d->entries[i].inode = inode;
    d->count++;
}

static bool dir_rename(struct dir *d, const char *from, const char *to)
{
    struct inode *i = dir_get(d, from);
    if (i == NULL) {
        return false;
    }
    dir_link(d, to, i);
    return dir_unlink(d, from);
}

static void dir_clear(struct dir *d)
{
    while (d->count != 0) {
        (void)dir_unlink(d, d->entries[d->count - 1].name);
    }
    span_free(d->entries);
    *d = (struct dir){0};
}

static void journal_add(struct wal_memfs *m, enum dir_op_kind kind, const char *name,
                        const char *to, struct inode *inode)
{
    if (m->journal_count == m->journal_cap) {
        m->journal_cap = m->journal_cap == 0 ? 8 : m->journal_cap * 2;
        m->journal = span_realloc(m->journal, m->journal_cap * sizeof *m->journal);
    }
    struct dir_op *op = &m->journal[m->journal_count++];
    *op = (struct dir_op){.kind = kind, .inode = inode};
    strcpy(op->name, name);
    if (to != NULL) {
        strcpy(op->to, to);
    }
    if (inode != NULL) {
        inode->refs++;
    }
}

/* The first n operations of the journal reach the disk, the others never happened. */
static void journal_replay(struct wal_memfs *m, size_t n)
{
    for (size_t i = 0; i < m->journal_count; i++) {
        const struct dir_op *op = &m->journal[i];
        if (i < n && op->kind == DIR_LINK) {
            dir_link(&m->disk, op->name, op->inode);
        } else if (i < n && op->kind == DIR_RENAME) {
            (void)dir_rename(&m->disk, op->name, op->to);
        } else if (i < n) {
            (void)dir_unlink(&m->disk, op->name);
        }
        if (op->inode != NULL) {
            inode_unref(op->inode);
        }
    }
    m->journal_count = 0;
}

/* ---- File operations ---- */

/* mu held. Counts an operation that changes something; fails once the machine has stopped. */
static span_status op_begin(struct wal_memfs *m, const char *what, struct span_error *err)
{
    if (m->ops >= m->stop_at) {
        if (m->on_stop != NULL) {
            m->on_stop(m->on_stop_ctx);
        }
        return span_fail(err, SPAN_IO, "%s: the machine has stopped", what);
    }
    m->ops++;
    return SPAN_OK;
}

static span_status mem_lock(struct wal_fs *fs, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = m->locked ? span_fail(err, SPAN_UNAVAILABLE, "mem/lock is held") : SPAN_OK;
    m->locked = true;
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_open(struct wal_fs *fs, const char *name, bool create, struct wal_file **out,
                            struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = create ? op_begin(m, "open", err) : SPAN_OK;
    struct inode *i = dir_get(&m->now, name);
    if (st == SPAN_OK && create) {
        i = SPAN_NEW(struct inode);
        dir_link(&m->now, name, i);
        journal_add(m, DIR_LINK, name, NULL, i);
    } else if (st == SPAN_OK && i == NULL) {
        st = span_fail(err, SPAN_NOT_FOUND, "open mem/%s: no such file", name);
    }
    if (st == SPAN_OK) {
        i->refs++;
        *out = (struct wal_file *)(void *)i;
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

static void mem_close(struct wal_fs *fs, struct wal_file *f)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    inode_unref(inode_of(f));
    pthread_mutex_unlock(&m->mu);
}

static span_status mem_read(struct wal_fs *fs, struct wal_file *f, uint64_t offset, void *p,
                            size_t n, size_t *got, struct span_error *err)
{
    (void)err;
    struct wal_memfs *m = mem_of(fs);
    struct inode *i = inode_of(f);
    pthread_mutex_lock(&m->mu);
    *got = 0;
    if (offset < i->now.size) {
        *got = i->now.size - offset < n ? (size_t)(i->now.size - offset) : n;
        memcpy(p, i->now.data + offset, *got);
    }
    pthread_mutex_unlock(&m->mu);
    return SPAN_OK;
}

static uint64_t bytes_used(const struct wal_memfs *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->now.count; i++) {
        sum += m->now.entries[i].inode->now.size;
    }
    return sum;
}

static span_status write_locked(struct wal_memfs *m, struct inode *i, uint64_t offset,
                                const void *p, size_t n, struct span_error *err)
{
    span_status st = op_begin(m, "pwrite", err);
    if (st != SPAN_OK || n == 0) {
        return st;
    }
    uint64_t end = offset + n;
    if (end > i->now.size) {
        if (bytes_used(m) + (end - i->now.size) > m->capacity) {
            m->events.no_space++;
            return span_fail(err, SPAN_NO_SPACE, "pwrite: the disk in memory is full");
        }
        inode_resize(i, (size_t)end);
    }
    if (p == NULL) {
        memset(i->now.data + offset, 0, n);
    } else {
        memcpy(i->now.data + offset, p, n);
    }
    for (uint64_t s = offset / SECTOR; s * SECTOR < end; s++) {
        i->dirty.data[s] = 1;
    }
    return SPAN_OK;
}

static span_status mem_write(struct wal_fs *fs, struct wal_file *f, uint64_t offset, const void *p,
                             size_t n, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = write_locked(m, inode_of(f), offset, p, n, err);
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_zero_fill(struct wal_fs *fs, struct wal_file *f, uint64_t offset,
                                 uint64_t end, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = offset >= end
                         ? SPAN_OK
                         : write_locked(m, inode_of(f), offset, NULL, (size_t)(end - offset), err);
    pthread_mutex_unlock(&m->mu);
    return st;
}

static void sector_to_disk(struct inode *i, size_t s)
{
    size_t at = s * SECTOR;
    size_t n = i->now.size - at < SECTOR ? i->now.size - at : SECTOR;
    buf_resize(&i->disk, i->disk.size > at + n ? i->disk.size : at + n);
    memcpy(i->disk.data + at, i->now.data + at, n);
}

static span_status mem_sync(struct wal_fs *fs, struct wal_file *f, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    struct inode *i = inode_of(f);
    pthread_mutex_lock(&m->mu);
    span_status st = op_begin(m, "fdatasync", err);
    if (st == SPAN_OK && m->syncs_to_skip != 0) {
        m->syncs_to_skip--;
    } else if (st == SPAN_OK && m->syncs_to_fail != 0) {
        m->syncs_to_fail--;
        m->events.syncs_failed++;
        st = span_fail(err, SPAN_IO, "fdatasync: a planted failure");
        if (i->dirty.size != 0) {
            memset(i->dirty.data, 0, i->dirty.size);
        }
    }
    bool reaches = st == SPAN_OK && !m->lying;
    for (size_t s = 0; reaches && s < i->dirty.size; s++) {
        if (i->dirty.data[s] != 0) {
            sector_to_disk(i, s);
            i->dirty.data[s] = 0;
        }
    }
    if (reaches && i->disk.size > i->now.size) {
        i->disk.size = i->now.size;
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

span_status wal_memfs_file_truncate(struct wal_memfs *m, struct wal_file *f, uint64_t size,
                                    struct span_error *err)
{
    struct inode *i = inode_of(f);
    pthread_mutex_lock(&m->mu);
    span_status st = op_begin(m, "ftruncate", err);
    if (st == SPAN_OK && size < i->now.size) {
        inode_resize(i, (size_t)size);
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_size(struct wal_fs *fs, struct wal_file *f, uint64_t *out,
                            struct span_error *err)
{
    (void)err;
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    *out = inode_of(f)->now.size;
    pthread_mutex_unlock(&m->mu);
    return SPAN_OK;
}

static span_status mem_rename(struct wal_fs *fs, const char *from, const char *to,
                              struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = op_begin(m, "rename", err);
    if (st == SPAN_OK && !dir_rename(&m->now, from, to)) {
        st = span_fail(err, SPAN_NOT_FOUND, "rename mem/%s: no such file", from);
    } else if (st == SPAN_OK) {
        journal_add(m, DIR_RENAME, from, to, NULL);
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_unlink(struct wal_fs *fs, const char *name, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = op_begin(m, "unlink", err);
    if (st == SPAN_OK && !dir_unlink(&m->now, name)) {
        st = span_fail(err, SPAN_NOT_FOUND, "unlink mem/%s: no such file", name);
    } else if (st == SPAN_OK) {
        journal_add(m, DIR_UNLINK, name, NULL, NULL);
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_sync_dir(struct wal_fs *fs, struct span_error *err)
{
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    span_status st = op_begin(m, "fsync", err);
    if (st == SPAN_OK) {
        journal_replay(m, m->journal_count);
    }
    pthread_mutex_unlock(&m->mu);
    return st;
}

static span_status mem_space(struct wal_fs *fs, uint64_t *out, struct span_error *err)
{
    (void)err;
    struct wal_memfs *m = mem_of(fs);
    pthread_mutex_lock(&m->mu);
    uint64_t used = bytes_used(m);
    *out = used < m->capacity ? m->capacity - used : 0;
    pthread_mutex_unlock(&m->mu);
    return SPAN_OK;
}

static span_status mem_list(struct wal_fs *fs, wal_list_fn *fn, void *ctx, struct span_error *err)
{
    (void)err;
    struct wal_memfs *m = mem_of(fs);
    for (size_t i = 0; i < m->now.count; i++) {
        fn(ctx, m->now.entries[i].name);
    }
    return SPAN_OK;
}

static void mem_free(struct wal_fs *fs)
{
    (void)fs; /* wal_memfs_free does it */
}

static const struct wal_fs_ops mem_ops = {
    .lock = mem_lock,
    .open = mem_open,
    .close = mem_close,
    .read = mem_read,
    .write = mem_write,
    .sync = mem_sync,
    .size = mem_size,
    .zero_fill = mem_zero_fill,
    .rename = mem_rename,
    .unlink = mem_unlink,
    .sync_dir = mem_sync_dir,
    .space = mem_space,
    .list = mem_list,
    .free = mem_free,
};

/* ---- Interface ---- */

struct wal_memfs *wal_memfs_new(void)
{
    struct wal_memfs *m = SPAN_NEW(struct wal_memfs);
    m->fs.ops = &mem_ops;
    m->fs.dir = "mem";
    pthread_mutex_init(&m->mu, NULL);
    m->stop_at = UINT64_MAX;
    m->capacity = UINT64_MAX;
    return m;
}

void wal_memfs_free(struct wal_memfs *m)
{
    journal_replay(m, 0);
    dir_clear(&m->now);
    dir_clear(&m->disk);
    span_free(m->journal);
    pthread_mutex_destroy(&m->mu);
    span_free(m);
}

struct wal_fs *wal_memfs_fs(struct wal_memfs *m)
{
    return &m->fs;
}

struct wal_memfs *wal_memfs_clone(struct wal_memfs *m)
{
    struct wal_memfs *c = wal_memfs_new();
    for (size_t i = 0; i < m->now.count; i++) {
        struct inode *copy = SPAN_NEW(struct inode);
        const struct inode *from = m->now.entries[i].inode;
        buf_append(&copy->now, from->now.data, from->now.size);
        buf_append(&copy->disk, from->now.data, from->now.size);
        buf_resize(&copy->dirty, (from->now.size + SECTOR - 1) / SECTOR);
        dir_link(&c->now, m->now.entries[i].name, copy);
        dir_link(&c->disk, m->now.entries[i].name, copy);
    }
    return c;
}

static void inode_power_loss(struct wal_memfs *m, struct inode *i, struct rng *r, unsigned survive)
{
    size_t before = i->disk.size;
    uint64_t kept = 0;
    uint64_t lost = 0;
    for (size_t s = 0; s < i->dirty.size; s++) {
        bool survives = i->dirty.data[s] != 0 && rng_below(r, 100) < survive;
        if (survives) {
            sector_to_disk(i, s);
        }
        kept += survives ? 1 : 0;
        lost += i->dirty.data[s] != 0 && !survives ? 1 : 0;
        i->dirty.data[s] = 0;
    }
    m->events.sectors_lost += lost;
    m->events.torn += kept != 0 && lost != 0 ? 1 : 0;
    if (i->disk.size > before && rng_below(r, 2) == 0) {
        i->disk.size = before; /* sectors written, the size was not */
    } else if (i->disk.size > i->now.size && rng_below(r, 2) == 0) {
        i->disk.size = i->now.size; /* cut, and the cut got there without a sync */
    }
    buf_set(&i->now, buf_slice(&i->disk));
    buf_resize(&i->dirty, (i->now.size + SECTOR - 1) / SECTOR);
}

void wal_memfs_power_loss(struct wal_memfs *m, struct rng *r, unsigned survive)
{
    if (survive > 100) {
        static const unsigned choices[] = {0, 10, 50, 90, 100};
        survive = choices[rng_below(r, 5)];
    }
    size_t kept = (size_t)rng_below(r, m->journal_count + 1);
    m->events.dir_ops_lost += m->journal_count - kept;
    journal_replay(m, kept);
    dir_clear(&m->now);
    for (size_t i = 0; i < m->disk.count; i++) {
        inode_power_loss(m, m->disk.entries[i].inode, r, survive);
        dir_link(&m->now, m->disk.entries[i].name, m->disk.entries[i].inode);
    }
    m->locked = false;
    m->stop_at = UINT64_MAX;
}

void wal_memfs_kill(struct wal_memfs *m)
{
    m->locked = false;
    m->stop_at = UINT64_MAX;
}

void wal_memfs_stop_after(struct wal_memfs *m, uint64_t n)
{
    pthread_mutex_lock(&m->mu);
    m->stop_at = n == UINT64_MAX ? UINT64_MAX : m->ops + n;
    pthread_mutex_unlock(&m->mu);
}

void wal_memfs_stop_now(struct wal_memfs *m)
{
    m->stop_at = m->ops;
}

void wal_memfs_on_stop(struct wal_memfs *m, void (*fn)(void *ctx), void *ctx)
{
    m->on_stop = fn;
    m->on_stop_ctx = ctx;
}

uint64_t wal_memfs_op_count(struct wal_memfs *m)
{
    return m->ops;
}

void wal_memfs_events_get(struct wal_memfs *m, struct wal_memfs_events *out)
{
    pthread_mutex_lock(&m->mu);
    *out = m->events;
    pthread_mutex_unlock(&m->mu);
}

void wal_memfs_fail_syncs(struct wal_memfs *m, uint64_t skip, uint64_t count)
{
    pthread_mutex_lock(&m->mu);
    m->syncs_to_skip = skip;
    m->syncs_to_fail = count;
    pthread_mutex_unlock(&m->mu);
}

void wal_memfs_set_capacity(struct wal_memfs *m, uint64_t bytes)
{
    pthread_mutex_lock(&m->mu);
    m->capacity = bytes;
    pthread_mutex_unlock(&m->mu);
}

void wal_memfs_set_lying(struct wal_memfs *m, bool on)
{
    m->lying = on;
}

bool wal_memfs_exists(struct wal_memfs *m, const char *name)
{
    return dir_get(&m->now, name) != NULL;
}

size_t wal_memfs_count(struct wal_memfs *m)
{
    return m->now.count;
}

const char *wal_memfs_name(struct wal_memfs *m, size_t i)
{
    return m->now.entries[i].name;
}

bool wal_memfs_get(struct wal_memfs *m, const char *name, struct buf *out)
{
    const struct inode *i = dir_get(&m->now, name);
    if (i != NULL) {
        buf_append_slice(out, buf_slice(&i->now));
    }
    return i != NULL;
}

uint64_t wal_memfs_size(struct wal_memfs *m, const char *name)
{
    const struct inode *i = dir_get(&m->now, name);
    return i == NULL ? 0 : i->now.size;
}

void wal_memfs_xor(struct wal_memfs *m, const char *name, uint64_t offset, uint8_t bits)
{
    struct inode *i = dir_get(&m->now, name);
    REQUIRE(i != NULL && offset < i->now.size);
    i->now.data[offset] ^= bits;
    sector_to_disk(i, (size_t)(offset / SECTOR));
}

void wal_memfs_truncate(struct wal_memfs *m, const char *name, uint64_t size)
{
    struct inode *i = dir_get(&m->now, name);
    REQUIRE(i != NULL && size <= i->now.size);
    inode_resize(i, (size_t)size);
    i->disk.size = i->disk.size < size ? i->disk.size : (size_t)size;
}

bool wal_memfs_remove(struct wal_memfs *m, const char *name)
{
    (void)dir_unlink(&m->disk, name);
    return dir_unlink(&m->now, name);
}
