/* Changing a range's members, one voter at a time (Raft dissertation, chapter 4; rules B4, F1, F2).
 *
 *   add N:     learner(N) -> N gets a snapshot or the log -> it has the entry that made it a
 * learner and nearly everything behind -> voter(N) remove M:  M is the leader: it hands over first,
 * whoever leads then goes on else, if a majority of what stays is well: conf without M replace:
 * add, then remove
 *
 * Each step is one entry; the next is proposed when the one before is committed, which Raft checks
 * (with the own-term entry and the lease, B4) and answers with "not yet". The steps live in the
 * leader's memory only: when it goes in between, a learner or one voter too many is left, which the
 * next leader's placement, or whoever asked, takes up from there. Changing members and splitting
 * exclude each other, so that a split's right side is born with a plain list of voters.
 *
 * A replica that was removed often does not hear of it: nobody sends to it any more. One that hears
 * no leader for a while asks every node, with a fresh number; the range's leader answers "gone" if
 * the replica's node is neither in its committed nor in its newest configuration. Hearing any
 * leader in between voids the question: a node that was added again is never thrown out by an old
 * answer, because it has heard the leader that added it before anybody counted on it. */
#include "base/alloc.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/store_impl.h"

#include <stdio.h>

#define MEMBER_PATIENCE_NS (60 * SEC_NS)
#define CAUGHT_UP_ENTRIES  256
#define ANSWERED_NS        (500 * MS_NS)

bool replica_member_busy(const struct replica *r)
{
    return r->member_add != 0 || r->member_remove != 0;
}

static void member_end(struct replica *r, span_status st, const char *text)
{
    struct arena a = {0};
    struct range_request q;
    r->member_add = 0;
    r->member_remove = 0;
    if (r->member_request.size > 0 &&
        msg_decode_request(buf_slice(&r->member_request), &a, &q) == SPAN_OK) {
        if (st == SPAN_OK) {
            struct range_descriptor d;
            replica_descriptor(r, &d);
            struct range_response resp = {
                .status = SPAN_OK, .descriptor_count = 1, .descriptors = &d};
            replica_respond(r, &q, &resp);
        } else {
            replica_refuse(r, &q, st, text);
        }
    } else if (st != SPAN_OK) {
        SPAN_LOG(INFO, "change of members put off", "range=%llu why=\"%s\"",
                 (unsigned long long)r->id, text);
    }
    arena_deinit(&a);
    buf_clear(&r->member_request);
}

void replica_member_cancel(struct replica *r)
{
    if (replica_member_busy(r)) {
        member_end(r, SPAN_NOT_LEADER, "leadership was lost during the change of members");
    }
}

/* Others that answered lately, and this node. */
static size_t voters_well(const struct replica *r, const struct tt_now *now,
                          const struct raft_conf *conf, node_id without)
{
    size_t n = 0;
    for (size_t i = 0; i < conf->count; i++) {
        node_id node = conf->members[i].node;
        struct raft_peer_info info;
        if (!conf->members[i].voter || node == without) {
            continue;
        }
        n += node == store_cfg(r->store)->self ||
                     (raft_peer(r->raft, node, &info) &&
                      info.answered_mono_ns + ANSWERED_NS > now->mono_ns)
                 ? 1
                 : 0;
    }
    return n;
}

/* One step. `what` is for the log. */
static void propose(struct replica *r, const struct tt_now *now, const struct raft_conf *conf,
                    const char *what, node_id node)
{
    span_status st = replica_propose_conf(r, now, conf);
    if (st == SPAN_OK) {
        SPAN_LOG(INFO, "changes members", "range=%llu step=\"%s\" node=%u",
                 (unsigned long long)r->id, what, node);
        r->member_until_ns = now->mono_ns + MEMBER_PATIENCE_NS;
    } else if (st != SPAN_WOULD_WAIT && r->leading) {
        member_end(r, SPAN_OVERLOADED, "the step was refused; try again");
    }
}

/* The learner holds the entry that added it (so that it knows what it is before it counts) and is
 * not far behind. */
static bool caught_up(const struct replica *r, const struct tt_now *now, node_id node,
                      raft_index conf_index)
{
    struct raft_peer_info info;
    return raft_peer(r->raft, node, &info) && !info.probing && !info.wants_snapshot &&
           info.match >= conf_index && info.match + CAUGHT_UP_ENTRIES > raft_last_index(r->raft) &&
           info.answered_mono_ns + ANSWERED_NS > now->mono_ns;
}

static void step_add(struct replica *r, const struct tt_now *now, struct raft_conf conf,
                     raft_index conf_index)
{
    node_id node = r->member_add;
    bool learner = raft_conf_has(&conf, node);
    if (!learner && raft_conf_set(&conf, node, false) != SPAN_OK) {
        member_end(r, SPAN_TOO_LARGE, "the range has as many members as it may have");
    } else if (!learner) {
        propose(r, now, &conf, "learner", node);
    } else if (caught_up(r, now, node, conf_index)) {
        (void)!raft_conf_set(&conf, node, true);
        propose(r, now, &conf, "voter", node);
    } else if (now->mono_ns >= r->member_until_ns) {
        (void)!raft_conf_remove(&conf, node);
        if (replica_propose_conf(r, now, &conf) == SPAN_OK && r->leading) {
            member_end(r, SPAN_OVERLOADED, "the new member did not catch up");
        }
    }
}

static void step_remove(struct replica *r, const struct tt_now *now, struct raft_conf conf)
{
    node_id node = r->member_remove;
    if (node == store_cfg(r->store)->self) {
        node_id to = store_handover_target(r->store, now, r->raft);
        if (to != 0 && to != node) {
            r->transfer_to = to;
        }
        member_end(r, SPAN_OVERLOADED, "the leader is to go: it hands over first");
        return;
    }
    if (raft_conf_is_voter(&conf, node)) {
        size_t left = raft_conf_voters(&conf) - 1;
        if (voters_well(r, now, &conf, node) < left / 2 + 1) {
            if (now->mono_ns >= r->member_until_ns) {
                member_end(r, SPAN_OVERLOADED, "too few of the other members answer");
            }
            return;
        }
    }
    (void)!raft_conf_remove(&conf, node);
    propose(r, now, &conf, "remove", node);
}

void replica_member_step(struct replica *r, const struct tt_now *now)
{
    bool serves = replica_may_serve(r, now) || PLANTED(MEMBERS_TOO_EARLY);
    if (!r->leading || !replica_member_busy(r) || replica_is_changing(r) || r->transfer_to != 0 ||
        !serves) {
        return;
    }
    raft_index newest;
    raft_index committed;
    const struct raft_conf *conf = raft_conf(r->raft, &newest);
    (void)raft_committed_conf(r->raft, &committed);
    if (newest != committed || raft_applied(r->raft) < newest) {
        return;
    }
    if (r->member_add != 0 && raft_conf_is_voter(conf, r->member_add)) {
        r->member_add = 0;
    }
    if (r->member_remove != 0 && !raft_conf_has(conf, r->member_remove)) {
        r->member_remove = 0;
    }
    if (r->member_add != 0) {
        step_add(r, now, *conf, newest);
    } else if (r->member_remove != 0) {
        step_remove(r, now, *conf);
    } else {
        member_end(r, SPAN_OK, "");
    }
}

bool replica_member_start(struct replica *r, const struct tt_now *now, node_id add, node_id remove)
{
    if (!replica_may_serve(r, now) || replica_member_busy(r) || replica_is_changing(r) ||
        r->transfer_to != 0) {
        return false;
    }
    r->member_add = add;
    r->member_remove = remove;
    r->member_until_ns = now->mono_ns + MEMBER_PATIENCE_NS;
    replica_member_step(r, now);
    store_touch(r->store, r);
    return true;
}

/* "1, 2, 3": the voters. */
static void print_voters(const struct raft_conf *conf, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < conf->count && n < size; i++) {
        if (conf->members[i].voter) {
            n += (size_t)snprintf(out + n, size - n, "%s%u", n > 0 ? ", " : "",
                                  conf->members[i].node);
        }
    }
}

/* Why somebody who asks for this change can not mean it; false: nothing is wrong with it. */
static bool makes_no_sense(const struct replica *r, node_id add, node_id remove, char *why,
                           size_t size)
{
    const struct raft_conf *conf = raft_conf(r->raft, NULL);
    size_t want = store_replicas_wanted(r->store, conf);
    size_t voters = raft_conf_voters(conf);
    char list[64];
    print_voters(conf, list, sizeof list);
    if (add != 0 && raft_conf_is_voter(conf, add)) {
        (void)snprintf(
            why, size,
            "node %u has a replica of it already (it is on nodes %s): choose a node that "
            "has none",
            add, list);
    } else if (remove != 0 && !raft_conf_has(conf, remove)) {
        (void)snprintf(why, size,
                       "node %u has no replica of it: choose one of the nodes that have, %s",
                       remove, list);
    } else if (add == 0 && voters <= 1 && raft_conf_is_voter(conf, remove)) {
        (void)snprintf(why, size,
                       "it is the last one: add a replica on another node first, or move it");
    } else if (add == 0 && raft_conf_is_voter(conf, remove) && voters - 1 < want / 2 + 1) {
        (void)snprintf(why, size,
                       "%zu would be left, less than a majority of the %zu there are to be: add a "
                       "replica elsewhere first, or SET CLUSTER cluster.replicas lower",
                       voters - 1, want);
    } else {
        return false;
    }
    return true;
}

void replica_op_members(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q)
{
    bool check = (q->new_range & RANGE_MEMBERS_CHECK) != 0;
    uint64_t nodes = q->new_range & ~RANGE_MEMBERS_CHECK;
    node_id add = (node_id)(nodes & UINT32_MAX);
    node_id remove = (node_id)(nodes >> 32);
    if (add == remove || add > LIMIT_PEERS || remove > LIMIT_PEERS) {
        replica_refuse(r, q, SPAN_INVALID, "a change of members names a node to add or to remove");
        return;
    }
    if (check) {
        char why[200];
        bool begun = replica_member_busy(r) && r->member_add == add && r->member_remove == remove;
        struct range_response resp = {.status = SPAN_OK};
        if (!begun && makes_no_sense(r, add, remove, why, sizeof why)) {
            replica_refuse(r, q, SPAN_INVALID, why);
        } else {
            replica_respond(r, q, &resp);
        }
        return;
    }
    if (replica_is_changing(r) || r->transfer_to != 0) {
        replica_refuse(r, q, SPAN_OVERLOADED,
                       "the range is being split, merged or handed over; try again");
        return;
    }
    /* The same change again (its answer was lost, or placement began it): this one is answered. */
    bool same = (r->member_add == add || r->member_add == 0) &&
                (r->member_remove == remove || r->member_remove == 0);
    if (replica_member_busy(r) && !same) {
        replica_refuse(r, q, SPAN_OVERLOADED, "another change of members is under way; try again");
        return;
    }
    const struct raft_conf *conf = raft_conf(r->raft, NULL);
    if (add == 0 && raft_conf_voters(conf) <= 1 && raft_conf_is_voter(conf, remove)) {
        replica_refuse(r, q, SPAN_INVALID, "the last member can not be removed");
        return;
    }
    buf_set(&r->member_request, body);
    if (!replica_member_busy(r)) {
        r->member_until_ns = now->mono_ns + MEMBER_PATIENCE_NS;
    }
    r->member_add = add;
    r->member_remove = remove;
    replica_member_step(r, now);
}

/* ---- every replica ---- */

span_status replica_apply_conf(struct replica *r, struct slice payload)
{
    struct raft_conf conf;
    span_status st = raft_conf_decode(payload, &conf);
    if (st != SPAN_OK) {
        return SPAN_CORRUPT;
    }
    r->member_count = 0;
    for (size_t i = 0; i < conf.count; i++) {
        if (conf.members[i].voter) {
            r->members[r->member_count++] = conf.members[i].node;
        }
    }
    r->generation++; /* what gateways know of the members is old (rule F4) */
    r->maybe_out = !raft_conf_has(&conf, store_cfg(r->store)->self);
    replica_meta_descriptor_put(r);
    store_descriptors_changed(r->store);
    return r->broken ? SPAN_IO : SPAN_OK;
}

void replica_on_probe(struct replica *r, const struct tt_now *now, node_id from, range_id range,
                      uint64_t number)
{
    if (!replica_may_serve(r, now) || raft_conf_has(raft_conf(r->raft, NULL), from) ||
        raft_conf_has(raft_committed_conf(r->raft, NULL), from)) {
        return;
    }
    struct buf *b = store_scratch(r->store);
    enc_u64(b, number);
    msg_encode_range_bytes(store_out(r->store, from, STORE_CONTROL), MSG_GONE, range, buf_slice(b));
}
