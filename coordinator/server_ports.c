/* Ports of a node that is about to be made: whether they are free, and whether the nodes' blocks
 * leave each other alone. A first start writes down whose folder it is; what would fail a moment
 * later is found before that, so that the folder is still nobody's. */
#include "base/alloc.h"
#include "coordinator/server_impl.h"
#include "shard/net/url.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS_APART (2 * LIMIT_PEERS + 2) /* more than any node's block has */

static const char *const tcp = "tcp://";

/* Somebody else listens there. Anything else that is wrong with the address is said by who opens
 * it. */
static bool is_taken(const char *address)
{
    char host[256];
    char text[16];
    unsigned port = 0;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    bool taken = false;

    if (server_address_split(address, host, sizeof host, &port) != SPAN_OK || port == 0) {
        return false;
    }
    (void)snprintf(text, sizeof text, "%u", port);
    if (getaddrinfo(host[0] == '\0' || strcmp(host, "*") == 0 ? NULL : host, text, &hints,
                    &found) != 0) {
        return false;
    }
    for (const struct addrinfo *ai = found; ai != NULL && !taken; ai = ai->ai_next) {
        int on = 1;
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

        if (fd < 0) {
            continue;
        }
        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (ai->ai_family == AF_INET6) {
            (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
        }
        taken = (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, 1) != 0) &&
                errno == EADDRINUSE;
        (void)close(fd);
    }
    freeaddrinfo(found);
    return taken;
}

static span_status check_peer_ports(const struct server_options *o, struct span_error *err)
{
    const char *base = o->peer_listen;
    for (size_t i = 0; base == NULL && i < o->peer_count; i++) {
        base = o->peers[i].id == o->id ? o->peers[i].url : NULL;
    }
    for (size_t i = 0; base != NULL && i < o->peer_count; i++) {
        for (unsigned class = 0; class < NET_CLASS_COUNT && o->peers[i].id != o->id; class ++) {
            char url[URL_BYTES];
            enum url_scheme scheme;
            span_status st =
                url_of_link(base, o->peers[i].id, (enum net_class) class, url, &scheme, err);
            if (st != SPAN_OK) {
                return st;
            }
            if (scheme == URL_TCP && is_taken(url + strlen(tcp))) {
                return span_fail(err, SPAN_EXISTS,
                                 "%s is in use (it is where node %u is listened for: is another "
                                 "process running with this address?)",
                                 url, o->peers[i].id);
            }
        }
    }
    return SPAN_OK;
}

span_status server_ports_check(const struct server_options *o, struct span_error *err)
{
    if (is_taken(o->sql_listen)) {
        return span_fail(
            err, SPAN_EXISTS,
            "cannot listen for SQL clients on %s: the port is in use by another process",
            o->sql_listen);
    }
    if (o->http_listen != NULL && is_taken(o->http_listen)) {
        return span_fail(
            err, SPAN_EXISTS,
            "cannot listen for HTTP clients on %s: the port is in use by another process",
            o->http_listen);
    }
    return check_peer_ports(o, err);
}

/* ---- blocks ---- */

/* host and base port of a tcp peer. */
static bool tcp_of(const char *url, char *host, size_t size, unsigned *port)
{
    return strncmp(url, tcp, strlen(tcp)) == 0 &&
           server_address_split(url + strlen(tcp), host, size, port) == SPAN_OK;
}

/* A port at which both would listen; 0: none. A node listens for every other at base + 2 x the
 * other's number + class. */
static unsigned common_port(const struct server_options *o, size_t a, unsigned base_a, size_t b,
                            unsigned base_b)
{
    for (size_t i = 0; i < o->peer_count; i++) {
        for (size_t k = 0; k < o->peer_count; k++) {
            for (unsigned c = 0; c < NET_CLASS_COUNT * NET_CLASS_COUNT; c++) {
                unsigned of_a = base_a + 2 * o->peers[i].id + c / NET_CLASS_COUNT;
                unsigned of_b = base_b + 2 * o->peers[k].id + c % NET_CLASS_COUNT;
                if (i != a && k != b && of_a == of_b) {
                    return of_a;
                }
            }
        }
    }
    return 0;
}

span_status server_ports_overlap(const struct server_options *o, struct span_error *err)
{
    for (size_t a = 0; a < o->peer_count; a++) {
        for (size_t b = a + 1; b < o->peer_count; b++) {
            char host_a[256];
            char host_b[256];
            unsigned base_a;
            unsigned base_b;
            if (!tcp_of(o->peers[a].url, host_a, sizeof host_a, &base_a) ||
                !tcp_of(o->peers[b].url, host_b, sizeof host_b, &base_b) ||
                strcmp(host_a, host_b) != 0) {
                continue;
            }
            unsigned port = common_port(o, a, base_a, b, base_b);
            if (port != 0) {
                return span_fail(
                    err, SPAN_INVALID,
                    "--peers: nodes %u and %u would both listen on port %u of %s: a peer address "
                    "stands for a block of ports, one pair for each other node (port + 2 x its "
                    "number). Leave %d between nodes of one machine: %u=tcp://%s:%u, "
                    "%u=tcp://%s:%u",
                    o->peers[a].id, o->peers[b].id, port, host_a, PORTS_APART, o->peers[a].id,
                    host_a, base_a, o->peers[b].id, host_a, base_a + PORTS_APART);
            }
        }
    }
    return SPAN_OK;
}
