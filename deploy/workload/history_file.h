/* Recording a history: what clients did, when, and what they were told, for `spanlite check`. The
 * format is tests/check/README.md's, version 1. A line is made in a struct history_record by one
 * thread and added whole; any thread may add. Without its last line, which closing writes, a file
 * is refused, so a recorder that died leaves nothing that could be misread. */
#ifndef SPAN_DEPLOY_WORKLOAD_HISTORY_FILE_H
#define SPAN_DEPLOY_WORKLOAD_HISTORY_FILE_H

#include "base/buf.h"
#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

struct history_file;

enum history_told { HISTORY_TOLD_OK, HISTORY_TOLD_FAIL, HISTORY_TOLD_UNKNOWN };

/* One transaction; ops is filled by the functions below. Reused: history_record_clear. */
struct history_record {
    uint64_t client;
    uint64_t start; /* CLOCK_MONOTONIC, before its first statement was sent */
    uint64_t end;   /* after its last answer */
    uint64_t ts;    /* commit timestamp; 0: not known */
    bool as_of;
    enum history_told told;
    struct buf ops;
};

/* Makes the file anew. header: further members of the first line, such as ",\"accounts\":10"; ""
 * for none. IO: the text names the file. */
SPAN_CHECKED span_status history_file_open(const char *path, const char *kind, const char *header,
                                           struct history_file **out, struct span_error *err);
void history_file_add(struct history_file *f, const struct history_record *r);
/* Writes the last line if `whole`, and frees f (NULL is ignored). IO: something was not written. */
SPAN_CHECKED span_status history_file_close(struct history_file *f, bool whole,
                                            struct span_error *err);

void history_record_clear(struct history_record *r);
/* ["append",key,value], ["w",key,value]; ["r",key,text] with a JSON value as text; and so on. */
void history_record_value(struct history_record *r, const char *op, uint64_t key, int64_t value);
void history_record_read(struct history_record *r, uint64_t key, const char *json);
void history_record_transfer(struct history_record *r, uint64_t from, uint64_t to, int64_t amount);

#endif
