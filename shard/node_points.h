/* Failpoints of what leaves and enters the cores of a node (base/failpoint.h): records on their way
 * into the log and messages on their way to and from peers, told apart by kind here so that neither
 * the cores nor the log know about them. Called only while some point is armed. */
#ifndef SPAN_SHARD_NODE_POINTS_H
#define SPAN_SHARD_NODE_POINTS_H

#include "base/buf.h"

#include <stdint.h>

/* Bit of a kind of record, for the sets below; 0 for kinds without a point. */
uint64_t node_points_entry(uint8_t type);
uint64_t node_points_sticky(uint8_t kind);
uint64_t node_points_peer_store(void);

void node_points_submit(uint64_t records);
void node_points_durable(uint64_t records);

/* The kinds of messages in a frame's payload. */
uint64_t node_points_messages(struct slice payload);
void node_points_send(uint64_t messages);
void node_points_sent(uint64_t messages);
void node_points_got(uint8_t kind, struct slice body);

#endif
