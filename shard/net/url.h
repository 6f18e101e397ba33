/* Addresses of links, made from a node's base URL (the rule is in transport.h). */
#ifndef SPAN_SHARD_NET_URL_H
#define SPAN_SHARD_NET_URL_H

#include "base/status.h"
#include "shard/net/transport.h"

#include <stdint.h>

#define URL_BYTES 256

enum url_scheme {
    URL_TCP,
    URL_IPC,
    URL_INPROC,
};

/* Address at which the owner of `base` listens for node `from`'s class. INVALID: names what is
 * wrong with the URL; UNSUPPORTED: a scheme that is not built yet (tls+tcp). */
SPAN_CHECKED span_status url_of_link(const char *base, uint32_t from, enum net_class class,
                                     char out[URL_BYTES], enum url_scheme *scheme,
                                     struct span_error *err);

#endif
