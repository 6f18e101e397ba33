/* The messages of txn_msg.h as they stand in a frame, and the replicated commands. Input: one byte,
 * odd: a frame's payload; even: a command of that type. What decodes is encoded the same again. */
#include "tests/fuzz/fuzz.h"
#include "txn/txn_codec.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

/* Decodes with `decode`, encodes to out; false: refused. For one shape of function each. */
#define AGAIN(type, decode, encode)                                                                \
    do {                                                                                           \
        type m_ = {0};                                                                             \
        if ((decode) != SPAN_OK) {                                                                 \
            return false;                                                                          \
        }                                                                                          \
        encode;                                                                                    \
        return true;                                                                               \
    } while (0)

static bool message(uint8_t kind, struct slice body, struct arena *a, struct buf *out)
{
    switch ((enum msg_kind)kind) {
    case MSG_HEARTBEAT:
        AGAIN(struct heartbeat, msg_decode_heartbeat(body, a, &m_), msg_encode_heartbeat(out, &m_));
    case MSG_HEARTBEAT_ACK:
        AGAIN(struct heartbeat_ack, msg_decode_heartbeat_ack(body, a, &m_),
              msg_encode_heartbeat_ack(out, &m_));
    case MSG_REQUEST:
        AGAIN(struct range_request, msg_decode_request(body, a, &m_), msg_encode_request(out, &m_));
    case MSG_RESPONSE:
        AGAIN(struct range_response, msg_decode_response(body, a, &m_),
              msg_encode_response(out, &m_));
    case MSG_WOUNDED:
        AGAIN(struct txn_wounded, msg_decode_wounded(body, &m_), msg_encode_wounded(out, &m_));
    case MSG_KEEPALIVE:
        AGAIN(struct keepalive, msg_decode_keepalive(body, a, &m_), msg_encode_keepalive(out, &m_));
    case MSG_VOTE:
        AGAIN(struct txn_vote, msg_decode_vote(body, &m_), msg_encode_vote(out, &m_));
    case MSG_OUTCOME:
        AGAIN(struct txn_outcome, msg_decode_outcome(body, &m_), msg_encode_outcome(out, &m_));
    case MSG_OUTCOME_ACK:
        AGAIN(struct txn_outcome_ack, msg_decode_outcome_ack(body, &m_),
              msg_encode_outcome_ack(out, &m_));
    case MSG_TXN_QUERY:
    case MSG_WOUND:
        AGAIN(struct txn_query, msg_decode_query(body, &m_), msg_encode_query(out, kind, &m_));
    case MSG_NODE_REQUEST:
        AGAIN(struct node_request, msg_decode_node_request(body, &m_),
              msg_encode_node_request(out, &m_));
    case MSG_NODE_RESPONSE:
        AGAIN(struct node_response, msg_decode_node_response(body, a, &m_),
              msg_encode_node_response(out, &m_));
    case MSG_RAFT:
    case MSG_SNAPSHOT:
    case MSG_SNAPSHOT_ACK:
    case MSG_PROBE:
    case MSG_GONE:
    case MSG_REBUILD:
    case MSG_MERGE:
    default: {
        range_id range = 0;
        struct slice bytes = {0};
        if (msg_decode_range_bytes(body, &range, &bytes) != SPAN_OK) {
            return false;
        }
        msg_encode_range_bytes(out, kind, range, bytes);
        return true;
    }
    }
}

static bool command(uint8_t type, struct slice in, struct arena *a, struct buf *out)
{
    switch ((enum command)type) {
    case CMD_OPEN:
        AGAIN(struct cmd_open, cmd_decode_open(in, &m_), cmd_encode_open(out, &m_));
    case CMD_COMMIT1:
        AGAIN(struct cmd_commit, cmd_decode_commit(in, a, &m_), cmd_encode_commit(out, &m_));
    case CMD_PREPARE:
        AGAIN(struct cmd_prepare, cmd_decode_prepare(in, a, &m_), cmd_encode_prepare(out, &m_));
    case CMD_DECISION:
        AGAIN(struct cmd_decision, cmd_decode_decision(in, a, &m_), cmd_encode_decision(out, &m_));
    case CMD_OUTCOME:
        AGAIN(struct cmd_outcome, cmd_decode_outcome(in, &m_), cmd_encode_outcome(out, &m_));
    case CMD_RESOLVED:
        AGAIN(struct cmd_resolved, cmd_decode_resolved(in, a, &m_), cmd_encode_resolved(out, &m_));
    case CMD_MAINTAIN:
        AGAIN(struct cmd_maintain, cmd_decode_maintain(in, &m_), cmd_encode_maintain(out, &m_));
    case CMD_SPLIT:
    case CMD_SPLIT_AHEAD:
        AGAIN(struct cmd_split, cmd_decode_split(in, &m_), cmd_encode_split(out, &m_));
    case CMD_FREEZE:
        AGAIN(struct cmd_freeze, cmd_decode_freeze(in, &m_), cmd_encode_freeze(out, &m_));
    case CMD_MERGE:
        AGAIN(struct cmd_merge, cmd_decode_merge(in, &m_), cmd_encode_merge(out, &m_));
    }
    return false;
}

static void fuzz_frame_payload(struct slice frame, struct arena *a, struct buf *first,
                               struct buf *second)
{
    size_t at = 0;
    uint8_t kind = 0;
    struct slice body = {0};
    while (msg_next(frame, &at, &kind, &body) == SPAN_OK) {
        size_t at_first = 0;
        uint8_t kind_again = 0;
        struct slice body_again = {0};
        INVARIANT(at <= frame.size);
        buf_clear(first);
        buf_clear(second);
        arena_clear(a);
        if (!message(kind, body, a, first)) {
            continue;
        }
        INVARIANT(msg_next(buf_slice(first), &at_first, &kind_again, &body_again) == SPAN_OK);
        INVARIANT(kind_again == kind && at_first == first->size);
        INVARIANT(message(kind, body_again, a, second));
        INVARIANT(slice_eq(buf_slice(first), buf_slice(second)));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena a = {0};
    struct buf first = {0};
    struct buf second = {0};
    if (size == 0) {
        return 0;
    }
    struct slice rest = slice_of(data + 1, size - 1);
    if (data[0] % 2 == 1) {
        fuzz_frame_payload(rest, &a, &first, &second);
    } else {
        uint8_t type = (uint8_t)(CMD_OPEN + data[0] / 2 % 8);
        (void)cmd_peek_ts(type, rest);
        if (command(type, rest, &a, &first)) {
            INVARIANT(command(type, buf_slice(&first), &a, &second));
            INVARIANT(slice_eq(buf_slice(&first), buf_slice(&second)));
        }
    }
    /* Ids as clients write them: SHOW TRANSACTION STATUS. */
    char text[64];
    size_t n = size - 1 < sizeof(text) - 1 ? size - 1 : sizeof(text) - 1;
    struct txn_id id;
    memcpy(text, data + 1, n);
    text[n] = '\0';
    if (txn_id_parse(text, &id)) {
        char back[48];
        struct txn_id again;
        txn_id_format(&id, back);
        INVARIANT(txn_id_parse(back, &again));
        INVARIANT(memcmp(&id, &again, sizeof(id)) == 0);
    }
    buf_deinit(&first);
    buf_deinit(&second);
    arena_deinit(&a);
    return 0;
}

static void begin(struct buf *b, uint8_t type)
{
    buf_clear(b);
    buf_append_byte(b, type);
}

static void seeds_between_ranges(fuzz_emit *emit, void *ctx, struct buf *b)
{
    struct slice key = slice_str("\x01key");
    struct txn_id id = {0};
    begin(b, 1);
    msg_encode_vote(
        b,
        &(struct txn_vote){
            .coordinator = key, .txn = id, .participant = key, .range = 3, .node = 2, .yes = true});
    msg_encode_outcome(
        b, &(struct txn_outcome){
               .participant = key, .commit = true, .ts = tt_ts_of(9), .coordinator = key});
    msg_encode_outcome_ack(b, &(struct txn_outcome_ack){.coordinator = key, .participant = key});
    msg_encode_query(b, MSG_WOUND, &(struct txn_query){.coordinator = key, .node = 1});
    msg_encode_wounded(b, &(struct txn_wounded){.incarnation = 5, .range = 2, .status = 2});
    emit(ctx, "between-ranges", buf_slice(b));
    struct heartbeat_range hr[2] = {{.range = 1, .term = 2, .lease = true}, {.range = 4}};
    struct heartbeat_ack_range ar[1] = {{.range = 1, .known = true, .term = 2, .match = 7}};
    struct txn_id ids[2] = {{0}};
    begin(b, 1);
    msg_encode_heartbeat(b, &(struct heartbeat){.from = 1, .seq = 3, .count = 2, .ranges = hr});
    msg_encode_heartbeat_ack(b, &(struct heartbeat_ack){.from = 2, .count = 1, .ranges = ar});
    msg_encode_keepalive(b, &(struct keepalive){.gateway = 1, .count = 2, .txns = ids});
    msg_encode_range_bytes(b, MSG_RAFT, 5, slice_str("raft"));
    emit(ctx, "node-pair", buf_slice(b));
}

static void seeds_gateway(fuzz_emit *emit, void *ctx, struct buf *b)
{
    struct slice key = slice_str("\x01key");
    struct read_span spans[1] = {{.span = {key, slice_str("\x01z")}, .max_rows = 10}};
    struct schema_use use[1] = {{.table_id = 7, .version = 1}};
    struct txn_write writes[1] = {{.key = key, .value = slice_str("value")}};
    struct txn_participant parts[1] = {{.anchor = key, .range = 3, .node = 2}};
    struct row rows[1] = {{.key = key, .value = slice_str("v"), .span = 0}};
    struct read_resume resumes[1] = {{.span = 0, .key = key}};
    struct range_descriptor ds[1] = {
        {.range = 1, .generation = 2, .start = key, .member_count = 2, .members = {1, 2}}};
    struct slice cells[2] = {slice_str("a"), slice_str("b")};
    begin(b, 1);
    msg_encode_request(b, &(struct range_request){.op = OP_READ,
                                                  .request_id = 1,
                                                  .range = 2,
                                                  .span_count = 1,
                                                  .spans = spans,
                                                  .schema_count = 1,
                                                  .schema = use});
    emit(ctx, "read", buf_slice(b));
    begin(b, 1);
    msg_encode_request(b, &(struct range_request){.op = OP_COORDINATE,
                                                  .request_id = 1,
                                                  .range = 2,
                                                  .write_count = 1,
                                                  .writes = writes,
                                                  .anchor = key,
                                                  .participant_count = 1,
                                                  .participants = parts});
    emit(ctx, "coordinate", buf_slice(b));
    begin(b, 1);
    msg_encode_response(b, &(struct range_response){.request_id = 1,
                                                    .op = OP_READ,
                                                    .row_count = 1,
                                                    .rows = rows,
                                                    .resume_count = 1,
                                                    .resumes = resumes,
                                                    .descriptor_count = 1,
                                                    .descriptors = ds,
                                                    .text = slice_str("t")});
    emit(ctx, "response", buf_slice(b));
    begin(b, 1);
    msg_encode_node_request(b, &(struct node_request){.op = NODE_OP_SET, .text = slice_str("a=b")});
    msg_encode_node_response(b, &(struct node_response){.node = 1,
                                                        .columns = 2,
                                                        .cell_count = 2,
                                                        .cells = cells,
                                                        .descriptor_count = 1,
                                                        .descriptors = ds});
    emit(ctx, "node", buf_slice(b));
    begin(b, 2 * (CMD_COMMIT1 - CMD_OPEN));
    cmd_encode_commit(b,
                      &(struct cmd_commit){.ts = tt_ts_of(5), .write_count = 1, .writes = writes});
    emit(ctx, "cmd-commit", buf_slice(b));
    struct cmd_lock locks[1] = {{.span = {key, slice_str("\x01z")}, .mode = 1}};
    begin(b, 2 * (CMD_PREPARE - CMD_OPEN));
    cmd_encode_prepare(b, &(struct cmd_prepare){.prepare_ts = tt_ts_of(5),
                                                .anchor = key,
                                                .coordinator = key,
                                                .write_count = 1,
                                                .writes = writes,
                                                .lock_count = 1,
                                                .locks = locks});
    emit(ctx, "cmd-prepare", buf_slice(b));
    begin(b, 2 * (CMD_DECISION - CMD_OPEN));
    cmd_encode_decision(b, &(struct cmd_decision){.commit = true,
                                                  .ts = tt_ts_of(5),
                                                  .anchor = key,
                                                  .write_count = 1,
                                                  .writes = writes,
                                                  .participant_count = 1,
                                                  .participants = parts});
    emit(ctx, "cmd-decision", buf_slice(b));
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    struct buf b = {0};
    struct txn_id ids[1] = {{0}};
    seeds_between_ranges(emit, ctx, &b);
    seeds_gateway(emit, ctx, &b);
    begin(&b, 0);
    cmd_encode_open(&b, &(struct cmd_open){.floor = tt_ts_of(4)});
    emit(ctx, "cmd-open", buf_slice(&b));
    begin(&b, 2 * (CMD_OUTCOME - CMD_OPEN));
    cmd_encode_outcome(&b, &(struct cmd_outcome){.commit = true, .ts = tt_ts_of(4)});
    emit(ctx, "cmd-outcome", buf_slice(&b));
    begin(&b, 2 * (CMD_RESOLVED - CMD_OPEN));
    cmd_encode_resolved(&b, &(struct cmd_resolved){.count = 1, .txns = ids});
    emit(ctx, "cmd-resolved", buf_slice(&b));
    begin(&b, 2 * (CMD_MAINTAIN - CMD_OPEN));
    cmd_encode_maintain(&b, &(struct cmd_maintain){.watermark = tt_ts_of(4)});
    emit(ctx, "cmd-maintain", buf_slice(&b));
    begin(&b, 2 * (CMD_SPLIT - CMD_OPEN));
    cmd_encode_split(&b, &(struct cmd_split){.key = slice_str("\x01k"), .right = 4});
    emit(ctx, "cmd-split", buf_slice(&b));
    begin(&b, 2 * (CMD_FREEZE - CMD_OPEN));
    cmd_encode_freeze(
        &b, &(struct cmd_freeze){.left = 4, .token = 7, .left_start = slice_str("\x01k")});
    emit(ctx, "cmd-freeze", buf_slice(&b));
    begin(&b, 2 * (CMD_MERGE - CMD_OPEN));
    cmd_encode_merge(&b, &(struct cmd_merge){.right = 5, .token = 7, .generation = 8});
    emit(ctx, "cmd-merge", buf_slice(&b));
    begin(&b, 2);
    buf_append_str(&b, "17a9b3c2d1e0f-3-1f");
    emit(ctx, "id", buf_slice(&b));
    buf_deinit(&b);
}
