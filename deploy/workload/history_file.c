/* The writer of history files: see history_file.h. */
#include "deploy/workload/history_file.h"

#include "base/alloc.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

struct history_file {
    pthread_mutex_t lock; /* over all that follows */
    FILE *file;
    char *path;
    uint64_t count;
    struct buf line;
};

span_status history_file_open(const char *path, const char *kind, const char *header,
                              struct history_file **out, struct span_error *err)
{
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        return span_fail(err, SPAN_IO, "%s: %s", path, strerror(errno));
    }
    struct history_file *f = SPAN_NEW(struct history_file);
    pthread_mutex_init(&f->lock, NULL);
    f->file = file;
    f->path = span_strdup(path);
    buf_init(&f->line);
    (void)fprintf(file, "{\"spanlite_history\":1,\"kind\":\"%s\"%s}\n", kind, header);
    *out = f;
    return SPAN_OK;
}

void history_file_add(struct history_file *f, const struct history_record *r)
{
    static const char *const told[] = {"ok", "fail", "unknown"};
    pthread_mutex_lock(&f->lock);
    buf_clear(&f->line);
    buf_printf(&f->line,
               "{\"client\":%" PRIu64 ",\"start\":%" PRIu64 ",\"end\":%" PRIu64
               ",\"outcome\":\"%s\"",
               r->client, r->start, r->end, told[r->told]);
    if (r->ts != 0) {
        buf_printf(&f->line, ",\"ts\":%" PRIu64, r->ts);
    }
    buf_append_str(&f->line, r->as_of ? ",\"as_of\":true,\"ops\":[" : ",\"ops\":[");
    buf_append_slice(&f->line, buf_slice(&r->ops));
    buf_append_str(&f->line, "]}\n");
    (void)fwrite(f->line.data, 1, f->line.size, f->file); /* ferror tells at the end */
    f->count++;
    pthread_mutex_unlock(&f->lock);
}

span_status history_file_close(struct history_file *f, bool whole, struct span_error *err)
{
    span_status st = SPAN_OK;
    if (f == NULL) {
        return SPAN_OK;
    }
    if (whole) {
        (void)fprintf(f->file, "{\"end\":true,\"transactions\":%" PRIu64 "}\n", f->count);
    }
    bool bad = ferror(f->file) != 0;
    bad = fclose(f->file) != 0 || bad;
    if (bad) {
        st = span_fail(err, SPAN_IO, "%s: the history could not be written: %s", f->path,
                       strerror(errno));
    }
    (void)pthread_mutex_destroy(&f->lock);
    buf_deinit(&f->line);
    span_free(f->path);
    span_free(f);
    return st;
}

void history_record_clear(struct history_record *r)
{
    buf_clear(&r->ops);
    r->ts = 0;
    r->as_of = false;
}

static void begin_op(struct history_record *r, const char *op)
{
    buf_printf(&r->ops, "%s[\"%s\",", r->ops.size == 0 ? "" : ",", op);
}

void history_record_value(struct history_record *r, const char *op, uint64_t key, int64_t value)
{
    begin_op(r, op);
    buf_printf(&r->ops, "%" PRIu64 ",%" PRId64 "]", key, value);
}

void history_record_read(struct history_record *r, uint64_t key, const char *json)
{
    begin_op(r, "r");
    buf_printf(&r->ops, "%" PRIu64 ",%s]", key, json);
}

void history_record_transfer(struct history_record *r, uint64_t from, uint64_t to, int64_t amount)
{
    begin_op(r, "transfer");
    buf_printf(&r->ops, "%" PRIu64 ",%" PRIu64 ",%" PRId64 "]", from, to, amount);
}
