/* What the parts of the engine share: the engine itself, its memory generations, the writer that
 * turns a generation into rows. Private to shard/engine.
 *
 *   worker                                             flusher
 *   active generation   <- engine_put
 *   frozen, newest ..                                  job: reads the frozen ones, writes the file
 *   frozen, oldest                                          on a connection of its own
 *   view: long-lived read transaction of the file
 *
 * Every generation has a number (seq); the file holds the number of the newest one written to it.
 * So "is this generation in the file I am looking at" is a comparison, made by the worker before it
 * drops one (rule H6) and by the flusher before it writes one, and a flush that was repeated after
 * an error does nothing twice. */
#ifndef SPAN_SHARD_ENGINE_ENGINE_INTERNAL_H
#define SPAN_SHARD_ENGINE_ENGINE_INTERNAL_H

#include "base/list.h"
#include "shard/engine/engine_sqlite.h"
#include "shard/engine/memtable.h"

struct generation {
    struct list link;
    uint64_t seq;
    struct memtable rows;
    struct memtable meta;
    struct file_state state; /* as of the freeze, with this seq */
};

/* Generations waiting to be written; more only arise while flushes fail, and then the active one
 * just grows until the caller refuses work. */
#define FROZEN_MAX 8

enum query {
    Q_CURRENT_GET,
    Q_HISTORY_GET,
    Q_HISTORY_NEWEST,
    Q_META_GET,
    Q_CURRENT_ASC,
    Q_CURRENT_DESC,
    Q_HISTORY_ASC,
    Q_HISTORY_DESC,
    Q_META_ASC,
    QUERY_COUNT,
};

/* The file as the worker sees it: one read transaction, kept open because a read inside costs 1.5
 * us and one that opens its own 5 us (probes 2.5), renewed after each flush. */
struct file_view {
    struct file_db conn;
    bool open; /* the transaction; the fields below are its content */
    struct file_state state;
    bool has_history;
    bool has_meta;
    bool has_current;
    struct buf current_min; /* keys outside [min, max] need no look at the file */
    struct buf current_max;
    sqlite3_stmt *queries[QUERY_COUNT]; /* prepared when first used */
};

/* Where history's garbage collection stands: it goes through the table in key order, a chunk a
 * flush, because an index by end_ts would cost every flush more than the scan does. */
struct gc_state {
    struct buf cursor; /* the pass goes on after this key */
    bool in_pass;
    uint64_t min_end;   /* no row of history has a smaller end_ts */
    uint64_t pass_min;  /* smallest end_ts left in the part already passed */
    uint64_t added_min; /* smallest end_ts written since the pass began */
};

enum write {
    W_CURRENT_SET,
    W_CURRENT_DELETE,
    W_MOVE,
    W_HISTORY_ADD,
    W_META_SET,
    W_META_DELETE,
    WRITE_COUNT,
};

struct writer {
    struct file_db conn;
    sqlite3_stmt *stmts[WRITE_COUNT];
    bool has_rows;      /* of `current`, when the present generation was begun */
    struct buf max_key; /* largest key then: above it there is nothing to overwrite */
    uint64_t rows;      /* versions written */
    uint64_t min_end;   /* smallest end_ts written */
};

struct builder {
    struct file_name name;
    struct writer writer;
};

/* The right file of a split to come (engine_split_ahead). */
struct ahead {
    enum engine_ahead state; /* NONE: nothing else counts */
    struct buf key;
    uint64_t right_range_id;
    uint64_t right_generation;
    struct builder builder; /* READY: holds the rows of the left file as of generation seq */
    uint64_t seq;
    /* in a job: how far the copy has come */
    bool building;      /* builder is open */
    unsigned part;      /* of the file, see part_of in engine_split.c */
    struct buf lo;      /* next key of the part */
    span_status status; /* FAILED */
};

struct engine {
    struct file_name name;
    struct file_view view;
    struct generation *active;
    struct list frozen; /* oldest first */
    unsigned frozen_count;
    struct list dropped; /* in the file; freed by the flusher, because giving back megabytes takes
                            the worker too long */
    uint64_t next_seq;
    struct file_state state; /* as applied; state.seq unused, state.trim: rows to cut off */
    uint64_t merged_max_ts;  /* newest that stood in the files of ranges taken in */
    uint64_t durable;
    bool open_entry;       /* changes since the last engine_set_applied */
    bool partial_backfill; /* a checkpoint has copied pages without syncing them: see engine_flush.c
                            */
    struct gc_state gc;
    struct engine_job *job;
    struct ahead ahead;
    struct buf scratch; /* value of the last point read */
    struct buf resume;  /* of the last scan */
    struct span_error error;
    bool damaged; /* the file gave back what was never written */
};

/* Files keep no tombstones: what was deleted may be as new as this (rule D0). */
static inline uint64_t engine_deleted_max_ts(const struct engine *e)
{
    uint64_t file = e->view.state.max_ts;
    return file > e->merged_max_ts ? file : e->merged_max_ts;
}

/* The statement of the view, prepared if need be; opens the view's transaction if there is none. */
SPAN_CHECKED span_status view_query(struct engine *e, enum query q, sqlite3_stmt **out);
/* Ends the read transaction, begins a new one, and moves the generations it holds to `dropped`. */
SPAN_CHECKED span_status view_renew(struct engine *e);
/* Moves generations up to seq to `dropped`. */
void view_drop(struct engine *e, uint64_t seq);
SPAN_CHECKED span_status view_ensure(struct engine *e);
/* Whether key can be in the view's `current`. */
bool view_may_have(const struct engine *e, struct slice key);
/* Logs and keeps the error of a failed read; returns its status. CORRUPT: the file is damaged. */
span_status engine_note_error(struct engine *e, span_status st);

/* The generations newest first: gen_newest, then gen_older until NULL. */
static inline struct generation *gen_newest(const struct engine *e)
{
    return e->active;
}

static inline struct generation *gen_older(const struct engine *e, const struct generation *g)
{
    struct list *at = g == e->active ? e->frozen.prev : g->link.prev;
    return at == &e->frozen ? NULL : LIST_ENTRY(at, struct generation, link);
}

struct generation *generation_new(uint64_t seq);
void generation_free(struct generation *g);
void generations_free(struct list *head);

/* ---- writer: rows into a file, by the flusher, a restore or a split ----------------------------
 */

typedef bool writer_filter(void *ctx, struct slice key);

SPAN_CHECKED span_status writer_open(struct writer *w, const struct file_name *name, bool create,
                                     struct span_error *err);
void writer_close(struct writer *w);
SPAN_CHECKED span_status writer_prepare(struct writer *w, struct span_error *err);
/* The rows of a generation whose keys pass the filter: newest version into current, what it and its
 * elders overwrote after horizon into history. */
SPAN_CHECKED span_status writer_put_rows(struct writer *w, const struct memtable *rows,
                                         uint64_t horizon, writer_filter *filter, void *ctx,
                                         struct span_error *err);
SPAN_CHECKED span_status writer_put_meta(struct writer *w, const struct memtable *meta,
                                         struct span_error *err);
/* Single rows, for building a file. */
SPAN_CHECKED span_status writer_current(struct writer *w, struct slice key, uint64_t ts,
                                        struct slice value, struct span_error *err);
SPAN_CHECKED span_status writer_history(struct writer *w, struct slice key, uint64_t ts,
                                        uint64_t end_ts, struct slice value,
                                        struct span_error *err);
SPAN_CHECKED span_status writer_meta(struct writer *w, struct slice key, struct slice value,
                                     struct span_error *err);

/* ---- builder: a whole file that is complete or recognisably not ---------------------------------
 */

/* EXISTS when a complete file is there; an unfinished one is removed. On an error nothing is held.
 */
SPAN_CHECKED span_status builder_begin(struct builder *b, const struct engine_options *opt,
                                       struct span_error *err);
/* Syncs and completes the file, or removes it on an error. The builder is gone after it. */
SPAN_CHECKED span_status builder_finish(struct builder *b, const struct file_state *s,
                                        struct span_error *err);
void builder_abort(struct builder *b);
/* What was written so far is on disk; more may follow. The rest of it is short then. */
SPAN_CHECKED span_status builder_sync(struct builder *b, struct span_error *err);

/* ---- split ---- */

/* Copies a piece of the right side out of the file that name names, which nobody writes meanwhile,
 * into a->builder, and syncs it; a->state is READY after the last one. Any thread; on an error
 * nothing is held. */
SPAN_CHECKED span_status split_copy_ahead(const struct file_name *name, struct ahead *a,
                                          struct span_error *err);
void ahead_deinit(struct ahead *a);
/* Whether the flusher works for e->job on the right file of a split. */
bool job_builds_ahead(const struct engine_job *job);
uint64_t job_ahead_range(const struct engine_job *job);

#endif
