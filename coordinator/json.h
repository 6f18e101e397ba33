/* JSON text, only what a printer needs. */
#ifndef SPAN_COORDINATOR_JSON_H
#define SPAN_COORDINATOR_JSON_H

#include "base/buf.h"

/* Appends s as a quoted JSON string. Bytes that are not UTF-8 are passed on as they are. */
void json_append_string(struct buf *out, struct slice s);

#endif
