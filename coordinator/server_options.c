/* The options of a node: defaults, copies, and every check that needs no file or socket. */
#include "base/alloc.h"
#include "coordinator/server_impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void server_options_init(struct server_options *o)
{
    *o = (struct server_options){
        .clock = SERVER_CLOCK_EMULATED,
        .epsilon_ns = EPSILON_NS_DEFAULT,
        .lease_ns = LEASE_NS_DEFAULT,
        .version_window_ns = VERSION_WINDOW_NS,
        .txn_idle_ns = TXN_IDLE_NS_DEFAULT,
        .cache_bytes = 64 * MIB,
        .flush_bytes = FLUSH_BYTES,
        .sessions_max = LIMIT_SESSIONS,
        .workers = 1,
    };
}

void server_options_deinit(struct server_options *o)
{
    span_free(o->data_dir);
    span_free(o->cluster);
    span_free(o->peer_listen);
    span_free(o->sql_listen);
    span_free(o->sql_socket);
    span_free(o->http_listen);
    span_free(o->bind);
    for (size_t i = 0; i < o->peer_count; i++) {
        span_free(o->peers[i].url);
    }
    *o = (struct server_options){0};
}

static char *copy_text(const char *s)
{
    return s != NULL ? span_strdup(s) : NULL;
}

void server_options_copy(struct server_options *to, const struct server_options *from)
{
    *to = *from;
    to->data_dir = copy_text(from->data_dir);
    to->cluster = copy_text(from->cluster);
    to->peer_listen = copy_text(from->peer_listen);
    to->sql_listen = copy_text(from->sql_listen);
    to->sql_socket = copy_text(from->sql_socket);
    to->http_listen = copy_text(from->http_listen);
    to->bind = copy_text(from->bind);
    for (size_t i = 0; i < from->peer_count; i++) {
        to->peers[i].url = copy_text(from->peers[i].url);
    }
}

/* ---- addresses --------------------------------------------------------------------------------
 */

static span_status read_port(const char *text, unsigned *port)
{
    unsigned v = 0;

    if (*text == '\0') {
        return SPAN_INVALID;
    }
    for (; *text != '\0'; text++) {
        if (!isdigit((unsigned char)*text)) {
            return SPAN_INVALID;
        }
        v = v * 10 + (unsigned)(*text - '0');
        if (v > 65535) {
            return SPAN_INVALID;
        }
    }
    *port = v;
    return SPAN_OK;
}

span_status server_address_split(const char *text, char *host, size_t host_size, unsigned *port)
{
    const char *start = text;
    const char *end;
    const char *colon = strrchr(text, ':');
    size_t size;

    if (colon == NULL) {
        return SPAN_INVALID;
    }
    end = colon;
    if (*start == '[') {
        start++;
        if (colon == text || colon[-1] != ']') {
            return SPAN_INVALID;
        }
        end = colon - 1;
    } else if (memchr(start, ':', (size_t)(end - start)) != NULL) {
        return SPAN_INVALID; /* an IPv6 address without brackets could end anywhere */
    }
    size = (size_t)(end - start);
    if (size >= host_size || memchr(start, '/', size) != NULL) {
        return SPAN_INVALID;
    }
    memcpy(host, start, size);
    host[size] = '\0';
    return read_port(colon + 1, port);
}

static span_status check_address(const char *flag, const char *text, struct span_error *err)
{
    char host[256];
    unsigned port = 0;

    if (server_address_split(text, host, sizeof(host), &port) != SPAN_OK) {
        return span_fail(err, SPAN_INVALID, "%s: '%.120s' is not host:port", flag, text);
    }
    return SPAN_OK;
}

static span_status check_url(const char *what, const char *url, struct span_error *err)
{
    char host[256];
    unsigned port = 0;

    if (strncmp(url, "inproc://", 9) == 0 || strncmp(url, "ipc://", 6) == 0) {
        bool has_name = strstr(url, "://")[3] != '\0';

        return has_name ? SPAN_OK
                        : span_fail(err, SPAN_INVALID, "%s: '%.120s' names nothing", what, url);
    }
    if (strncmp(url, "tcp://", 6) == 0) {
        if (server_address_split(url + 6, host, sizeof(host), &port) == SPAN_OK && port != 0 &&
            host[0] != '\0') {
            return SPAN_OK;
        }
        return span_fail(err, SPAN_INVALID, "%s: '%.120s' is not tcp://host:port", what, url);
    }
    return span_fail(err, SPAN_INVALID,
                     "%s: '%.120s' does not begin with tcp://, ipc:// or inproc://", what, url);
}

/* ---- peers ------------------------------------------------------------------------------------
 */

static span_status add_peer(struct server_options *o, const char *entry, struct span_error *err)
{
    const char *equals = strchr(entry, '=');
    unsigned long id = 0;
    char *end = NULL;
    span_status st;

    if (equals == NULL || !isdigit((unsigned char)entry[0])) {
        return span_fail(err, SPAN_INVALID, "--peers: '%.120s' is not ID=URL", entry);
    }
    id = strtoul(entry, &end, 10);
    if (end != equals || id == 0 || id > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "--peers: '%.120s': node ids go from 1 to %d", entry,
                         LIMIT_PEERS);
    }
    st = check_url("--peers", equals + 1, err);
    if (st != SPAN_OK) {
        return st;
    }
    for (size_t i = 0; i < o->peer_count; i++) {
        if (o->peers[i].id == id) {
            return span_fail(err, SPAN_INVALID, "--peers: node %lu is given twice", id);
        }
        if (strcmp(o->peers[i].url, equals + 1) == 0) {
            return span_fail(err, SPAN_INVALID,
                             "--peers: nodes %u and %lu have the same address %s", o->peers[i].id,
                             id, equals + 1);
        }
    }
    if (o->peer_count == LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "--peers: more than %d nodes", LIMIT_PEERS);
    }
    size_t at = o->peer_count++;
    for (; at > 0 && o->peers[at - 1].id > id; at--) { /* kept by id: every node sees one order */
        o->peers[at] = o->peers[at - 1];
    }
    o->peers[at] = (struct server_peer){(unsigned)id, span_strdup(equals + 1)};
    return SPAN_OK;
}

span_status server_options_add_peers(struct server_options *o, const char *text,
                                     struct span_error *err)
{
    char *copy = span_strdup(text);
    char *rest = copy;
    span_status st = SPAN_OK;

    while (st == SPAN_OK && rest != NULL) {
        char *entry = strsep(&rest, ",");

        while (isspace((unsigned char)*entry)) {
            entry++;
        }
        st = add_peer(o, entry, err);
    }
    span_free(copy);
    return st;
}

/* ---- the whole --------------------------------------------------------------------------------
 */

static span_status check_addresses(const struct server_options *o, struct span_error *err)
{
    span_status st = check_address("--sql-listen", o->sql_listen, err);

    if (st == SPAN_OK && o->sql_socket != NULL && o->sql_socket[0] != '/') {
        st = span_fail(err, SPAN_INVALID, "--sql-socket: '%s' is not an absolute path of a folder",
                       o->sql_socket);
    }
    if (st == SPAN_OK && o->http_listen != NULL) {
        st = check_address("--http-listen", o->http_listen, err);
    }
    if (st == SPAN_OK && o->peer_listen != NULL) {
        st = check_url("--peer-listen", o->peer_listen, err);
    }
    return st;
}

static span_status check_peers(const struct server_options *o, struct span_error *err)
{
    for (size_t i = 0; i < o->peer_count; i++) {
        if (o->peers[i].id == o->id) {
            return SPAN_OK;
        }
    }
    return span_fail(err, SPAN_INVALID, "--peers: this node's own id %u is not among them", o->id);
}

static span_status check_clock(const struct server_options *o, struct span_error *err)
{
    if (o->clock != SERVER_CLOCK_EMULATED && (o->clock_offset_ns != 0 || o->clock_drift_ppb != 0)) {
        return span_fail(err, SPAN_INVALID,
                         "--clock-offset and --clock-drift need --clock emulated: other clocks are "
                         "read as they are");
    }
    if (o->epsilon_ns > EPSILON_NS_MAX) {
        return span_fail(err, SPAN_INVALID, "--epsilon: at most %llu ms",
                         (unsigned long long)(EPSILON_NS_MAX / MS_NS));
    }
    if (o->lease_ns > LEASE_NS_MAX) {
        return span_fail(err, SPAN_INVALID,
                         "--lease: at most %llu ms (a restarted node waits that long)",
                         (unsigned long long)(LEASE_NS_MAX / MS_NS));
    }
    if (o->lease_ns < 10 * o->epsilon_ns) {
        return span_fail(
            err, SPAN_INVALID,
            "--lease: %llu ms is less than 10 times --epsilon (%.3f ms): a lease would be "
            "mostly uncertainty",
            (unsigned long long)(o->lease_ns / MS_NS), (double)o->epsilon_ns / (double)MS_NS);
    }
    return SPAN_OK;
}

span_status server_options_check(const struct server_options *o, struct span_error *err)
{
    span_status st;

    if (o->id == 0 || o->id > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "--id is missing: the node's number, 1 to %d",
                         LIMIT_PEERS);
    }
    if (o->data_dir == NULL) {
        return span_fail(err, SPAN_INVALID, "--data is missing: the node's data folder");
    }
    if (o->peer_count == 0) {
        return span_fail(err, SPAN_INVALID,
                         "--peers is missing: every node of the cluster, this one "
                         "too, as 1=tcp://host:port,2=...");
    }
    if (o->cluster == NULL || o->sql_listen == NULL) {
        return span_fail(err, SPAN_INVALID, "--cluster and --sql-listen must not be empty");
    }
    if (strlen(o->cluster) > 64 || strpbrk(o->cluster, " \t\r\n=\"") != NULL) {
        return span_fail(
            err, SPAN_INVALID,
            "--cluster: '%.80s' is not a name (up to 64 characters, no spaces, = or \")",
            o->cluster);
    }
    st = check_addresses(o, err);
    if (st == SPAN_OK) {
        st = check_peers(o, err);
    }
    if (st == SPAN_OK) {
        st = server_ports_overlap(o, err);
    }
    if (st == SPAN_OK) {
        st = check_clock(o, err);
    }
    return st;
}
