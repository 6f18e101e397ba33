/* Segment files: made ahead of time, used again, thrown away; all off the writer's path.
 *
 * A spare is complete (zeros or an older life's bytes, a synced header with its new id) before it
 * gets its final name, and the directory is synced before the writer may use it: so taking it costs
 * the writer nothing but its first unit. A file is used again by renaming it to prepare.tmp first
 * and syncing the directory, so that a crash never leaves a segment's name on another segment's
 * header.
 *
 * Disk full: making a spare fails with NO_SPACE; then the reserve file becomes the spare (renamed,
 * so nobody can snatch the space) and the log says WAL_LOW_SPACE; it is made again when there is
 * room. */
#include "base/alloc.h"
#include "base/failpoint.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "shard/wal/wal_internal.h"

#include <inttypes.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define PREPARE_RETRY_NS (200 * MS_NS)
#define RESERVE_RETRY_NS (2 * SEC_NS)

struct wal_segment *wal_segment_new(uint64_t id, uint64_t bytes)
{
    struct wal_segment *s = SPAN_NEW(struct wal_segment);
    list_init(&s->link);
    s->id = id;
    s->bytes = bytes;
    s->offset = SEG_SECTOR_BYTES;
    wal_pins_init(&s->pins);
    return s;
}

void wal_segment_free(struct wal *w, struct wal_segment *s)
{
    list_remove(&s->link);
    if (s->file != NULL) {
        w->fs->ops->close(w->fs, s->file);
    }
    span_free(s);
}

void wal_segment_retire(struct wal *w, struct wal_segment *s)
{
    INVARIANT(wal_pins_is_empty(&s->pins));
    list_remove(&s->link);
    list_push_back(&w->garbage, &s->link);
    w->garbage_count++;
    pthread_cond_signal(&w->prepare_cond);
}

span_status wal_write_small(struct wal *w, const char *name, struct slice contents,
                            struct span_error *err)
{
    const struct wal_fs_ops *ops = w->fs->ops;
    char *tmp = span_asprintf("%s.tmp", name);
    struct wal_file *f = NULL;
    span_status st = ops->open(w->fs, tmp, true, &f, err);
    if (st == SPAN_OK) {
        st = ops->write(w->fs, f, 0, contents.data, contents.size, err);
    }
    if (st == SPAN_OK) {
        st = ops->sync(w->fs, f, err);
    }
    if (f != NULL) {
        ops->close(w->fs, f);
    }
    if (st == SPAN_OK) {
        st = ops->rename(w->fs, tmp, name, err);
    }
    if (st == SPAN_OK) {
        st = ops->sync_dir(w->fs, err);
    }
    span_free(tmp);
    return st;
}

static span_status unlink_quietly(struct wal *w, const char *name)
{
    struct span_error err;
    span_status st = w->fs->ops->unlink(w->fs, name, &err);
    if (st != SPAN_OK && st != SPAN_NOT_FOUND) {
        SPAN_LOG(WARN, "cannot remove a log file", "error=\"%s\"", err.text);
    }
    return st;
}

static span_status injected(const struct wal *w, const char *name, struct span_error *err)
{
    return span_fail(err, SPAN_IO, "%s/%s: injected at a failpoint: Input/output error", w->fs->dir,
                     name);
}

/* Fills a new file called `name` with zeros; leaves nothing behind when it fails. Not begun unless
 * `room` bytes are free: trying again and again on a full disk would each time take the last ones
 * from SQLite, which needs them to flush and so to make room. */
static span_status make_zeros(struct wal *w, const char *name, uint64_t room,
                              struct span_error *err)
{
    const struct wal_fs_ops *ops = w->fs->ops;
    struct wal_file *f = NULL;
    uint64_t free_bytes = 0;
    span_status st = ops->space(w->fs, &free_bytes, err);
    if (st == SPAN_OK && free_bytes < room) {
        st = span_fail(err, SPAN_NO_SPACE, "%s/%s: no room, %" PRIu64 " bytes are left on the disk",
                       w->fs->dir, name, free_bytes);
    }
    if (st == SPAN_OK) {
        st = ops->open(w->fs, name, true, &f, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    st = FAILPOINT(WAL_SPARE_ZERO) ? injected(w, name, err)
                                   : ops->zero_fill(w->fs, f, 0, w->opt.segment_bytes, err);
    if (st == SPAN_OK) {
        st = ops->sync(w->fs, f, err);
    }
    ops->close(w->fs, f);
    if (st != SPAN_OK) {
        (void)unlink_quietly(w, name);
    }
    return st;
}

/* Renames `from` to prepare.tmp, durably. */
static span_status take_over(struct wal *w, const char *from, struct span_error *err)
{
    span_status st = FAILPOINT(WAL_RECYCLE_RENAME)
                         ? injected(w, from, err)
                         : w->fs->ops->rename(w->fs, from, WAL_TMP_NAME, err);
    FAILPOINT_MARK(WAL_RECYCLE_RENAMED);
    return st != SPAN_OK ? st : w->fs->ops->sync_dir(w->fs, err);
}

static struct wal_segment *garbage_pop(struct wal *w)
{
    struct wal_segment *g = NULL;
    pthread_mutex_lock(&w->s_mu);
    if (!list_is_empty(&w->garbage)) {
        g = LIST_ENTRY(w->garbage.next, struct wal_segment, link);
        list_remove(&g->link);
        w->garbage_count--;
    }
    pthread_mutex_unlock(&w->s_mu);
    if (g != NULL && g->file != NULL) {
        w->fs->ops->close(w->fs, g->file);
        g->file = NULL;
    }
    return g;
}

static void garbage_unlink(struct wal *w, struct wal_segment *g)
{
    char name[SEG_NAME_BYTES];
    seg_name(g->id, name);
    (void)unlink_quietly(w, name);
    wal_segment_free(w, g);
}

/* Gets a file of the right size called prepare.tmp from wherever there is one. */
static span_status raw_file(struct wal *w, bool *recycled, struct span_error *err)
{
    *recycled = w->tmp_ready;
    if (w->tmp_ready) {
        return SPAN_OK; /* naming it failed the last time */
    }
    struct wal_segment *g;
    while ((g = garbage_pop(w)) != NULL) {
        char name[SEG_NAME_BYTES];
        seg_name(g->id, name);
        bool fits = g->bytes == w->opt.segment_bytes;
        if (fits && take_over(w, name, err) == SPAN_OK) {
            wal_segment_free(w, g);
            *recycled = true;
            return SPAN_OK;
        }
        garbage_unlink(w, g);
    }
    span_status st = make_zeros(w, WAL_TMP_NAME, w->opt.segment_bytes, err);
    if (st != SPAN_NO_SPACE) {
        return st;
    }
    pthread_mutex_lock(&w->s_mu);
    bool have = w->reserve_present;
    w->reserve_present = false;
    pthread_mutex_unlock(&w->s_mu);
    if (!have) {
        return st;
    }
    atomic_store(&w->reserve_used, true);
    struct span_error full = *err;
    st = take_over(w, WAL_RESERVE_NAME, err);
    if (st == SPAN_OK) {
        wal_state_move(w, WAL_RUNNING, WAL_LOW_SPACE, full.text);
        *recycled = true;
    }
    return st;
}

/* Writes the header of segment `id` into prepare.tmp and gives the file its name. */
static span_status name_file(struct wal *w, uint64_t id, struct wal_segment **out,
                             struct span_error *err)
{
    const struct wal_fs_ops *ops = w->fs->ops;
    struct wal_segment *s = wal_segment_new(id, w->opt.segment_bytes);
    uint8_t sector[SEG_SECTOR_BYTES];
    char name[SEG_NAME_BYTES];
    seg_name(id, name);
    seg_header_encode(&(struct seg_header){id, w->store_id, s->bytes}, sector);
    span_status st = ops->open(w->fs, WAL_TMP_NAME, false, &s->file, err);
    if (st == SPAN_OK) {
        st = FAILPOINT(WAL_SPARE_HEADER)
                 ? injected(w, WAL_TMP_NAME, err)
                 : ops->write(w->fs, s->file, 0, sector, sizeof sector, err);
    }
    if (st == SPAN_OK) {
        st = ops->sync(w->fs, s->file, err);
    }
    if (s->file != NULL) {
        ops->close(w->fs, s->file); /* opened again below, so that messages name it rightly */
        s->file = NULL;
    }
    if (st == SPAN_OK) {
        st = FAILPOINT(WAL_SPARE_RENAME) ? injected(w, WAL_TMP_NAME, err)
                                         : ops->rename(w->fs, WAL_TMP_NAME, name, err);
        w->tmp_ready = st != SPAN_OK;
        FAILPOINT_MARK(WAL_SPARE_NAMED);
    }
    if (st == SPAN_OK) {
        st = ops->sync_dir(w->fs, err);
    }
    if (st == SPAN_OK) {
        st = ops->open(w->fs, name, false, &s->file, err);
    }
    if (st != SPAN_OK) {
        /* The name may be there: a later attempt must replace it, so the id is not used up. */
        wal_segment_free(w, s);
        return st;
    }
    *out = s;
    return SPAN_OK;
}

span_status wal_prepare_spare(struct wal *w, struct span_error *err)
{
    pthread_mutex_lock(&w->s_mu);
    uint64_t id = w->newest + 1;
    pthread_mutex_unlock(&w->s_mu);
    bool recycled;
    struct wal_segment *s = NULL;
    span_status st = raw_file(w, &recycled, err);
    if (st == SPAN_OK) {
        w->tmp_ready = true;
        st = name_file(w, id, &s, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    FAILPOINT_MARK(WAL_SPARE_READY);
    pthread_mutex_lock(&w->s_mu);
    w->newest = id;
    list_push_back(&w->spares, &s->link);
    w->stats.recycled += recycled ? 1 : 0;
    w->stats.created += recycled ? 0 : 1;
    pthread_mutex_unlock(&w->s_mu);
    /* A unit that names it must be on disk before the file is used, so that its loss shows. */
    wal_mark_request(w);
    return SPAN_OK;
}

/* ---- The preparer ---- */

enum prepare_work { PREPARE_NOTHING, PREPARE_SPARE, PREPARE_UNLINK, PREPARE_RESERVE };

/* s_mu held. *at: when to look again if there is nothing to do now. */
static enum prepare_work work_get(const struct wal *w, uint64_t now, uint64_t *at)
{
    *at = UINT64_MAX;
    if (list_is_empty(&w->spares)) {
        if (w->prepare_wanted || now >= w->prepare_retry_ns || w->garbage_count != 0) {
            return PREPARE_SPARE;
        }
        *at = w->prepare_retry_ns;
    }
    if (w->garbage_count > WAL_RECYCLE_MAX) {
        return PREPARE_UNLINK;
    }
    if (!w->reserve_present && !w->opt.no_reserve && !list_is_empty(&w->spares)) {
        if (now >= w->reserve_retry_ns) {
            return PREPARE_RESERVE;
        }
        *at = w->reserve_retry_ns < *at ? w->reserve_retry_ns : *at;
    }
    return PREPARE_NOTHING;
}

static void do_spare(struct wal *w)
{
    struct span_error err = {0};
    span_status st = wal_prepare_spare(w, &err);
    pthread_mutex_lock(&w->s_mu);
    w->prepare_wanted = false;
    w->prepare_attempts++;
    w->prepare_status = st;
    w->prepare_error = err;
    w->prepare_retry_ns = st == SPAN_OK ? 0 : wal_now(w) + PREPARE_RETRY_NS;
    pthread_cond_broadcast(&w->spare_cond);
    pthread_mutex_unlock(&w->s_mu);
    if (st != SPAN_OK) {
        SPAN_LOG(WARN, "cannot prepare a log segment", "error=\"%s\"", err.text);
    }
}

static void do_reserve(struct wal *w)
{
    struct span_error err = {0};
    span_status st = FAILPOINT(WAL_RESERVE)
                         ? injected(w, WAL_RESERVE_NAME, &err)
                         : make_zeros(w, WAL_RESERVE_NAME, 2 * w->opt.segment_bytes, &err);
    if (st == SPAN_OK) {
        st = w->fs->ops->sync_dir(w->fs, &err);
    }
    pthread_mutex_lock(&w->s_mu);
    w->reserve_present = st == SPAN_OK;
    w->reserve_retry_ns = wal_now(w) + RESERVE_RETRY_NS;
    pthread_mutex_unlock(&w->s_mu);
    if (st == SPAN_OK || st == SPAN_NO_SPACE) {
        atomic_store(&w->reserve_used, st != SPAN_OK);
    }
    if (st == SPAN_OK) {
        wal_state_move(w, WAL_LOW_SPACE, WAL_RUNNING, "there is room on the disk again");
    } else if (st == SPAN_NO_SPACE) {
        wal_state_move(w, WAL_RUNNING, WAL_LOW_SPACE, err.text);
    } else {
        SPAN_LOG(WARN, "cannot make the log's reserve file", "error=\"%s\"", err.text);
    }
}

static void do_work(struct wal *w, enum prepare_work work)
{
    switch (work) {
    case PREPARE_NOTHING:
        break;
    case PREPARE_SPARE:
        do_spare(w);
        break;
    case PREPARE_UNLINK: {
        struct wal_segment *g = garbage_pop(w);
        if (g != NULL) {
            garbage_unlink(w, g);
        }
        break;
    }
    case PREPARE_RESERVE:
        do_reserve(w);
        break;
    }
}

bool wal_prepare_run(struct wal *w)
{
    bool did = false;
    for (;;) {
        uint64_t at;
        pthread_mutex_lock(&w->s_mu);
        enum prepare_work work = work_get(w, wal_now(w), &at);
        pthread_mutex_unlock(&w->s_mu);
        if (work == PREPARE_NOTHING) {
            return did;
        }
        do_work(w, work);
        did = true;
        if (work == PREPARE_SPARE && w->prepare_status != SPAN_OK) {
            return did; /* its pause may be over at once on a clock that stands still */
        }
    }
}

void *wal_prepare_main(void *arg)
{
    struct wal *w = arg;
    prctl(PR_SET_NAME, "wal-prepare");
    log_set_node(w->opt.node);
    pthread_mutex_lock(&w->s_mu);
    while (!w->prepare_stop) {
        uint64_t at;
        uint64_t now = wal_now(w);
        enum prepare_work work = work_get(w, now, &at);
        if (work != PREPARE_NOTHING) {
            pthread_mutex_unlock(&w->s_mu);
            do_work(w, work);
            pthread_mutex_lock(&w->s_mu);
        } else if (at == UINT64_MAX) {
            pthread_cond_wait(&w->prepare_cond, &w->s_mu);
        } else {
            struct timespec ts;
            clock_gettime(CLOCK_MONOTONIC, &ts);
            uint64_t until = (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec + (at - now);
            ts = (struct timespec){(time_t)(until / SEC_NS), (long)(until % SEC_NS)};
            pthread_cond_timedwait(&w->prepare_cond, &w->s_mu, &ts);
        }
    }
    pthread_mutex_unlock(&w->s_mu);
    return NULL;
}

span_status wal_spare_get(struct wal *w, struct wal_segment **out, struct span_error *err)
{
    span_status st = SPAN_OK;
    pthread_mutex_lock(&w->s_mu);
    if (list_is_empty(&w->spares) && !w->threads_running) {
        pthread_mutex_unlock(&w->s_mu);
        do_spare(w);
        pthread_mutex_lock(&w->s_mu);
    }
    /* An attempt under way counts; if it began before there was room, the next round finds it. One
     * that ended well is not enough: its spare may be the one that was taken before, if it was put
     * in the list, found and used up before the attempt was counted. */
    uint64_t attempts = w->prepare_attempts;
    while (list_is_empty(&w->spares) && w->threads_running &&
           (w->prepare_attempts == attempts || w->prepare_status == SPAN_OK)) {
        attempts = w->prepare_attempts;
        w->prepare_wanted = true;
        pthread_cond_signal(&w->prepare_cond);
        pthread_cond_wait(&w->spare_cond, &w->s_mu);
    }
    if (list_is_empty(&w->spares)) {
        st = w->prepare_status;
        INVARIANT(st != SPAN_OK);
        if (err != NULL) {
            *err = w->prepare_error;
        }
    } else {
        *out = LIST_ENTRY(w->spares.next, struct wal_segment, link);
    }
    pthread_mutex_unlock(&w->s_mu);
    return st;
}
