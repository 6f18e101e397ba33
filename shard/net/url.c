/* Base URL -> link address. Everything is checked here, with words, because nng's own answer to a
 * bad URL is "address invalid". */
#include "shard/net/url.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

/* The part of `base` after the scheme, or NULL if it has another one. */
static const char *after(const char *base, const char *scheme)
{
    size_t n = strlen(scheme);
    return strncmp(base, scheme, n) == 0 ? base + n : NULL;
}

static span_status tcp_link(const char *base, const char *rest, unsigned offset,
                            char out[URL_BYTES], struct span_error *err)
{
    const char *colon = strrchr(rest, ':');
    const char *port = colon == NULL ? "" : colon + 1;
    size_t digits = strspn(port, "0123456789");
    if (colon == NULL || colon == rest || digits == 0 || digits > 5 || port[digits] != '\0') {
        return span_fail(err, SPAN_INVALID, "'%s': want tcp://host:port", base);
    }
    if (rest[0] != '[' && memchr(rest, ':', (size_t)(colon - rest)) != NULL) {
        return span_fail(err, SPAN_INVALID, "'%s': an IPv6 address goes in [brackets]", base);
    }
    if (strpbrk(rest, "/;@?#") != NULL) {
        return span_fail(err, SPAN_INVALID, "'%s': only host and port may follow tcp://", base);
    }
    unsigned long base_port = strtoul(port, NULL, 10);
    unsigned long last = base_port + 2UL * LIMIT_PEERS + 1;
    if (base_port == 0 || last > 65535) {
        return span_fail(err, SPAN_INVALID,
                         "'%s': base port %lu: links use the ports up to base + %d, which must lie "
                         "in 1..65535",
                         base, base_port, 2 * LIMIT_PEERS + 1);
    }
    (void)snprintf(out, URL_BYTES, "tcp://%.*s:%lu", (int)(colon - rest), rest, base_port + offset);
    return SPAN_OK;
}

span_status url_of_link(const char *base, uint32_t from, enum net_class class, char out[URL_BYTES],
                        enum url_scheme *scheme, struct span_error *err)
{
    if (from == 0 || from > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "node id %u: must be 1..%d", from, LIMIT_PEERS);
    }
    if (base == NULL || base[0] == '\0') {
        return span_fail(err, SPAN_INVALID, "node %u: no address given", from);
    }
    /* nng keeps addresses in 128 bytes; room for "-64-1". */
    if (strlen(base) > 120) {
        return span_fail(err, SPAN_INVALID, "'%.40s...': address longer than 120 bytes", base);
    }
    const char *rest;
    if ((rest = after(base, "tcp://")) != NULL) {
        *scheme = URL_TCP;
        return tcp_link(base, rest, 2 * from + (unsigned)class, out, err);
    }
    if ((rest = after(base, "ipc://")) != NULL) {
        *scheme = URL_IPC;
        if (rest[0] != '/') {
            return span_fail(err, SPAN_INVALID, "'%s': want ipc:///absolute/path", base);
        }
        if (strlen(rest) + sizeof("-64-1") > sizeof(((struct sockaddr_un *)0)->sun_path)) {
            return span_fail(err, SPAN_INVALID, "'%s': path too long for a socket file", base);
        }
        (void)snprintf(out, URL_BYTES, "%s-%u-%u", base, from, (unsigned)class);
        return SPAN_OK;
    }
    if ((rest = after(base, "inproc://")) != NULL) {
        *scheme = URL_INPROC;
        if (rest[0] == '\0') {
            return span_fail(err, SPAN_INVALID, "'%s': want inproc://name", base);
        }
        (void)snprintf(out, URL_BYTES, "%s-%u-%u", base, from, (unsigned)class);
        return SPAN_OK;
    }
    if (after(base, "tls+tcp://") != NULL) {
        return span_fail(err, SPAN_UNSUPPORTED,
                         "'%s': TLS between nodes is not built yet; use tcp://, or ipc:// on one "
                         "machine",
                         base);
    }
    return span_fail(err, SPAN_INVALID, "'%s': want tcp://, ipc:// or inproc://", base);
}
