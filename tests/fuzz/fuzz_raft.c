/* Raft's messages and configurations: what decodes is encoded to the same bytes again. */
#include "shard/raft/raft_conf.h"
#include "shard/raft/raft_msg.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

/* Encoding what was decoded and decoding that gives the same encoding: nothing is lost. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct raft_msg m;
    struct raft_msg again;
    struct raft_conf conf;
    struct buf first = {0};
    struct buf second = {0};
    if (raft_msg_decode(slice_of(data, size), &m) == SPAN_OK) {
        raft_msg_encode(&first, &m);
        INVARIANT(raft_msg_decode(buf_slice(&first), &again) == SPAN_OK);
        raft_msg_encode(&second, &again);
        INVARIANT(slice_eq(buf_slice(&first), buf_slice(&second)));
        INVARIANT(raft_msg_type_name(m.type) != NULL);
        raft_msg_deinit(&again);
    }
    raft_msg_deinit(&m);
    buf_clear(&first);
    if (raft_conf_decode(slice_of(data, size), &conf) == SPAN_OK) {
        struct raft_conf back;
        INVARIANT(conf.count <= LIMIT_REPLICAS);
        raft_conf_encode(&first, &conf);
        INVARIANT(raft_conf_decode(buf_slice(&first), &back) == SPAN_OK);
        INVARIANT(raft_conf_eq(&conf, &back));
    }
    buf_deinit(&first);
    buf_deinit(&second);
    return 0;
}

static void emit_msg(fuzz_emit *emit, void *ctx, const char *name, const struct raft_msg *m)
{
    struct buf b = {0};
    raft_msg_encode(&b, m);
    emit(ctx, name, buf_slice(&b));
    buf_deinit(&b);
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    struct raft_blob *blob = raft_blob_new(slice_str("payload"));
    struct raft_entry entries[2] = {{.index = 6, .term = 3, .type = 17, .payload = blob},
                                    {.index = 7, .term = 3, .type = 16}};
    struct raft_msg m = {.type = RAFT_MSG_APPEND, .term = 3};
    m.u.append = (struct raft_append){
        .prev_index = 5, .prev_term = 2, .commit = 4, .entries = entries, .entry_count = 2};
    emit_msg(emit, ctx, "append", &m);
    m = (struct raft_msg){.type = RAFT_MSG_APPEND_ACK, .term = 3};
    m.u.append_ack = (struct raft_append_ack){.refusal = RAFT_ACK_MISMATCH,
                                              .match = 5,
                                              .accepted = 6,
                                              .promised = tt_ts_of(99),
                                              .prev_index = 9,
                                              .hint_index = 7,
                                              .hint_term = 2};
    emit_msg(emit, ctx, "append-ack", &m);
    m = (struct raft_msg){.type = RAFT_MSG_VOTE, .term = 4};
    m.u.vote = (struct raft_vote){
        .last_index = 7, .last_term = 3, .has_release = true, .release = tt_ts_of(77)};
    emit_msg(emit, ctx, "vote", &m);
    m = (struct raft_msg){.type = RAFT_MSG_VOTE_ACK, .term = 4};
    m.u.vote_ack = (struct raft_vote_ack){.granted = true, .vote_term = 4};
    emit_msg(emit, ctx, "vote-ack", &m);
    m = (struct raft_msg){.type = RAFT_MSG_TIMEOUT_NOW, .term = 4};
    m.u.timeout_now.release = tt_ts_of(88);
    emit_msg(emit, ctx, "timeout-now", &m);
    struct raft_conf conf;
    struct buf b = {0};
    raft_conf_init(&conf);
    for (uint32_t i = 1; i <= 3; i++) {
        INVARIANT(raft_conf_set(&conf, i, i != 3) == SPAN_OK);
    }
    raft_conf_encode(&b, &conf);
    emit(ctx, "conf", buf_slice(&b));
    buf_deinit(&b);
    raft_blob_unref(blob);
}
