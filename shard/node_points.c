/* Kinds of records and messages to their failpoints; see node_points.h. A kind's points lie side by
 * side in the table, so a set has one bit a kind: the distance of its first point from the first of
 * all. */
#include "shard/node_points.h"

#include "base/codec.h"
#include "base/failpoint.h"
#include "shard/raft/raft_msg.h"
#include "shard/range/store.h"
#include "txn/txn_codec.h"
#include "txn/txn_msg.h"

#include <assert.h>

#define LOG_FIRST  FP_LOG_OPEN_SUBMIT
#define LOG_POINTS 2
#define LOG_KINDS  ((FP_LOG_PEER_STORE_DURABLE - LOG_FIRST + 1) / LOG_POINTS)
#define MSG_FIRST  FP_MSG_COMMIT1_SEND
#define MSG_POINTS 3
#define MSG_KINDS  ((FP_MSG_SNAPSHOT_ACK_GOT - MSG_FIRST + 1) / MSG_POINTS)

static_assert(LOG_KINDS <= 64 && MSG_KINDS <= 64, "a set is 64 bits");

static uint64_t log_bit(enum failpoint first)
{
    return 1ULL << ((first - LOG_FIRST) / LOG_POINTS);
}

static uint64_t msg_bit(enum failpoint first)
{
    return 1ULL << ((first - MSG_FIRST) / MSG_POINTS);
}

uint64_t node_points_entry(uint8_t type)
{
    switch (type) {
    case CMD_OPEN:
        return log_bit(FP_LOG_OPEN_SUBMIT);
    case CMD_COMMIT1:
        return log_bit(FP_LOG_COMMIT1_SUBMIT);
    case CMD_PREPARE:
        return log_bit(FP_LOG_PREPARE_SUBMIT);
    case CMD_DECISION:
        return log_bit(FP_LOG_DECISION_SUBMIT);
    case CMD_OUTCOME:
        return log_bit(FP_LOG_OUTCOME_SUBMIT);
    case CMD_RESOLVED:
        return log_bit(FP_LOG_RESOLVED_SUBMIT);
    case CMD_MAINTAIN:
        return log_bit(FP_LOG_MAINTAIN_SUBMIT);
    case CMD_SPLIT:
        return log_bit(FP_LOG_SPLIT_SUBMIT);
    case RAFT_ENTRY_CONF:
        return log_bit(FP_LOG_CONF_SUBMIT);
    case CMD_FREEZE:
        return log_bit(FP_LOG_FREEZE_SUBMIT);
    case CMD_MERGE:
        return log_bit(FP_LOG_MERGE_SUBMIT);
    default:
        return 0;
    }
}

uint64_t node_points_sticky(uint8_t kind)
{
    switch (kind) {
    case STICKY_HARD_STATE:
        return log_bit(FP_LOG_HARD_STATE_SUBMIT);
    case STICKY_FILE:
        return log_bit(FP_LOG_FILE_SUBMIT);
    case STICKY_GONE:
        return log_bit(FP_LOG_GONE_SUBMIT);
    case STICKY_DAMAGED:
        return log_bit(FP_LOG_DAMAGED_SUBMIT);
    default:
        return 0;
    }
}

uint64_t node_points_peer_store(void)
{
    return log_bit(FP_LOG_PEER_STORE_SUBMIT);
}

static uint64_t request_bit(uint8_t op)
{
    switch (op) {
    case OP_COMMIT1:
        return msg_bit(FP_MSG_COMMIT1_SEND);
    case OP_COORDINATE:
        return msg_bit(FP_MSG_COORDINATE_SEND);
    case OP_PREPARE:
        return msg_bit(FP_MSG_PREPARE_SEND);
    case OP_VALIDATE:
        return msg_bit(FP_MSG_VALIDATE_SEND);
    case OP_RELEASE:
        return msg_bit(FP_MSG_RELEASE_SEND);
    case OP_STATUS:
        return msg_bit(FP_MSG_STATUS_SEND);
    case OP_SPLIT:
        return msg_bit(FP_MSG_SPLIT_SEND);
    case OP_MEMBERS:
        return msg_bit(FP_MSG_MEMBERS_SEND);
    case OP_MERGE:
        return msg_bit(FP_MSG_MERGE_SEND);
    default:
        return 0;
    }
}

static uint64_t response_bit(uint8_t op)
{
    switch (op) {
    case OP_COMMIT1:
        return msg_bit(FP_MSG_COMMIT1_ANSWER_SEND);
    case OP_COORDINATE:
        return msg_bit(FP_MSG_COORDINATE_ANSWER_SEND);
    case OP_VALIDATE:
        return msg_bit(FP_MSG_VALIDATE_ANSWER_SEND);
    case OP_STATUS:
        return msg_bit(FP_MSG_STATUS_ANSWER_SEND);
    case OP_SPLIT:
        return msg_bit(FP_MSG_SPLIT_ANSWER_SEND);
    case OP_MEMBERS:
        return msg_bit(FP_MSG_MEMBERS_ANSWER_SEND);
    case OP_MERGE:
        return msg_bit(FP_MSG_MERGE_ANSWER_SEND);
    default:
        return 0;
    }
}

static uint64_t raft_bit(struct slice body)
{
    range_id range;
    struct slice bytes;
    if (msg_decode_range_bytes(body, &range, &bytes) != SPAN_OK || bytes.size < 2) {
        return 0;
    }
    switch (bytes.data[1]) { /* behind the version */
    case RAFT_MSG_APPEND:
        return msg_bit(FP_MSG_APPEND_SEND);
    case RAFT_MSG_APPEND_ACK:
        return msg_bit(FP_MSG_APPEND_ACK_SEND);
    case RAFT_MSG_VOTE:
        return msg_bit(FP_MSG_VOTE_SEND);
    case RAFT_MSG_VOTE_ACK:
        return msg_bit(FP_MSG_VOTE_ACK_SEND);
    case RAFT_MSG_TIMEOUT_NOW:
        return msg_bit(FP_MSG_TIMEOUT_NOW_SEND);
    default:
        return 0;
    }
}

static uint64_t message_bit(uint8_t kind, struct slice body)
{
    switch (kind) {
    case MSG_RAFT:
        return raft_bit(body);
    case MSG_HEARTBEAT:
        return msg_bit(FP_MSG_HEARTBEAT_SEND);
    case MSG_HEARTBEAT_ACK:
        return msg_bit(FP_MSG_HEARTBEAT_ACK_SEND);
    case MSG_SNAPSHOT:
        return msg_bit(FP_MSG_SNAPSHOT_SEND);
    case MSG_SNAPSHOT_ACK:
        return msg_bit(FP_MSG_SNAPSHOT_ACK_SEND);
    case MSG_REQUEST: /* u8 op first */
        return body.size > 0 ? request_bit(body.data[0]) : 0;
    case MSG_RESPONSE: /* u64 request, u8 op */
        return body.size > 8 ? response_bit(body.data[8]) : 0;
    case MSG_WOUNDED:
        return msg_bit(FP_MSG_WOUNDED_SEND);
    case MSG_VOTE:
        return msg_bit(FP_MSG_TXN_VOTE_SEND);
    case MSG_OUTCOME:
        return msg_bit(FP_MSG_OUTCOME_SEND);
    case MSG_OUTCOME_ACK:
        return msg_bit(FP_MSG_OUTCOME_ACK_SEND);
    case MSG_TXN_QUERY:
        return msg_bit(FP_MSG_TXN_QUERY_SEND);
    case MSG_WOUND:
        return msg_bit(FP_MSG_WOUND_SEND);
    case MSG_PROBE:
        return msg_bit(FP_MSG_PROBE_SEND);
    case MSG_GONE:
        return msg_bit(FP_MSG_GONE_SEND);
    case MSG_REBUILD:
        return msg_bit(FP_MSG_REBUILD_SEND);
    default:
        return 0;
    }
}

uint64_t node_points_messages(struct slice payload)
{
    uint64_t all = 0;
    size_t at = 0;
    uint8_t kind;
    struct slice body;
    while (msg_next(payload, &at, &kind, &body) == SPAN_OK) {
        all |= message_bit(kind, body);
    }
    return all;
}

static void pass(uint64_t set, unsigned kinds, unsigned first, unsigned points)
{
    for (unsigned i = 0; i < kinds; i++) {
        if ((set >> i & 1) != 0) {
            (void)failpoint_pass((enum failpoint)(first + i * points));
        }
    }
}

void node_points_submit(uint64_t records)
{
    pass(records, LOG_KINDS, LOG_FIRST, LOG_POINTS);
}

void node_points_durable(uint64_t records)
{
    pass(records, LOG_KINDS, LOG_FIRST + 1, LOG_POINTS);
}

void node_points_send(uint64_t messages)
{
    pass(messages, MSG_KINDS, MSG_FIRST, MSG_POINTS);
}

void node_points_sent(uint64_t messages)
{
    pass(messages, MSG_KINDS, MSG_FIRST + 1, MSG_POINTS);
}

void node_points_got(uint8_t kind, struct slice body)
{
    pass(message_bit(kind, body), MSG_KINDS, MSG_FIRST + 2, MSG_POINTS);
}
