/* The HTTP port: nng's server with a table of routes. Handlers run on nng's threads: they look at
 * atomics, or hand work to the worker (node_call) and wait briefly; they never run SQL. */
#ifndef SPAN_COORDINATOR_HTTP_H
#define SPAN_COORDINATOR_HTTP_H

#include "base/buf.h"
#include "base/status.h"

struct http;

struct http_request {
    const char *method; /* "GET", "POST" */
    const char *path;   /* without the query */
    const char *query;  /* "" when there is none; not decoded */
    struct slice body;
};

struct http_response {
    unsigned status;          /* 200 */
    const char *content_type; /* static storage */
    struct buf body;
};

typedef void http_handler(void *ctx, const struct http_request *q, struct http_response *r);

struct http_route {
    const char *method;
    const char *path;
    http_handler *handler;
};

/* Listens on host:port (port 0: any free one). EXISTS: the port is in use; INVALID: not an address;
 * IO. routes: ended by a NULL method; borrowed. Bodies beyond 1 MiB are refused by nng. */
SPAN_CHECKED span_status http_open(const char *address, const struct http_route *routes, void *ctx,
                                   struct http **out, struct span_error *err);
void http_address(const struct http *h, char *out, size_t size); /* host:port as bound */
void http_close(struct http *h);                                 /* NULL is ignored */

/* Value of name in a query string, decoded, into out; false when it is not there. */
bool http_query_get(const char *query, const char *name, char *out, size_t size);

#endif
