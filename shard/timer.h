/* The timer thread. It lives in shard/net, because the transport uses it and a layer includes only
 * what lies below it; everyone else includes it from here. */
#ifndef SPAN_SHARD_TIMER_H
#define SPAN_SHARD_TIMER_H

#include "shard/net/timer.h" /* IWYU pragma: export */

#endif
