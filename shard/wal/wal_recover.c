/* Opening a log: which files belong to it, where it ends, is all of it there, replay.
 *
 *  1. List the directory. Every segment file must have a sound header of this store. `identity`
 * without any segment: they are lost.
 *  2. The tip is the greatest id with a valid head unit. Its units in sequence give `oldest`,
 * `newest` and the end of the log: the first place where no valid unit with the next seq is.
 *  3. Every id above the tip up to `newest` and the last file must be there (spares). Any valid
 * unit past the end, in the tip or in a spare, whose `durable` reaches the missing seq proves that
 * acknowledged bytes went bad: refuse (rule H1). Otherwise the tail was never acknowledged and is
 * cut.
 *  4. The chain goes back from the tip by `prev` to `oldest`. A file or head that is missing there,
 * or a segment that does not reach the seq before the next one's head, is corruption: a head proves
 *     that everything before it was durable. Units at or past the next head's seq are ignored (H4).
 *  5. Replay in order. Heads after the first only repeat what is known, which is checked.
 *  6. If there is a clean-stop mark, the log must end exactly there (rule H2).
 *  7. Units that no later one proves durable are written again in place and synced: what was read
 * may have come from the page cache only (a killed process), or be marked clean after a failed sync
 *     (rule H4). Valid units past the end lose their header, so that they cannot be taken for the
 *     continuation of what is written next.
 *
 * A sector that cannot be read is taken for bad bytes where the log does not need it; where it does
 * (or might), opening fails with the disk's error. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/wal/wal_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define READ_PIECE_BYTES 4096U

struct found {
    uint64_t id;
    uint64_t bytes; /* from the header */
    uint64_t size;  /* of the file */
    struct wal_segment *seg;
    char name[SEG_NAME_BYTES];
    bool head_ok;
    struct unit head; /* its records are not there any more */
};

/* A valid unit past the end of the log: its header is to be cleared. */
struct leftover {
    struct found *file;
    uint64_t offset;
};

struct recovery {
    struct wal *w;
    wal_replay_fn *replay;
    void *replay_ctx;
    struct span_error *err;

    struct found *files; /* by id */
    size_t file_count;
    size_t file_cap;
    bool has_identity;
    bool has_clean;
    bool has_reserve;

    struct found *tip; /* NULL: nothing was ever written */
    struct buf tip_bytes;
    uint64_t tip_end;    /* offset past its last unit */
    uint64_t last_seq;   /* of that unit */
    uint64_t durable;    /* greatest `durable` in a unit of the log */
    uint64_t rewrite_at; /* first byte of the units that nothing proves durable */
    uint64_t oldest;
    uint64_t newest;
    uint64_t units;
    struct buf chain_bytes;
    struct seg_clean clean;
    struct leftover *leftovers;
    size_t leftover_count;
};

/* ---- Files ---- */

static void on_name(void *ctx, const char *name)
{
    struct recovery *r = ctx;
    uint64_t id;
    if (strcmp(name, WAL_IDENTITY_NAME) == 0) {
        r->has_identity = true;
    } else if (strcmp(name, WAL_CLEAN_NAME) == 0) {
        r->has_clean = true;
    } else if (strcmp(name, WAL_RESERVE_NAME) == 0) {
        r->has_reserve = true;
    } else if (seg_name_parse(name, &id)) {
        if (r->file_count == r->file_cap) {
            r->file_cap = r->file_cap == 0 ? 16 : r->file_cap * 2;
            r->files = span_realloc(r->files, r->file_cap * sizeof *r->files);
        }
        struct found *f = &r->files[r->file_count++];
        *f = (struct found){.id = id};
        seg_name(id, f->name);
    }
}

static int found_cmp(const void *a, const void *b)
{
    uint64_t x = ((const struct found *)a)->id;
    uint64_t y = ((const struct found *)b)->id;
    return x < y ? -1 : x > y;
}

static struct found *found_get(struct recovery *r, uint64_t id)
{
    struct found key = {.id = id};
    return r->file_count == 0 ? NULL
                              : bsearch(&key, r->files, r->file_count, sizeof key, found_cmp);
}

static span_status small_read(struct recovery *r, const char *name, struct buf *out)
{
    const struct wal_fs_ops *ops = r->w->fs->ops;
    struct wal_file *f;
    span_status st = ops->open(r->w->fs, name, false, &f, r->err);
    if (st != SPAN_OK) {
        return st;
    }
    size_t got = 0;
    uint8_t *p = buf_grow(out, 256);
    st = ops->read(r->w->fs, f, 0, p, 256, &got, r->err);
    out->size = got;
    ops->close(r->w->fs, f);
    return st;
}

/* Reads a file's first `want` bytes, zeros where it is too short. *unreadable: the least offset
 * that gave an error, UINT64_MAX if none did; zeros there. */
static void segment_read(struct recovery *r, const struct found *f, uint64_t want, struct buf *out,
                         uint64_t *unreadable)
{
    struct wal_fs *fs = r->w->fs;
    struct span_error ignored;
    size_t got = 0;
    *unreadable = UINT64_MAX;
    buf_clear(out);
    uint8_t *p = buf_grow(out, (size_t)want);
    if (fs->ops->read(fs, f->seg->file, 0, p, (size_t)want, &got, &ignored) == SPAN_OK) {
        memset(p + got, 0, (size_t)want - got);
        return;
    }
    for (uint64_t at = 0; at < want; at += READ_PIECE_BYTES) {
        size_t n = want - at < READ_PIECE_BYTES ? (size_t)(want - at) : READ_PIECE_BYTES;
        got = 0;
        if (fs->ops->read(fs, f->seg->file, at, p + at, n, &got, &ignored) != SPAN_OK) {
            *unreadable = at < *unreadable ? at : *unreadable;
            got = 0;
        }
        memset(p + at + got, 0, n - got);
    }
}

static span_status unreadable_fail(struct recovery *r, const struct found *f, uint64_t offset)
{
    return span_fail(r->err, SPAN_IO, "%s/%s: cannot be read at offset %" PRIu64, r->w->fs->dir,
                     f->name, offset);
}

/* Header and head unit of one file. */
static span_status file_probe(struct recovery *r, struct found *f)
{
    struct wal *w = r->w;
    const struct wal_fs_ops *ops = w->fs->ops;
    f->seg = wal_segment_new(f->id, 0);
    span_status st = ops->open(w->fs, f->name, false, &f->seg->file, r->err);
    if (st == SPAN_OK) {
        st = ops->size(w->fs, f->seg->file, &f->size, r->err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    uint64_t unreadable;
    segment_read(r, f, 2ULL * SEG_SECTOR_BYTES, &r->chain_bytes, &unreadable);
    if (unreadable != UINT64_MAX) {
        return unreadable_fail(r, f, unreadable);
    }
    char *path = span_asprintf("%s/%s", w->fs->dir, f->name);
    struct seg_header h;
    size_t there = f->size < SEG_SECTOR_BYTES ? (size_t)f->size : SEG_SECTOR_BYTES;
    st = seg_header_decode(r->chain_bytes.data, there, path, f->id, w->store_id, &h, r->err);
    span_free(path);
    if (st != SPAN_OK) {
        return st;
    }
    if (f->size != h.bytes) {
        /* A segment gets its size before its name, so no crash makes it shorter; and where its end
         * is missing nothing says how much of what was acknowledged went with it. */
        return span_fail(r->err, SPAN_CORRUPT,
                         "%s/%s: ends at offset %" PRIu64 ", its header says %" PRIu64 " bytes",
                         w->fs->dir, f->name, f->size, h.bytes);
    }
    f->bytes = h.bytes;
    f->seg->bytes = h.bytes;
    uint32_t head_bytes = le32_get(r->chain_bytes.data + SEG_SECTOR_BYTES + 8);
    if (head_bytes > h.bytes - SEG_SECTOR_BYTES) {
        return SPAN_OK; /* nothing valid can begin there */
    }
    uint64_t want = SEG_SECTOR_BYTES + (uint64_t)head_bytes;
    segment_read(r, f, want, &r->chain_bytes, &unreadable);
    f->head_ok =
        unit_check(r->chain_bytes.data, want, SEG_SECTOR_BYTES, f->id, w->store_id, &f->head) &&
        (f->head.flags & UNIT_HEAD) != 0;
    f->head.records = (struct slice){0};
    return SPAN_OK;
}

static span_status files_find(struct recovery *r)
{
    struct wal *w = r->w;
    span_status st = w->fs->ops->list(w->fs, on_name, r, r->err);
    if (st != SPAN_OK) {
        return st;
    }
    if (r->file_count != 0) {
        qsort(r->files, r->file_count, sizeof *r->files, found_cmp);
    }
    struct buf small = {0};
    char *path = span_asprintf("%s/%s", w->fs->dir, WAL_IDENTITY_NAME);
    if (r->has_identity) {
        st = small_read(r, WAL_IDENTITY_NAME, &small);
        if (st == SPAN_OK) {
            st = identity_decode(buf_slice(&small), path, w->store_id, r->err);
        }
    }
    span_free(path);
    path = span_asprintf("%s/%s", w->fs->dir, WAL_CLEAN_NAME);
    if (st == SPAN_OK && r->has_clean) {
        buf_clear(&small);
        st = small_read(r, WAL_CLEAN_NAME, &small);
        if (st == SPAN_OK) {
            st = clean_decode(buf_slice(&small), path, w->store_id, &r->clean, r->err);
        }
    }
    span_free(path);
    buf_deinit(&small);
    if (st == SPAN_OK && (r->has_identity || r->has_clean) && r->file_count == 0) {
        st = span_fail(r->err, SPAN_CORRUPT, "%s: the log's segment files (wal-*.seg) are missing",
                       w->fs->dir);
    }
    for (size_t i = 0; st == SPAN_OK && i < r->file_count; i++) {
        st = file_probe(r, &r->files[i]);
        if (st == SPAN_OK && r->files[i].head_ok) {
            r->tip = &r->files[i];
        }
    }
    return st;
}

/* ---- The end of the log ---- */

static void unit_note(struct recovery *r, const struct unit *u)
{
    r->durable = u->durable > r->durable ? u->durable : r->durable;
    r->oldest = u->oldest > r->oldest ? u->oldest : r->oldest;
    r->newest = u->newest > r->newest ? u->newest : r->newest;
}

/* Walks the tip's units in sequence: fills tip_end, last_seq, oldest, newest. */
static span_status tip_scan(struct recovery *r)
{
    struct found *t = r->tip;
    uint64_t unreadable;
    segment_read(r, t, t->bytes, &r->tip_bytes, &unreadable);
    uint64_t at = SEG_SECTOR_BYTES;
    uint64_t seq = t->head.seq;
    struct unit u;
    while (unit_check(r->tip_bytes.data, t->bytes, at, t->id, r->w->store_id, &u) && u.seq == seq &&
           ((u.flags & UNIT_HEAD) != 0) == (at == SEG_SECTOR_BYTES)) {
        unit_note(r, &u);
        at += u.bytes;
        seq++;
    }
    r->tip_end = at;
    r->last_seq = seq - 1;
    t->seg->offset = at;
    if (unreadable != UINT64_MAX && unreadable + READ_PIECE_BYTES > at) {
        return unreadable_fail(r, t, unreadable); /* a torn tail or acknowledged bytes: unknown */
    }
    return SPAN_OK;
}

/* Valid units of f at or past `from`: proof of corruption (rule H1), or what a sync that never
 * ended left behind, noted to be cleared. */
static span_status leftovers_find(struct recovery *r, struct found *f, const struct buf *bytes,
                                  uint64_t from)
{
    uint64_t missing = r->last_seq + 1;
    struct unit u;
    uint64_t at = from;
    while (at < f->bytes) {
        if (!unit_check(bytes->data, f->bytes, at, f->id, r->w->store_id, &u)) {
            at += SEG_SECTOR_BYTES;
            continue;
        }
        if (u.durable >= missing) {
            /* In a spare it is the head that is bad: where units are, there was one. */
            return span_fail(r->err, SPAN_CORRUPT,
                             "%s/%s: bad bytes at offset %" PRIu64 ": unit %" PRIu64
                             " was durable (unit %" PRIu64 " at offset %" PRIu64
                             " says so) but does not check out",
                             r->w->fs->dir, f->name, from, missing, u.seq, at);
        }
        r->leftovers = span_realloc(r->leftovers, (r->leftover_count + 1) * sizeof *r->leftovers);
        r->leftovers[r->leftover_count++] = (struct leftover){f, at};
        at += u.bytes;
        r->w->stats.recovered_cut_bytes += u.bytes;
    }
    return SPAN_OK;
}

/* In the tip past the end, and in everything past the tip. */
static span_status past_end(struct recovery *r)
{
    span_status st = SPAN_OK;
    if (r->tip != NULL) {
        st = leftovers_find(r, r->tip, &r->tip_bytes, r->tip_end);
    }
    size_t first = r->tip == NULL ? 0 : (size_t)(r->tip - r->files) + 1;
    for (size_t i = first; st == SPAN_OK && i < r->file_count; i++) {
        struct found *f = &r->files[i];
        uint64_t unreadable;
        segment_read(r, f, f->bytes, &r->chain_bytes, &unreadable);
        st = unreadable != UINT64_MAX ? unreadable_fail(r, f, unreadable)
                                      : leftovers_find(r, f, &r->chain_bytes, SEG_SECTOR_BYTES);
    }
    return st;
}

static span_status leftovers_clear(struct recovery *r)
{
    static const uint8_t zeros[SEG_SECTOR_BYTES];
    struct wal_fs *fs = r->w->fs;
    span_status st = SPAN_OK;
    for (size_t i = 0; st == SPAN_OK && i < r->leftover_count; i++) {
        const struct leftover *l = &r->leftovers[i];
        struct wal_file *file = l->file->seg->file;
        st = fs->ops->write(fs, file, l->offset, zeros, sizeof zeros, r->err);
        if (st == SPAN_OK) {
            st = fs->ops->sync(fs, file, r->err);
        }
    }
    return st;
}

/* Without a tip nothing was ever written: then there is a segment 1. */
static span_status first_check(struct recovery *r)
{
    if (r->tip != NULL || r->file_count == 0 || r->files[0].id == 1) {
        return SPAN_OK;
    }
    char name[SEG_NAME_BYTES];
    seg_name(r->files[0].id - 1, name);
    return span_fail(
        r->err, SPAN_CORRUPT,
        "%s/%s is missing (or %s damaged at offset %u): no segment has a valid first unit",
        r->w->fs->dir, name, r->files[0].name, SEG_SECTOR_BYTES);
}

/* Segment files are made one after the other, so above the tip there are no holes: not below what a
 * unit says was there, and not between files that are. */
static span_status spares_check(struct recovery *r)
{
    uint64_t tip = r->tip == NULL ? 0 : r->tip->id;
    const struct found *last = r->file_count == 0 ? NULL : &r->files[r->file_count - 1];
    for (uint64_t id = tip + 1; id <= r->newest || (last != NULL && id < last->id); id++) {
        if (found_get(r, id) == NULL) {
            char name[SEG_NAME_BYTES];
            seg_name(id, name);
            return id <= r->newest
                       ? span_fail(r->err, SPAN_CORRUPT,
                                   "%s/%s is missing: %s says that it was there", r->w->fs->dir,
                                   name, r->tip == NULL ? "the log" : r->tip->name)
                       : span_fail(r->err, SPAN_CORRUPT, "%s/%s is missing: %s was made after it",
                                   r->w->fs->dir, name, last->name);
        }
    }
    return SPAN_OK;
}

static span_status clean_check(struct recovery *r)
{
    uint64_t id = r->tip == NULL ? 0 : r->tip->id;
    uint64_t end = r->tip == NULL ? 0 : r->tip_end;
    if (!r->has_clean || (r->clean.segment_id == id && r->clean.seq == r->last_seq &&
                          (id == 0 || r->clean.offset == end))) {
        return SPAN_OK;
    }
    char name[SEG_NAME_BYTES];
    seg_name(r->clean.segment_id, name);
    const char *at = r->tip == NULL ? "(no unit at all)" : r->tip->name;
    return span_fail(r->err, SPAN_CORRUPT,
                     "%s/%s: bad bytes at offset %" PRIu64
                     ": the log was stopped cleanly after unit "
                     "%" PRIu64 " at offset %" PRIu64 " of %s, but its last valid unit is %" PRIu64,
                     r->w->fs->dir, at, end, r->clean.seq, r->clean.offset, name, r->last_seq);
}

/* ---- Chain and replay ---- */

/* Fills `chain` (room for all files) oldest first; *count. */
static span_status chain_find(struct recovery *r, struct found **chain, size_t *count)
{
    size_t n = 0;
    struct found *f = r->tip;
    while (f != NULL) {
        INVARIANT(n < r->file_count);
        chain[n++] = f;
        uint64_t prev = f->head.prev;
        if (f->id <= r->oldest || prev < r->oldest || prev == 0) {
            break;
        }
        struct found *p = found_get(r, prev);
        char name[SEG_NAME_BYTES];
        seg_name(prev, name);
        if (p == NULL) {
            return span_fail(r->err, SPAN_CORRUPT, "%s/%s is missing: %s follows it", r->w->fs->dir,
                             name, f->name);
        }
        if (!p->head_ok || p->id >= f->id || p->head.seq >= f->head.seq) {
            return span_fail(
                r->err, SPAN_CORRUPT,
                "%s/%s: bad bytes at offset %u: its first unit does not check out, but "
                "%s follows it",
                r->w->fs->dir, name, SEG_SECTOR_BYTES, f->name);
        }
        f = p;
    }
    for (size_t i = 0; i < n / 2; i++) {
        struct found *t = chain[i];
        chain[i] = chain[n - 1 - i];
        chain[n - 1 - i] = t;
    }
    *count = n;
    return SPAN_OK;
}

static span_status record_apply(struct recovery *r, struct wal_segment *seg,
                                const struct wal_record *rec)
{
    struct wal_index *ix = &r->w->index;
    switch (rec->kind) {
    case WAL_ENTRY:
        wal_index_entries(ix, &seg->pins, rec->range, rec->index, rec->index);
        break;
    case WAL_STICKY:
        wal_index_sticky(ix, rec->range, rec->type, rec->payload);
        break;
    case WAL_TOMBSTONE:
        wal_index_tombstone(ix, rec->range);
        break;
    }
    return r->replay == NULL ? SPAN_OK : r->replay(r->replay_ctx, rec, r->err);
}

/* A later head must repeat exactly what replay has come to. */
static bool head_repeats(const struct recovery *r, const struct unit *u)
{
    struct record_cursor c = record_cursor_of(u->records);
    struct wal_record rec;
    struct slice have;
    uint32_t n = 0;
    int got;
    while ((got = record_next(&c, &rec)) == 1) {
        if (rec.kind != WAL_STICKY || !wal_index_get(&r->w->index, rec.range, rec.type, &have) ||
            !slice_eq(have, rec.payload)) {
            return false;
        }
        n++;
    }
    return got == 0 && n == u->record_count && n == r->w->index.sticky_count;
}

static span_status unit_replay(struct recovery *r, const struct found *f, uint64_t at,
                               const struct unit *u)
{
    struct record_cursor c = record_cursor_of(u->records);
    struct wal_record rec;
    uint32_t n = 0;
    int got = 1;
    for (;;) {
        uint64_t offset = at + UNIT_HEADER_BYTES + (uint64_t)(c.p - c.start);
        got = record_next(&c, &rec);
        if (got != 1) {
            break;
        }
        n++;
        span_status st = record_apply(r, f->seg, &rec);
        if (st != SPAN_OK) {
            struct span_error inner = *r->err;
            return span_fail(r->err, st, "%s/%s: record at offset %" PRIu64 ": %.600s",
                             r->w->fs->dir, f->name, offset,
                             inner.code == st ? inner.text : span_status_text(st));
        }
    }
    if (got != 0 || n != u->record_count) {
        return span_fail(r->err, SPAN_CORRUPT,
                         "%s/%s: malformed record in the unit at offset %" PRIu64, r->w->fs->dir,
                         f->name, at);
    }
    return SPAN_OK;
}

/* Replays one segment of the chain up to `limit`, the seq of the next head (UINT64_MAX: the tip).
 */
static span_status segment_replay(struct recovery *r, const struct found *f,
                                  const struct buf *bytes, bool first, uint64_t limit,
                                  uint64_t unreadable)
{
    uint64_t at = SEG_SECTOR_BYTES;
    uint64_t seq = f->head.seq;
    struct unit u;
    span_status st = SPAN_OK;
    while (st == SPAN_OK && seq < limit) {
        bool head = at == SEG_SECTOR_BYTES;
        if (!unit_check(bytes->data, f->bytes, at, f->id, r->w->store_id, &u) || u.seq != seq ||
            ((u.flags & UNIT_HEAD) != 0) != head) {
            if (limit == UINT64_MAX) {
                INVARIANT(f == r->tip && at == r->tip_end);
                return SPAN_OK;
            }
            if (unreadable != UINT64_MAX && unreadable + READ_PIECE_BYTES > at) {
                return unreadable_fail(r, f, unreadable);
            }
            return span_fail(r->err, SPAN_CORRUPT,
                             "%s/%s: bad bytes at offset %" PRIu64 ": unit %" PRIu64
                             " was durable (a later segment says so) but does not check out",
                             r->w->fs->dir, f->name, at, seq);
        }
        unit_note(r, &u);
        if (!head || first) {
            st = unit_replay(r, f, at, &u);
        } else if (!head_repeats(r, &u) && !PLANTED(HARD_STATE_RECYCLED)) {
            st = span_fail(r->err, SPAN_CORRUPT,
                           "%s/%s: the state repeated at offset %" PRIu64
                           " differs from what the log before it says",
                           r->w->fs->dir, f->name, at);
        }
        r->units++;
        at += u.bytes;
        seq++;
    }
    return st;
}

static span_status chain_replay(struct recovery *r)
{
    if (r->tip == NULL) {
        return SPAN_OK;
    }
    struct found **chain = span_calloc(r->file_count, sizeof(struct found *));
    size_t n = 0;
    span_status st = chain_find(r, chain, &n);
    for (size_t i = 0; st == SPAN_OK && i < n; i++) {
        struct found *f = chain[i];
        if (f == r->tip) {
            st = segment_replay(r, f, &r->tip_bytes, i == 0, UINT64_MAX, UINT64_MAX);
        } else {
            uint64_t unreadable;
            segment_read(r, f, f->bytes, &r->chain_bytes, &unreadable);
            st = segment_replay(r, f, &r->chain_bytes, i == 0, chain[i + 1]->head.seq, unreadable);
        }
        if (st == SPAN_OK) {
            list_push_back(&r->w->chain, &f->seg->link);
        }
    }
    span_free(chain);
    return st;
}

/* ---- Making it ready for writing ---- */

/* Offset of the first unit of the tip that no unit proves durable. */
static uint64_t unproven_at(struct recovery *r)
{
    uint64_t at = SEG_SECTOR_BYTES;
    struct unit u;
    while (at < r->tip_end) {
        bool ok = unit_check(r->tip_bytes.data, r->tip->bytes, at, r->tip->id, r->w->store_id, &u);
        INVARIANT(ok);
        if (u.seq > r->durable) {
            break;
        }
        at += u.bytes;
    }
    return at;
}

static span_status tail_secure(struct recovery *r)
{
    struct wal *w = r->w;
    const struct wal_fs_ops *ops = w->fs->ops;
    span_status st = leftovers_clear(r);
    if (st == SPAN_OK && r->tip != NULL) {
        uint64_t at = unproven_at(r);
        struct found *t = r->tip;
        if (at < r->tip_end) {
            st = ops->write(w->fs, t->seg->file, at, r->tip_bytes.data + at,
                            (size_t)(r->tip_end - at), r->err);
        }
        if (st == SPAN_OK) {
            st = ops->sync(w->fs, t->seg->file, r->err);
        }
    }
    return st;
}

/* Spares, leftovers from before `oldest`, and segments that were never linked. */
static void files_sort_out(struct recovery *r)
{
    struct wal *w = r->w;
    for (size_t i = 0; i < r->file_count; i++) {
        struct found *f = &r->files[i];
        if (!list_is_empty(&f->seg->link)) {
            continue; /* in the chain */
        }
        if (r->tip == NULL || f->id > r->tip->id) {
            list_push_back(&w->spares, &f->seg->link);
        } else {
            f->seg->bytes = f->id < r->oldest ? f->bytes : 0; /* 0: not to be used again */
            list_push_back(&w->garbage, &f->seg->link);
            w->garbage_count++;
        }
    }
}

/* Leaves w as the writer expects it. */
static span_status writer_ready(struct recovery *r)
{
    struct wal *w = r->w;
    span_status st = SPAN_OK;
    files_sort_out(r);
    w->newest = r->file_count == 0 ? 0 : r->files[r->file_count - 1].id;
    w->oldest = r->oldest;
    w->seq = r->last_seq;
    w->data_seq = r->last_seq; /* may be an empty unit: one more does no harm */
    w->announced_durable = r->durable;
    w->announced_newest = r->newest;
    w->active = r->tip == NULL ? NULL : r->tip->seg;
    w->stats.recovered_units = r->units;
    atomic_store(&w->sticky_bytes, w->index.sticky_bytes);
    if (r->has_reserve && st == SPAN_OK) {
        struct wal_file *f;
        uint64_t size = 0;
        st = w->fs->ops->open(w->fs, WAL_RESERVE_NAME, false, &f, r->err);
        if (st == SPAN_OK) {
            st = w->fs->ops->size(w->fs, f, &size, r->err);
            w->fs->ops->close(w->fs, f);
        }
        w->reserve_present = size == w->opt.segment_bytes;
    }
    if (st == SPAN_OK && list_is_empty(&w->spares) && w->active == NULL) {
        st = wal_prepare_spare(w, r->err);
    }
    if (st == SPAN_OK && !r->has_identity) {
        struct buf identity = {0};
        identity_encode(w->store_id, &identity);
        st = wal_write_small(w, WAL_IDENTITY_NAME, buf_slice(&identity), r->err);
        buf_deinit(&identity);
    }
    if (st == SPAN_OK && r->has_clean) {
        st = w->fs->ops->unlink(w->fs, WAL_CLEAN_NAME, r->err);
        if (st == SPAN_OK) {
            st = w->fs->ops->sync_dir(w->fs, r->err);
        }
    }
    return st;
}

span_status wal_recover(struct wal *w, wal_replay_fn *replay, void *replay_ctx,
                        struct span_error *err)
{
    struct recovery r = {.w = w, .replay = replay, .replay_ctx = replay_ctx, .err = err};
    span_status st = files_find(&r);
    if (st == SPAN_OK && r.tip != NULL) {
        st = tip_scan(&r);
    }
    if (st == SPAN_OK) {
        st = first_check(&r);
    }
    if (st == SPAN_OK) {
        st = past_end(&r);
    }
    if (st == SPAN_OK) {
        st = clean_check(&r);
    }
    if (st == SPAN_OK) {
        st = spares_check(&r);
    }
    if (st == SPAN_OK) {
        st = chain_replay(&r);
    }
    if (st == SPAN_OK) {
        st = tail_secure(&r);
    }
    if (st == SPAN_OK) {
        st = writer_ready(&r);
    }
    if (st == SPAN_OK) {
        SPAN_LOG(INFO, "log opened",
                 "dir=\"%s\" units=%" PRIu64 " last_unit=%" PRIu64 " cut_bytes=%" PRIu64,
                 w->fs->dir, r.units, r.last_seq, w->stats.recovered_cut_bytes);
    }
    /* Files not handed over to the log's lists. */
    for (size_t i = 0; i < r.file_count; i++) {
        if (r.files[i].seg != NULL && list_is_empty(&r.files[i].seg->link)) {
            wal_index_deinit(&w->index); /* its pins may point into the segment */
            wal_index_init(&w->index);
            wal_segment_free(w, r.files[i].seg);
        }
    }
    buf_deinit(&r.tip_bytes);
    buf_deinit(&r.chain_bytes);
    span_free(r.leftovers);
    span_free(r.files);
    return st;
}
