/* A replica whose engine file is damaged is thrown away and rebuilt from its leader's snapshot.
 *
 *   damage found (a read, a flush, a snapshot out, at a start)
 *     -> serves and leads no more; the record STICKY_DAMAGED names the file's generation; once it
 * is durable the file is set aside for the operator
 *     -> what is left is an orphan: term and vote, and the log as far as it is kept
 *   heartbeat of a leader  -> MSG_REBUILD(number) to it, every REBUILD_ASK_NS
 *     leader: flushes up to its commit index of when the question came, then streams (rule H5b)
 *   complete file of the next generation, and the log kept behind it -> a replica again (F1)
 *
 * Why nothing acknowledged is lost. The node's log is whole: it holds term, vote and every entry
 * that was acknowledged and is not in the file that is gone. What is only in that file was
 * committed, and the leader that answers has committed an entry of its own term (it serves), in a
 * term not below ours: by leader completeness its commit index lies at or above all of it. So the
 * snapshot, which lies at or above that index, and the kept entries behind it together hold
 * everything this replica ever acknowledged. An older snapshot does not: a stream that is no answer
 * to the question, which its number tells, is refused, and so is one of an older term, or one that
 * ends before the kept log begins.
 *
 * Meanwhile the replica does not vote, stand, promise or acknowledge: it is as good as a node that
 * is down. Born again it waits like a restarted one before it votes (B3). */
#include "base/alloc.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/range/store_impl.h"

#include <stdio.h>

#define REBUILD_ASK_NS    (200 * MS_NS)
#define REBUILD_SILENT_NS (5 * SEC_NS) /* no leader was heard: perhaps it is no member any more */

static struct orphan *damaged_orphan(const struct store *s, range_id id)
{
    struct orphan *o = map64_get(&s->orphans, id);
    return o != NULL && o->generation != 0 && o->damaged == o->generation ? o : NULL;
}

bool store_orphan_damaged(const struct store *s, range_id id)
{
    return damaged_orphan(s, id) != NULL;
}

uint64_t store_orphan_generation(const struct store *s, range_id id)
{
    const struct orphan *o = damaged_orphan(s, id);
    return o == NULL ? 0 : o->generation;
}

/* ---- found ---- */

bool replica_can_rebuild(const struct replica *r)
{
    return r->raft != NULL && !r->out && raft_conf(r->raft, NULL)->count > 1;
}

void replica_damaged(struct replica *r, const char *cause)
{
    if (r->damaged) {
        return;
    }
    replica_break(r, "damaged file", SPAN_CORRUPT);
    if (!replica_can_rebuild(r)) {
        return;
    }
    (void)snprintf(r->damage, sizeof r->damage, "%s", cause);
    r->damaged = true;
    store_leaves(r->store);
}

static void write_damaged(struct store *s, range_id id, uint64_t generation)
{
    struct buf b = {0};
    enc_u8(&b, 1);
    enc_u64(&b, generation);
    s->cfg.io.sticky(s->cfg.io.ctx, id, STICKY_DAMAGED, buf_slice(&b));
    buf_deinit(&b);
}

/* The question's number: not one of an earlier life, whose answer may still be on its way. */
static void start_asking(struct store *s, range_id id, struct orphan *o, const char *cause)
{
    (void)snprintf(o->cause, sizeof o->cause, "%s", cause);
    o->number = span_mix64(s->cfg.incarnation ^ span_mix64(s->now->mono_ns ^ id)) | 1;
    o->heard_ns = s->now->mono_ns;
    o->asked_ns = 0;
    o->probe = 0;
    SPAN_LOG(ERROR, "replica is thrown away, to be rebuilt from the range's leader",
             "range=%llu cause=\"%s\"", (unsigned long long)id, o->cause);
}

static void set_aside(struct store *s, range_id id, uint64_t generation)
{
    struct engine_options files = {
        .dir = s->cfg.dir, .range_id = id, .generation = generation, .vfs = s->cfg.vfs};
    store_aside_after_persist(s, &files);
}

void store_throw_away(struct store *s, const struct tt_now *now, struct replica *r)
{
    replica_leader_stop(r, now);
    replica_retire(r);
    struct orphan *o = store_orphan_of(s, r->id);
    store_orphan_clear(o);
    o->hard_state = (struct raft_hard_state){raft_current_term(r->raft), raft_voted_for(r->raft)};
    o->has_hard_state = true;
    o->gone = false;
    o->generation = o->damaged = r->file_generation;
    for (raft_index i = raft_first_index(r->raft); i <= raft_last_index(r->raft); i++) {
        struct raft_entry e = *raft_entry_at(r->raft, i);
        raft_blob_ref(e.payload);
        store_orphan_add(o, &e);
    }
    start_asking(s, r->id, o, r->damage);
    write_damaged(s, r->id, o->generation);
    set_aside(s, r->id, o->generation);
}

void store_damaged_at_start(struct store *s, range_id id, struct span_error *err)
{
    struct orphan *o = map64_get(&s->orphans, id);
    INVARIANT(o != NULL);
    bool known = o->damaged == o->generation;
    o->damaged = o->generation;
    start_asking(s, id, o, known ? "found before this start" : err->text);
    if (!known) {
        write_damaged(s, id, o->generation);
    }
    set_aside(s, id, o->generation);
}

/* ---- asking ---- */

void store_rebuild_heartbeat(struct store *s, const struct tt_now *now, node_id from,
                             const struct heartbeat_range *h, struct heartbeat_ack_range *ack)
{
    struct orphan *o = damaged_orphan(s, h->range);
    if (o == NULL) {
        return;
    }
    ack->known = true; /* nothing is born here but by the answer to the question below */
    if (o->hard_state.term > h->term) {
        ack->term = o->hard_state.term; /* its snapshot would be refused */
        return;
    }
    o->heard_ns = now->mono_ns;
    o->probe = 0;
    if (store_files_are_going(s, h->range) || o->asked_ns + REBUILD_ASK_NS > now->mono_ns) {
        return;
    }
    o->asked_ns = now->mono_ns;
    struct buf *b = store_scratch(s);
    enc_u64(b, o->number);
    msg_encode_range_bytes(store_out(s, from, STORE_CONTROL), MSG_REBUILD, h->range, buf_slice(b));
}

bool store_rebuild_takes(const struct store *s, range_id id, uint64_t number, raft_term term)
{
    const struct orphan *o = damaged_orphan(s, id);
    return o == NULL ? number == 0 : number == o->number && term >= o->hard_state.term;
}

/* No leader is heard: perhaps this node was removed from the range meanwhile, as store_probes asks
 * for a replica. */
void store_rebuild_probes(struct store *s, const struct tt_now *now)
{
    size_t pos = 0;
    uint64_t id;
    struct orphan *o;
    while ((o = map64_next(&s->orphans, &pos, &id)) != NULL) {
        if (damaged_orphan(s, id) == NULL || o->heard_ns + REBUILD_SILENT_NS > now->mono_ns ||
            (o->probe != 0 && o->probe + REBUILD_SILENT_NS > now->mono_ns)) {
            continue;
        }
        o->probe = now->mono_ns | 1;
        store_probe(s, id, o->probe);
    }
}

void store_rebuild_gone(struct store *s, range_id id, uint64_t number)
{
    struct orphan *o = damaged_orphan(s, id);
    if (o == NULL || o->probe != number) {
        return;
    }
    SPAN_LOG(INFO, "damaged replica is no member of its range any more: it is not rebuilt",
             "range=%llu", (unsigned long long)id);
    store_embryo_drop(s, id);
    store_orphan_gone_now(s, id, o->hard_state);
    s->turn_persists = true;
}

void store_rebuild_drop(struct store *s, range_id id)
{
    struct orphan *o = damaged_orphan(s, id);
    if (o != NULL) {
        store_orphan_gone_now(s, id, o->hard_state);
        s->turn_persists = true;
    }
}

/* ---- telling ---- */

size_t store_damaged(const struct store *s, char *text, size_t size)
{
    size_t pos = 0;
    size_t count = 0;
    uint64_t id;
    const struct orphan *o;
    if (size > 0) {
        text[0] = '\0';
    }
    while ((o = map64_next(&s->orphans, &pos, &id)) != NULL) {
        if (damaged_orphan(s, id) == NULL) {
            continue;
        }
        if (count++ == 0) {
            const struct replica *r = map64_get(&s->embryos, id);
            bool receives = r != NULL && replica_is_receiving(r);
            (void)snprintf(text, size, "range %llu: %.160s; %s", (unsigned long long)id, o->cause,
                           receives ? "its snapshot is coming in"
                                    : "asks the leader for a snapshot");
        }
    }
    return count;
}
