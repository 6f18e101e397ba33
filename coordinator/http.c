/* nng's HTTP server behind a route table. */
#include "coordinator/http.h"

#include "base/alloc.h"
#include "coordinator/server.h"

#include <nng/nng.h>
#include <nng/supplemental/http/http.h>
#include <stdio.h>
#include <stdlib.h>

struct http {
    nng_http_server *server;
    nng_url *url;
    void *ctx;
    char address[300];
};

struct route_ctx {
    struct http *http;
    const struct http_route *route;
};

static void respond(nng_aio *aio, const struct http_response *r)
{
    nng_http_res *res = NULL;
    int rv = nng_http_res_alloc(&res);
    if (rv == 0) {
        rv = nng_http_res_set_status(res, (uint16_t)r->status);
    }
    if (rv == 0) {
        rv = nng_http_res_set_header(res, "Content-Type", r->content_type);
    }
    if (rv == 0) {
        rv = nng_http_res_copy_data(res, r->body.data == NULL ? (const void *)"" : r->body.data,
                                    r->body.size);
    }
    if (rv != 0) {
        nng_http_res_free(res);
        nng_aio_finish(aio, rv);
        return;
    }
    (void)nng_aio_set_output(aio, 0, res);
    nng_aio_finish(aio, 0);
}

static void handle(nng_aio *aio)
{
    nng_http_req *req = nng_aio_get_input(aio, 0);
    nng_http_handler *handler = nng_aio_get_input(aio, 1);
    struct route_ctx *rc = nng_http_handler_get_data(handler);
    void *data = NULL;
    size_t size = 0;
    nng_http_req_get_data(req, &data, &size);
    char *path = span_strdup(nng_http_req_get_uri(req));
    char *query = strchr(path, '?');
    if (query != NULL) {
        *query++ = '\0';
    }
    struct http_request q = {.method = nng_http_req_get_method(req),
                             .path = path,
                             .query = query == NULL ? "" : query,
                             .body = slice_of(data, size)};
    struct http_response r = {.status = 200, .content_type = "text/plain; charset=utf-8"};
    rc->route->handler(rc->http->ctx, &q, &r);
    respond(aio, &r);
    buf_deinit(&r.body);
    span_free(path);
}

static void route_free(void *p)
{
    span_free(p);
}

static int add_route(struct http *h, const struct http_route *route)
{
    nng_http_handler *handler = NULL;
    int rv = nng_http_handler_alloc(&handler, route->path, handle);
    if (rv != 0) {
        return rv;
    }
    struct route_ctx *rc = SPAN_NEW(struct route_ctx);
    rc->http = h;
    rc->route = route;
    rv = nng_http_handler_set_method(handler, route->method);
    if (rv == 0) {
        rv = nng_http_handler_collect_body(handler, true, 1024UL * 1024);
    }
    if (rv == 0) {
        rv = nng_http_handler_set_data(handler, rc, route_free);
    }
    if (rv == 0) {
        rv = nng_http_server_add_handler(h->server, handler);
    }
    if (rv != 0) {
        nng_http_handler_free(handler);
    }
    return rv;
}

span_status http_open(const char *address, const struct http_route *routes, void *ctx,
                      struct http **out, struct span_error *err)
{
    char host[200];
    char url[300];
    unsigned port;
    span_status st = server_address_split(address, host, sizeof host, &port);
    if (st != SPAN_OK) {
        return span_fail(err, st, "HTTP address %s is not host:port", address);
    }
    struct http *h = SPAN_NEW(struct http);
    h->ctx = ctx;
    (void)snprintf(url, sizeof url, strchr(host, ':') != NULL ? "http://[%s]:%u" : "http://%s:%u",
                   host[0] == '\0' ? "0.0.0.0" : host, port);
    int rv = nng_url_parse(&h->url, url);
    if (rv == 0) {
        rv = nng_http_server_hold(&h->server, h->url);
    }
    for (const struct http_route *r = routes; rv == 0 && r->method != NULL; r++) {
        rv = add_route(h, r);
    }
    if (rv == 0) {
        rv = nng_http_server_start(h->server);
    }
    if (rv != 0) {
        st = span_fail(err, rv == NNG_EADDRINUSE ? SPAN_EXISTS : SPAN_IO,
                       "cannot listen for HTTP clients on %s: %s", address,
                       rv == NNG_EADDRINUSE ? "the port is in use by another process"
                                            : nng_strerror(rv));
        if (h->server != NULL) {
            nng_http_server_release(h->server);
        }
        nng_url_free(h->url);
        span_free(h);
        return st;
    }
    nng_sockaddr sa;
    if (port == 0 && nng_http_server_get_addr(h->server, &sa) == 0 && sa.s_family == NNG_AF_INET) {
        port = (unsigned)((sa.s_in.sa_port >> 8) | ((sa.s_in.sa_port & 0xff) << 8));
    }
    (void)snprintf(h->address, sizeof h->address, "%s:%u", host, port);
    *out = h;
    return SPAN_OK;
}

void http_address(const struct http *h, char *out, size_t size)
{
    (void)snprintf(out, size, "%s", h == NULL ? "" : h->address);
}

void http_close(struct http *h)
{
    if (h == NULL) {
        return;
    }
    nng_http_server_stop(h->server);
    nng_http_server_release(h->server);
    nng_url_free(h->url);
    span_free(h);
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool http_query_get(const char *query, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);
    for (const char *p = query; *p != '\0';) {
        const char *end = strchr(p, '&');
        size_t len = end == NULL ? strlen(p) : (size_t)(end - p);
        if (len > n && strncmp(p, name, n) == 0 && p[n] == '=') {
            size_t o = 0;
            for (size_t i = n + 1; i < len && o + 1 < size; i++) {
                if (p[i] == '%' && i + 2 < len && hex_value(p[i + 1]) >= 0 &&
                    hex_value(p[i + 2]) >= 0) {
                    out[o++] = (char)(hex_value(p[i + 1]) * 16 + hex_value(p[i + 2]));
                    i += 2;
                } else {
                    out[o++] = p[i] == '+' ? ' ' : p[i];
                }
            }
            out[o] = '\0';
            return true;
        }
        p += len + (end == NULL ? 0 : 1);
    }
    return false;
}
