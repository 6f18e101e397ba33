/* Faults to inject through the HTTP port: POST /debug/faults?name=value&..., with --enable-faults.
 *
 *     peer=N (0 or none: all) with out. and in. cut=0|1, drop, duplicate, reorder (0 to 1),
 * delay_ms, jitter_ms: replaces all faults towards that peer; clear=1 takes them away
 *     clock.offset_ms, clock.drift_ppm       of an emulated clock; one of them leaves the other
 *     disk.sync_delay_ms, disk.fail_syncs (-1: all), disk.no_space=0|1
 *
 * All of a request is checked before any of it is applied. */
#ifndef SPAN_COORDINATOR_SERVER_FAULTS_H
#define SPAN_COORDINATOR_SERVER_FAULTS_H

#include "base/status.h"
#include "coordinator/http.h"

#include <stdbool.h>

/* In the order of the table in server_faults.c; the paths' six stand in one order. */
enum fault_name {
    FAULT_PEER,
    FAULT_CLEAR,
    FAULT_OUT, /* cut, drop, duplicate, reorder, delay_ms, jitter_ms */
    FAULT_IN = FAULT_OUT + 6,
    FAULT_CLOCK_OFFSET_MS = FAULT_IN + 6,
    FAULT_CLOCK_DRIFT_PPM,
    FAULT_SYNC_DELAY_MS,
    FAULT_FAIL_SYNCS,
    FAULT_NO_SPACE,
    FAULT_NAME_COUNT,
};

struct fault_request {
    bool given[FAULT_NAME_COUNT];
    double value[FAULT_NAME_COUNT]; /* within the bounds of its name */
};

/* A query string (not decoded). INVALID names the parameter: unknown, twice, not a number, out of
 * bounds, or without what it belongs to; nothing at all lists what there is. Pure. */
SPAN_CHECKED span_status fault_request_parse(const char *query, struct fault_request *out,
                                             struct span_error *err);

/* The route. ctx: struct server. 200 when all of it is in force, 400 with a text when nothing was
 * applied, 403 without --enable-faults. */
void server_faults_route(void *ctx, const struct http_request *q, struct http_response *r);

/* POST /debug/failpoints (base/failpoint.h): arm=LIST, or clear=1, or count=0|1. GET answers a line
 * "NAME passages armed" for each. Statuses as above. */
void server_failpoints_route(void *ctx, const struct http_request *q, struct http_response *r);
void server_failpoints_report_route(void *ctx, const struct http_request *q,
                                    struct http_response *r);

#endif
