/* Stores under faults on virtual time: random transactions of hand-made requests (locking reads,
 * one-range commits, 2PC, validation, snapshot reads at any replica) while nodes crash, messages
 * are lost, doubled and late, links are cut, leaderships move and ranges split. A transaction
 * writes its own number on each key and remembers whose number it read there, so the history can be
 * checked exactly:
 *
 *   - per key the versions, in timestamp order, form the chain that the writers read (no lost
 *     update, every read of a committed transaction was current at its timestamp);
 *   - a transaction is on all its keys or on none, whatever its client was told (C11);
 *   - what was acknowledged before another transaction began has the smaller timestamp;
 *   - a snapshot read at r, at any replica, is what the chains say for r (A4, A5);
 *   - when faults stop, every transaction ends, no lock is left, and all replicas read the same.
 *
 * STORE_FAULT_SEEDS=from,count runs other seeds. */
#include "base/alloc.h"
#include "tests/lib/store_sim.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#define CLIENTS     8
#define KEYS        12
#define TXN_KEYS    4
#define TXNS_MAX    6000
#define READS_MAX   6000
#define CHAIN_MAX   4000
#define TRY_NS      (150 * MS_NS)
#define STEP_NS     (900 * MS_NS)
#define VERSIONS_NS (5 * SEC_NS)

enum phase {
    IDLE,
    READING,
    COMMITTING, /* one range, several, or validating */
    RESOLVING,
    SNAPSHOT,
};

enum fate {
    RUNNING,
    COMMITTED,
    ABORTED,
};

struct tx {
    struct txn_id id;
    enum fate fate;
    bool read_only;
    struct tt_ts ts;
    uint64_t begin_ns; /* true time */
    uint64_t ack_ns;   /* true time at which its client hears of it, past the commit wait */
    size_t key_count;
    uint8_t keys[TXN_KEYS];
    bool write[TXN_KEYS];
    uint32_t read[TXN_KEYS]; /* whose number it found */
};

struct snapshot_read {
    struct tt_ts at;
    uint8_t key;
    uint32_t found;
    node_id node;
};

struct hold { /* locks at a range */
    range_id range;
    uint64_t term;
    node_id node;
    uint8_t key;
};

struct client {
    struct world *w;
    size_t index;
    enum phase phase;
    node_id gateway;
    uint32_t tx; /* number, index into txs */
    size_t at;   /* key being read */
    struct hold holds[TXN_KEYS];
    size_t hold_count;
    struct tt_ts seen;
    uint64_t request; /* id of the request that is waited for */
    node_id target;
    uint64_t try_until_ns;
    uint64_t give_up_ns;
    uint64_t wake_ns;
    uint8_t anchor;
    struct tt_ts snapshot_at;
    size_t validating;
    uint64_t validations[TXN_KEYS]; /* requests not answered yet; 0: none */
    bool answered;
    uint64_t answered_id;
    struct buf answer;
    bool validated_bad;
    bool doubled; /* its commit request may arrive twice */
};

struct world {
    struct sim sim;
    struct client clients[CLIENTS];
    struct tx txs[TXNS_MAX];
    uint32_t tx_count; /* 0 is not used: nobody's number */
    struct snapshot_read *reads;
    size_t read_count;
    uint64_t next_request;
    range_id next_range;
    bool stop;
    uint64_t seed;
    uint64_t committed;
    uint64_t two_phase;
    uint64_t resolved;
    uint64_t refused;
    uint64_t splits;
    bool moves; /* members of ranges change: 5 nodes, of which 2 join */
    uint64_t changes;
    bool bad_clocks;     /* beyond their bound: what needs them is not checked (rule B8) */
    uint32_t lost_kinds; /* bit per enum msg_kind: most of them are lost for now */
};

static const uint8_t prefix[] = {0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00};

static struct slice key_of(uint8_t out[8], unsigned n)
{
    memcpy(out, prefix, 7);
    out[7] = (uint8_t)(10 * n + 5);
    return slice_of(out, 8);
}

static void on_gateway(void *ctx, struct sim_node *n, const struct tt_now *now, node_id from,
                       uint8_t kind, struct slice body)
{
    struct world *w = ctx;
    (void)n;
    (void)now;
    (void)from;
    struct arena a = {0};
    struct range_response r;
    if (kind == MSG_RESPONSE && msg_decode_response(body, &a, &r) == SPAN_OK) {
        struct client *c = &w->clients[r.request_id % CLIENTS];
        bool mine = r.request_id != 0 && r.request_id == c->request; /* 0: of an admin request */
        for (size_t i = 0; i < TXN_KEYS && c->phase == COMMITTING && r.op == OP_VALIDATE; i++) {
            if (c->validations[i] == r.request_id) { /* once each: answers come doubled and late */
                c->validations[i] = 0;
                mine = c->validating > 0;
            }
        }
        if (mine && !c->answered) {
            c->answered = true;
            c->answered_id = r.request_id;
            buf_set(&c->answer, body);
            if (r.op == OP_VALIDATE && c->phase == COMMITTING) {
                if (r.status != SPAN_OK) {
                    c->validated_bad = true;
                } else if (c->validating > 0) {
                    c->validating--;
                }
                c->answered = c->validated_bad || c->validating == 0;
            }
        }
    }
    arena_deinit(&a);
}

/* ---- the map ---- */

struct place {
    range_id range;
    uint64_t generation;
    node_id leader;
    size_t member_count;
    node_id members[LIMIT_REPLICAS];
};

static void place_of(const struct world *w, unsigned key, struct place *out)
{
    uint8_t kb[8];
    struct slice k = key_of(kb, key);
    *out = (struct place){0};
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        const struct sim_node *n = &w->sim.nodes[i];
        struct arena a = {0};
        struct range_descriptor *d;
        size_t count = n->alive ? store_descriptors(n->store, &a, &d) : 0;
        for (size_t j = 0; j < count; j++) {
            bool has =
                slice_cmp(d[j].start, k) <= 0 && (d[j].end.size == 0 || slice_cmp(k, d[j].end) < 0);
            if (has && (d[j].generation > out->generation ||
                        (d[j].generation == out->generation && out->leader == 0))) {
                out->range = d[j].range;
                out->generation = d[j].generation;
                out->leader = d[j].leader;
                out->member_count = d[j].member_count;
                memcpy(out->members, d[j].members, sizeof out->members);
            }
        }
        arena_deinit(&a);
    }
}

static node_id random_node(struct world *w)
{
    return (node_id)(1 + rng_below(&w->sim.rng, w->sim.node_count));
}

/* ---- sending ---- */

static uint64_t new_request(struct client *c)
{
    return ++c->w->next_request * CLIENTS + c->index;
}

static void send(struct client *c, node_id to, struct range_request *q)
{
    struct world *w = c->w;
    struct sim_node *n = &w->sim.nodes[c->gateway];
    if (!n->alive) {
        return;
    }
    struct tx *t = &w->txs[c->tx];
    q->gateway = c->gateway;
    q->incarnation = 1;
    q->txn = t->id;
    q->age = t->id;
    q->budget_ns = STEP_NS;
    q->may_wait = true;
    struct buf b = {0};
    msg_encode_request(&b, q);
    if (to == c->gateway) {
        sim_local(&w->sim, to, buf_slice(&b));
    } else {
        struct tt_now now = sim_clock(n);
        buf_append_slice(&n->out[to][0], buf_slice(&b));
        sim_turn_end(n, &now);
    }
    buf_deinit(&b);
}

static void wait_for(struct client *c, uint64_t request)
{
    c->request = request;
    c->answered = false;
    c->try_until_ns = c->w->sim.now_ns + TRY_NS;
}

static uint64_t term_at(const struct client *c, range_id range)
{
    for (size_t i = 0; i < c->hold_count; i++) {
        if (c->holds[i].range == range) {
            return c->holds[i].term;
        }
    }
    return 0;
}

static node_id target_for(struct client *c, unsigned key, struct place *p)
{
    place_of(c->w, key, p);
    return p->leader != 0 && rng_below(&c->w->sim.rng, 8) != 0 ? p->leader : random_node(c->w);
}

/* ---- a transaction ---- */

static void idle(struct client *c)
{
    c->phase = IDLE;
    c->request = 0;
    c->validating = 0;
    c->wake_ns = c->w->sim.now_ns + rng_below(&c->w->sim.rng, 5 * MS_NS);
}

static void release(struct client *c)
{
    for (size_t i = 0; i < c->hold_count; i++) {
        uint8_t kb[8];
        struct range_request q = {
            .op = OP_RELEASE, .range = c->holds[i].range, .anchor = key_of(kb, c->holds[i].key)};
        send(c, c->holds[i].node, &q);
    }
}

static void finish(struct client *c, enum fate fate, struct tt_ts ts)
{
    struct world *w = c->w;
    struct tx *t = &w->txs[c->tx];
    cr_assert_eq(t->fate, RUNNING);
    t->fate = fate;
    t->ts = ts;
    if (fate == COMMITTED) {
        /* the gateway's gate: until tt_after by a clock of its own (rule D0) */
        const struct sim_node *n = &w->sim.nodes[c->gateway];
        uint64_t s = tt_max(ts, c->seen).ns + 1;
        uint64_t at = (uint64_t)((int64_t)(s + w->sim.epsilon_ns) - n->offset_ns);
        t->ack_ns = at > w->sim.now_ns ? at : w->sim.now_ns;
        w->committed++;
    } else {
        w->refused++;
        release(c);
    }
    idle(c);
}

static void begin(struct client *c)
{
    struct world *w = c->w;
    struct rng *g = &w->sim.rng;
    c->gateway = random_node(w);
    if (!w->sim.nodes[c->gateway].alive || w->tx_count + 1 >= TXNS_MAX) {
        c->wake_ns = w->sim.now_ns + MS_NS;
        return;
    }
    c->tx = ++w->tx_count;
    struct tx *t = &w->txs[c->tx];
    *t = (struct tx){.begin_ns = w->sim.now_ns};
    t->id.begin_ns = sim_clock(&w->sim.nodes[c->gateway]).tt.latest.ns;
    t->id.node = c->gateway;
    t->id.seq = c->tx;
    t->key_count = 1 + rng_below(g, TXN_KEYS);
    uint64_t used = 0;
    size_t writes = 0;
    for (size_t i = 0; i < t->key_count; i++) {
        uint8_t k;
        do {
            k = (uint8_t)rng_below(g, KEYS);
        } while ((used >> k & 1) != 0);
        used |= 1ULL << k;
        t->keys[i] = k;
        t->write[i] = rng_below(g, 3) > 0;
        writes += t->write[i] ? 1 : 0;
    }
    t->read_only = writes == 0;
    c->seen = tt_ts_of(0);
    c->hold_count = 0;
    c->at = 0;
    c->validating = 0;
    c->validated_bad = false;
    c->give_up_ns = w->sim.now_ns + STEP_NS;
    c->request = 0;
    c->phase = READING;
    if (rng_below(g, 6) == 0) {
        c->phase = SNAPSHOT;
        t->read_only = true;
        uint64_t latest = t->id.begin_ns;
        c->snapshot_at = tt_ts_of(latest - rng_below(g, 60 * MS_NS));
        if (rng_below(g, 3) > 0) {
            c->snapshot_at.ns = latest;
        }
    }
}

static void send_read(struct client *c)
{
    struct world *w = c->w;
    struct tx *t = &w->txs[c->tx];
    uint8_t kb[8];
    struct place p;
    unsigned key = t->keys[c->at];
    node_id to = target_for(c, key, &p);
    struct read_span s = {.span = {.start = key_of(kb, key), .point = true}};
    struct range_request q = {.op = OP_READ,
                              .range = p.range,
                              .span_count = 1,
                              .spans = &s,
                              .request_id = new_request(c)};
    if (c->phase == SNAPSHOT) {
        q.read_ts = c->snapshot_at;
        q.follower_ok = true;
        to = random_node(w);
    } else {
        q.term = term_at(c, p.range);
        q.lock = t->write[c->at] ? READ_LOCK_UPDATE : READ_LOCK_SHARED;
    }
    c->target = to;
    wait_for(c, q.request_id);
    send(c, to, &q);
}

static uint32_t number_of(const struct range_response *r)
{
    char text[16] = "0";
    if (r->row_count > 0) {
        cr_assert_eq(r->row_count, 1);
        cr_assert_lt(r->rows[0].value.size, sizeof text);
        memcpy(text, r->rows[0].value.data, r->rows[0].value.size);
        text[r->rows[0].value.size] = '\0';
    }
    return (uint32_t)strtoul(text, NULL, 10);
}

static void note_hold(struct client *c, const struct range_response *r)
{
    const struct tx *t = &c->w->txs[c->tx];
    if (term_at(c, r->range) == 0) {
        c->holds[c->hold_count++] = (struct hold){r->range, r->term, c->target, t->keys[c->at]};
    }
}

static void commit(struct client *c);

static void on_read(struct client *c, const struct range_response *r)
{
    struct world *w = c->w;
    struct tx *t = &w->txs[c->tx];
    if (r->status == SPAN_NOT_LEADER || r->status == SPAN_STALE_DESCRIPTOR ||
        r->status == SPAN_UNAVAILABLE || r->status == SPAN_WOULD_WAIT) {
        c->request = 0;
        c->wake_ns = w->sim.now_ns + MS_NS;
        return;
    }
    if (r->status != SPAN_OK) {
        finish(c, ABORTED, tt_ts_of(0));
        return;
    }
    uint32_t found = number_of(r);
    c->seen = tt_max(c->seen, r->seen);
    if (c->phase == SNAPSHOT) {
        cr_assert(tt_le(r->seen, c->snapshot_at) || w->bad_clocks);
        w->reads[w->read_count++] =
            (struct snapshot_read){c->snapshot_at, t->keys[c->at], found, c->target};
    } else {
        note_hold(c, r);
        t->read[c->at] = found;
    }
    c->request = 0;
    if (++c->at < t->key_count && w->read_count < READS_MAX - 8) {
        return;
    }
    if (c->phase == SNAPSHOT) {
        finish(c, ABORTED, tt_ts_of(0)); /* it wrote nothing and was validated by the checker */
    } else {
        commit(c);
    }
}

struct part {
    range_id range;
    uint64_t term;
    node_id node;
    uint8_t anchor;
    struct txn_write writes[TXN_KEYS];
    uint8_t keys[TXN_KEYS][8];
    size_t write_count;
};

/* Writes and locks per range; false: a lock's range was split away. */
static bool plan(struct client *c, struct part *parts, size_t *count, char *value)
{
    const struct tx *t = &c->w->txs[c->tx];
    *count = 0;
    for (size_t i = 0; i < t->key_count; i++) {
        struct place p;
        place_of(c->w, t->keys[i], &p);
        struct part *x = NULL;
        for (size_t k = 0; k < *count; k++) {
            x = parts[k].range == p.range ? &parts[k] : x;
        }
        if (x == NULL) {
            x = &parts[(*count)++];
            *x = (struct part){.range = p.range,
                               .term = term_at(c, p.range),
                               .node = p.leader,
                               .anchor = t->keys[i]};
            if (x->term == 0 || x->node == 0) {
                return false;
            }
        }
        if (t->write[i]) {
            x->writes[x->write_count] = (struct txn_write){
                .key = key_of(x->keys[x->write_count], t->keys[i]), .value = slice_str(value)};
            x->write_count++;
        }
    }
    for (size_t i = 0; i < c->hold_count; i++) {
        bool named = false;
        for (size_t k = 0; k < *count; k++) {
            named = named || parts[k].range == c->holds[i].range;
        }
        if (!named) {
            return false;
        }
    }
    return true;
}

static void send_commit(struct client *c)
{
    struct world *w = c->w;
    const struct tx *t = &w->txs[c->tx];
    struct part parts[TXN_KEYS];
    size_t count;
    char value[16];
    uint8_t cb[8];
    (void)snprintf(value, sizeof value, "%u", c->tx);
    if (!plan(c, parts, &count, value)) {
        finish(c, ABORTED, tt_ts_of(0));
        return;
    }
    c->anchor = parts[0].anchor;
    c->doubled = w->sim.dup > 0;
    c->phase = COMMITTING;
    struct txn_participant others[TXN_KEYS];
    uint8_t ob[TXN_KEYS][8];
    for (size_t i = 1; i < count; i++) {
        others[i - 1] =
            (struct txn_participant){key_of(ob[i], parts[i].anchor), parts[i].range, parts[i].node};
    }
    if (t->read_only) {
        struct tt_ts at = tt_max(sim_clock(&w->sim.nodes[c->gateway]).tt.latest, c->seen);
        c->snapshot_at = at;
        c->validating = count;
        memset(c->validations, 0, sizeof c->validations);
        wait_for(c, 0);
    } else {
        wait_for(c, new_request(c));
    }
    c->give_up_ns = w->sim.now_ns + STEP_NS;
    w->two_phase += count > 1 && !t->read_only ? 1 : 0;
    for (size_t i = count; i-- > 0;) {
        uint8_t ab[8];
        struct range_request q = {.range = parts[i].range,
                                  .term = parts[i].term,
                                  .seen = c->seen,
                                  .anchor = key_of(ab, parts[i].anchor),
                                  .write_count = parts[i].write_count,
                                  .writes = parts[i].writes};
        if (t->read_only) {
            q.op = OP_VALIDATE;
            q.read_ts = c->snapshot_at;
            q.request_id = new_request(c);
            c->validations[i] = q.request_id;
        } else if (count == 1) {
            q.op = OP_COMMIT1;
            q.request_id = c->request;
        } else if (i == 0) {
            q.op = OP_COORDINATE;
            q.request_id = c->request;
            q.participants = others;
            q.participant_count = count - 1;
        } else {
            q.op = OP_PREPARE;
            q.request_id = new_request(c);
            q.coordinator = key_of(cb, parts[0].anchor);
            q.coordinator_range = parts[0].range;
            q.coordinator_node = parts[0].node;
        }
        send(c, parts[i].node, &q);
    }
}

static void commit(struct client *c)
{
    if (c->w->sim.nodes[c->gateway].alive) {
        send_commit(c);
    } else {
        finish(c, ABORTED, tt_ts_of(0));
    }
}

static void resolve(struct client *c)
{
    c->w->resolved++;
    c->phase = RESOLVING;
    c->request = 0;
    c->wake_ns = c->w->sim.now_ns;
}

static void send_status(struct client *c)
{
    struct world *w = c->w;
    if (!w->sim.nodes[c->gateway].alive) {
        c->gateway = random_node(w); /* another one asks */
    }
    uint8_t kb[8];
    struct place p;
    c->target = target_for(c, c->anchor, &p);
    struct range_request q = {.op = OP_STATUS,
                              .range = p.range,
                              .anchor = key_of(kb, c->anchor),
                              .request_id = new_request(c)};
    q.coordinator = q.anchor;
    wait_for(c, q.request_id);
    send(c, c->target, &q);
}

static void on_status(struct client *c, const struct range_response *r)
{
    if (r->status == SPAN_OK && r->txn_state == TXN_STATE_COMMITTED) {
        finish(c, COMMITTED, r->ts);
    } else if (r->status == SPAN_OK && r->txn_state == TXN_STATE_ABORTED) {
        finish(c, ABORTED, tt_ts_of(0));
    } else {
        cr_assert(r->status != SPAN_OK || r->txn_state == TXN_STATE_RUNNING, "seed %lu: expired",
                  (unsigned long)c->w->seed);
        c->request = 0;
        c->wake_ns = c->w->sim.now_ns + 5 * MS_NS;
    }
}

static void on_commit(struct client *c, const struct range_response *r)
{
    const struct tx *t = &c->w->txs[c->tx];
    if (t->read_only) {
        finish(c, c->validated_bad ? ABORTED : COMMITTED, c->snapshot_at);
    } else if (r->status == SPAN_OK) {
        finish(c, COMMITTED, r->ts);
    } else if (r->status == SPAN_ABORTED ||
               (r->op == OP_COMMIT1 && r->status != SPAN_UNKNOWN_OUTCOME && !c->doubled)) {
        /* A record; or refused before proposing, and there is one copy of the request only. */
        finish(c, ABORTED, tt_ts_of(0));
    } else {
        resolve(c);
    }
}

static void client_answer(struct client *c)
{
    struct arena a = {0};
    struct range_response r;
    c->answered = false;
    cr_assert_eq(msg_decode_response(buf_slice(&c->answer), &a, &r), SPAN_OK);
    switch (c->phase) {
    case READING:
    case SNAPSHOT:
        on_read(c, &r);
        break;
    case COMMITTING:
        on_commit(c, &r);
        break;
    case RESOLVING:
        on_status(c, &r);
        break;
    case IDLE:
        break;
    }
    arena_deinit(&a);
}

static void client_run(struct client *c)
{
    struct world *w = c->w;
    uint64_t now = w->sim.now_ns;
    if (c->answered && (c->request != 0 || c->phase == COMMITTING)) {
        client_answer(c);
        return;
    }
    if (now < c->wake_ns) {
        return;
    }
    switch (c->phase) {
    case IDLE:
        if (!w->stop) {
            begin(c);
        }
        break;
    case READING:
    case SNAPSHOT:
        if (now >= c->give_up_ns || !w->sim.nodes[c->gateway].alive) {
            finish(c, ABORTED, tt_ts_of(0)); /* no commit was sent */
        } else if (c->request == 0) {
            send_read(c);
        } else if (now >= c->try_until_ns) {
            c->request = 0;
        }
        break;
    case COMMITTING:
        if (now >= c->give_up_ns || !w->sim.nodes[c->gateway].alive) {
            if (w->txs[c->tx].read_only) {
                finish(c, ABORTED, tt_ts_of(0));
            } else {
                resolve(c);
            }
        }
        break;
    case RESOLVING:
        if (c->request == 0 || now >= c->try_until_ns) {
            send_status(c);
        }
        break;
    }
}

/* ---- faults ---- */

static void admin(struct world *w, uint8_t op, unsigned key, uint64_t arg)
{
    struct place p;
    uint8_t kb[8];
    place_of(w, key, &p);
    node_id from = p.leader;
    if (from == 0 || !w->sim.nodes[from].alive) {
        return;
    }
    struct read_span s = {.span = {.start = key_of(kb, key), .point = true}};
    struct range_request q = {.op = op,
                              .range = p.range,
                              .gateway = from,
                              .incarnation = 1,
                              .budget_ns = SEC_NS,
                              .new_range = arg,
                              .txn = {w->sim.now_ns, from, 0}};
    if (op == OP_SPLIT) {
        q.span_count = 1;
        q.spans = &s;
    }
    struct buf b = {0};
    msg_encode_request(&b, &q);
    sim_local(&w->sim, from, buf_slice(&b));
    buf_deinit(&b);
}

static void restart_all(struct world *w)
{
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        if (!w->sim.nodes[i].alive) {
            sim_restart(&w->sim, i);
        }
    }
}

static void heal(struct world *w)
{
    if (w->moves && w->stop) {
        memset(w->sim.states, 0, sizeof w->sim.states);
        w->sim.replicas = 3;
        sim_nodes_changed(&w->sim);
    }
    memset(w->sim.cut, 0, sizeof w->sim.cut);
    w->sim.loss = 0;
    w->sim.dup = 0;
    w->lost_kinds = 0;
    for (node_id i = 1; w->stop && i <= w->sim.node_count; i++) {
        w->sim.nodes[i].offset_ns = 0;
    }
    restart_all(w);
}

static bool filter(void *ctx, node_id from, node_id to, uint8_t kind, struct slice body)
{
    struct world *w = ctx;
    (void)from;
    (void)to;
    (void)body;
    return (w->lost_kinds >> kind & 1) == 0 || rng_below(&w->sim.rng, 4) == 0;
}

/* Another place of the clock inside its bound. */
static void move_clock(struct world *w, node_id node)
{
    uint64_t e = w->bad_clocks ? 45 * MS_NS : w->sim.epsilon_ns;
    w->sim.nodes[node].offset_ns = (int64_t)rng_below(&w->sim.rng, 2 * e) - (int64_t)e;
}

/* A node to be added, one to be removed, or one instead of the other; half the time a mere wish for
 * another number of replicas, which placement fulfils. */
static void change_members(struct world *w)
{
    struct rng *g = &w->sim.rng;
    uint64_t add = rng_below(g, w->sim.node_count + 1);
    uint64_t remove = rng_below(g, w->sim.node_count + 1);
    w->changes++;
    if (rng_below(g, 3) == 0) {
        node_id x = random_node(w);
        w->sim.states[x] =
            rng_below(g, 2) == 0 ? STORE_NODE_ACTIVE : 1 + (enum store_node_state)rng_below(g, 2);
        w->sim.replicas = (uint32_t)rng_below(g, 3) * 2 + 1;
        sim_nodes_changed(&w->sim);
    } else {
        admin(w, OP_MEMBERS, (unsigned)rng_below(g, KEYS),
              RANGE_MEMBERS(add, remove == add ? 0 : remove));
    }
}

static void fault(struct world *w)
{
    struct rng *g = &w->sim.rng;
    if (w->moves && rng_below(g, 3) > 0) {
        change_members(w);
        return;
    }
    node_id x = random_node(w);
    node_id y = random_node(w);
    static const uint8_t loss_of[] = {MSG_VOTE,      MSG_OUTCOME, MSG_OUTCOME, MSG_OUTCOME_ACK,
                                      MSG_TXN_QUERY, MSG_WOUND,   MSG_WOUNDED, MSG_HEARTBEAT_ACK};
    switch (rng_below(g, 15)) {
    case 0:
    case 1:
        if (w->sim.nodes[x].alive) {
            sim_crash(&w->sim, x);
        }
        break;
    case 2:
        for (node_id i = 1; i <= w->sim.node_count; i++) {
            if (w->sim.nodes[i].alive) {
                sim_crash(&w->sim, i);
            }
        }
        restart_all(w);
        break;
    case 3:
    case 4:
        restart_all(w);
        break;
    case 5:
        w->sim.cut[x][y] = true;
        break;
    case 6:
        memset(w->sim.cut, 0, sizeof w->sim.cut);
        break;
    case 7:
        w->sim.loss = (double)rng_below(g, 5) / 100;
        w->sim.dup = (double)rng_below(g, 20) / 100;
        w->sim.dup_delay_ns = rng_below(g, 2) == 0 ? 2 * MS_NS : 800 * MS_NS;
        break;
    case 8:
    case 9:
        admin(w, OP_TRANSFER, (unsigned)rng_below(g, KEYS), x);
        break;
    case 10:
    case 11:
        w->lost_kinds |= 1u << loss_of[rng_below(g, sizeof loss_of)];
        break;
    case 12:
        move_clock(w, x);
        break;
    case 13:
        if (w->next_range < 8) {
            w->splits++;
            admin(w, OP_SPLIT, 1 + (unsigned)rng_below(g, KEYS - 1), w->next_range++);
        }
        break;
    default:
        heal(w);
        break;
    }
}

/* ---- checks ---- */

static bool any_busy(void *ctx)
{
    struct world *w = ctx;
    for (size_t i = 0; i < CLIENTS; i++) {
        if (w->clients[i].phase != IDLE) {
            return false;
        }
    }
    return true;
}

static void run(struct world *w, uint64_t ns)
{
    uint64_t until = w->sim.now_ns + ns;
    while (w->sim.now_ns < until && sim_step(&w->sim)) {
        for (size_t i = 0; i < CLIENTS; i++) {
            client_run(&w->clients[i]);
        }
        if (w->stop && any_busy(w)) {
            return;
        }
    }
}

/* Reads one key at a timestamp from one node (0: the leader); the clients are idle. */
static uint32_t read_key(struct world *w, unsigned key, struct tt_ts at, node_id node,
                         struct tt_ts *seen)
{
    struct client *c = &w->clients[0];
    for (int tries = 0; tries < 400; tries++) {
        struct place p;
        place_of(w, key, &p);
        uint8_t kb[8];
        struct read_span s = {.span = {.start = key_of(kb, key), .point = true}};
        struct range_request q = {.op = OP_READ,
                                  .range = p.range,
                                  .read_ts = at,
                                  .follower_ok = node != 0,
                                  .span_count = 1,
                                  .spans = &s,
                                  .request_id = new_request(c)};
        c->phase = SNAPSHOT;
        c->gateway = 1;
        c->tx = TXNS_MAX - 1;
        w->txs[c->tx].id = (struct txn_id){w->sim.now_ns, 1, 7};
        wait_for(c, q.request_id);
        send(c, node != 0 ? node : p.leader != 0 ? p.leader : 1, &q);
        while (!c->answered && w->sim.now_ns < c->try_until_ns && sim_step(&w->sim)) {
        }
        c->phase = IDLE;
        if (!c->answered) {
            continue;
        }
        c->answered = false;
        struct arena a = {0};
        struct range_response r;
        cr_assert_eq(msg_decode_response(buf_slice(&c->answer), &a, &r), SPAN_OK);
        uint32_t n = number_of(&r);
        uint16_t st = r.status;
        *seen = r.seen;
        arena_deinit(&a);
        if (st == SPAN_OK) {
            return n;
        }
        sim_run_for(&w->sim, 5 * MS_NS);
    }
    cr_assert_fail("seed %lu: key %u can not be read at node %u after the faults stopped",
                   (unsigned long)w->seed, key, node);
    return 0;
}

struct chain {
    size_t count;
    uint32_t tx[CHAIN_MAX]; /* newest first */
};

static void read_chain(struct world *w, unsigned key, struct chain *ch)
{
    struct tt_ts at = tt_ts_of(w->sim.now_ns);
    ch->count = 0;
    for (;;) {
        struct tt_ts seen;
        uint32_t n = read_key(w, key, at, 0, &seen);
        if (n == 0) {
            return;
        }
        const struct tx *t = &w->txs[n];
        cr_assert_leq(n, w->tx_count);
        cr_assert_eq(t->fate, COMMITTED,
                     "seed %lu: key %u holds a version of %u, which its client was told is aborted",
                     (unsigned long)w->seed, key, n);
        cr_assert(tt_le(t->ts, at), "seed %lu: a version newer than the read",
                  (unsigned long)w->seed);
        ch->tx[ch->count++] = n;
        cr_assert_lt(ch->count, CHAIN_MAX);
        at.ns = t->ts.ns - 1;
    }
}

/* What the chain says key held just before / at ts. */
static uint32_t chain_at(const struct world *w, const struct chain *ch, struct tt_ts ts,
                         bool strictly)
{
    for (size_t i = 0; i < ch->count; i++) {
        uint64_t s = w->txs[ch->tx[i]].ts.ns;
        if (strictly ? s < ts.ns : s <= ts.ns) {
            return ch->tx[i];
        }
    }
    return 0;
}

static bool has_replica(const struct world *w, node_id node, unsigned key)
{
    struct place p;
    place_of(w, key, &p);
    for (size_t i = 0; i < p.member_count; i++) {
        if (p.members[i] == node) {
            return true;
        }
    }
    return false;
}

static void check_history(struct world *w)
{
    static struct chain chains[KEYS];
    for (unsigned k = 0; k < KEYS; k++) {
        read_chain(w, k, &chains[k]);
    }
    for (uint32_t n = 1; n <= w->tx_count; n++) {
        const struct tx *t = &w->txs[n];
        if (t->read_only && w->bad_clocks) {
            continue;
        }
        for (size_t i = 0; t->fate == COMMITTED && i < t->key_count; i++) {
            const struct chain *ch = &chains[t->keys[i]];
            cr_assert_eq(chain_at(w, ch, t->ts, t->write[i]), t->read[i],
                         "seed %lu: %u read %u's version of key %u, at its timestamp it was %u's",
                         (unsigned long)w->seed, n, t->read[i], t->keys[i],
                         chain_at(w, ch, t->ts, t->write[i]));
            cr_assert(!t->write[i] || chain_at(w, ch, t->ts, false) == n,
                      "seed %lu: committed %u is missing on key %u", (unsigned long)w->seed, n,
                      t->keys[i]);
        }
    }
    for (size_t i = 0; !w->bad_clocks && i < w->read_count; i++) {
        const struct snapshot_read *s = &w->reads[i];
        cr_assert_eq(chain_at(w, &chains[s->key], s->at, false), s->found,
                     "seed %lu: node %u read %u on key %u at %lu, it was %u's",
                     (unsigned long)w->seed, s->node, s->found, s->key, (unsigned long)s->at.ns,
                     chain_at(w, &chains[s->key], s->at, false));
    }
    for (uint32_t n = 1; !w->bad_clocks && n <= w->tx_count; n++) {
        const struct tx *t = &w->txs[n];
        for (uint32_t m = 1; t->fate == COMMITTED && m <= w->tx_count; m++) {
            const struct tx *o = &w->txs[m];
            if (o->fate == COMMITTED && o->ack_ns < t->begin_ns && !t->read_only) {
                cr_assert(tt_lt(o->ts, t->ts) || o->read_only,
                          "seed %lu: %u was acknowledged before %u began and has a later timestamp",
                          (unsigned long)w->seed, m, n);
            }
        }
    }
    for (unsigned k = 0; k < KEYS; k++) {
        struct tt_ts at = tt_ts_of(w->sim.now_ns - 20 * MS_NS);
        struct tt_ts seen;
        for (node_id node = 1; node <= w->sim.node_count; node++) {
            if (w->moves && !has_replica(w, node, k)) {
                continue;
            }
            uint32_t got = read_key(w, k, at, node, &seen);
            cr_assert_eq(got, chain_at(w, &chains[k], at, false),
                         "seed %lu: replica of node %u differs on key %u", (unsigned long)w->seed,
                         node, k);
        }
    }
}

static void check_nothing_left(struct world *w)
{
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct sim_node *n = &w->sim.nodes[i];
        struct tt_now now = sim_clock(n);
        for (unsigned what = 3; what <= 4; what++) {
            struct arena a = {0};
            struct slice *cells;
            size_t count;
            unsigned columns;
            store_show(n->store, &now, what, &a, &cells, &count, &columns);
            cr_assert_eq(
                count, 0, "seed %lu: node %u still has %zu %s, first %.*s %.*s %.*s",
                (unsigned long)w->seed, i, count / columns, what == 3 ? "transactions" : "locks",
                (int)cells[0].size, (const char *)cells[0].data, (int)cells[1].size,
                (const char *)cells[1].data, (int)cells[2].size, (const char *)cells[2].data);
            arena_deinit(&a);
        }
    }
}

static bool all_lead(void *ctx)
{
    struct world *w = ctx;
    for (unsigned k = 0; k < KEYS; k++) {
        struct place p;
        place_of(w, k, &p);
        if (p.leader == 0) {
            return false;
        }
    }
    return true;
}

static bool holds(const struct world *w, node_id node, range_id range)
{
    struct arena a = {0};
    struct range_descriptor *d;
    size_t count = store_descriptors(w->sim.nodes[node].store, &a, &d);
    bool found = false;
    for (size_t k = 0; k < count; k++) {
        found = found || d[k].range == range;
    }
    arena_deinit(&a);
    return found;
}

/* Every range has three members, each of them a replica, and nobody else has one (rule F1). */
static bool placed(void *ctx)
{
    struct world *w = ctx;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct arena a = {0};
        struct range_descriptor *d;
        size_t count = store_descriptors(w->sim.nodes[i].store, &a, &d);
        bool good = true;
        for (size_t k = 0; k < count; k++) {
            bool member = false;
            for (size_t m = 0; m < d[k].member_count; m++) {
                member = member || d[k].members[m] == i;
            }
            good = good && member && d[k].member_count == 3;
        }
        arena_deinit(&a);
        if (!good) {
            return false;
        }
    }
    for (unsigned k = 0; k < KEYS; k++) {
        struct place p;
        place_of(w, k, &p);
        for (size_t m = 0; m < p.member_count; m++) {
            if (!holds(w, p.members[m], p.range)) {
                return false;
            }
        }
    }
    return true;
}

static bool nothing_left(void *ctx)
{
    struct world *w = ctx;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct tt_now now = sim_clock(&w->sim.nodes[i]);
        struct arena a = {0};
        struct slice *cells;
        size_t count;
        unsigned columns;
        store_show(w->sim.nodes[i].store, &now, 3, &a, &cells, &count, &columns);
        arena_deinit(&a);
        if (count > 0) {
            return false;
        }
    }
    return true;
}

static bool at_rest(void *ctx)
{
    return placed(ctx) && nothing_left(ctx);
}

static const char *placement_text(const struct world *w)
{
    static char text[4096];
    size_t n = 0;
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        struct arena a = {0};
        struct range_descriptor *d;
        size_t count = store_descriptors(w->sim.nodes[i].store, &a, &d);
        n += (size_t)snprintf(text + n, sizeof text - n, "node %u:", i);
        for (size_t k = 0; k < count && n + 200 < sizeof text; k++) {
            n += (size_t)snprintf(text + n, sizeof text - n,
                                  " %lu@%lu(leader %u:", (unsigned long)d[k].range,
                                  (unsigned long)d[k].generation, d[k].leader);
            for (size_t m = 0; m < d[k].member_count; m++) {
                n += (size_t)snprintf(text + n, sizeof text - n, " %u", d[k].members[m]);
            }
            n += (size_t)snprintf(text + n, sizeof text - n, ")");
        }
        n += (size_t)snprintf(text + n, sizeof text - n, "; ");
        arena_deinit(&a);
    }
    return text;
}

static struct world *world_new(uint64_t seed, bool bad_clocks, bool moves)
{
    struct world *w = SPAN_NEW(struct world);
    w->seed = seed;
    w->bad_clocks = bad_clocks;
    w->reads = span_calloc(READS_MAX, sizeof *w->reads);
    sim_init(&w->sim, seed, moves ? 5 : 3);
    w->moves = moves;
    w->sim.founders = moves ? 3 : 0;
    struct rng *g = &w->sim.rng;
    static const uint64_t flushes[] = {1 * KIB, 8 * KIB, 64 * KIB};
    static const uint64_t epsilons[] = {100000, 1 * MS_NS, 7 * MS_NS};
    w->sim.flush_bytes = flushes[rng_below(g, 3)];
    w->sim.split_now_bytes = seed % 2; /* all of them ahead, or none */
    w->sim.epsilon_ns = epsilons[rng_below(g, 3)];
    for (node_id i = 1; i <= w->sim.node_count; i++) {
        move_clock(w, i);
    }
    w->sim.delay_max_ns = rng_below(g, 2) == 0 ? 300000 : 3 * MS_NS;
    w->sim.on_gateway = on_gateway;
    w->sim.filter = filter;
    w->sim.ctx = w;
    w->next_range = 3;
    for (size_t i = 0; i < CLIENTS; i++) {
        w->clients[i].w = w;
        w->clients[i].index = i;
    }
    sim_boot(&w->sim);
    return w;
}

static void world_free(struct world *w)
{
    sim_deinit(&w->sim);
    for (size_t i = 0; i < CLIENTS; i++) {
        buf_deinit(&w->clients[i].answer);
    }
    span_free(w->reads);
    span_free(w);
}

/* Returns how many transactions committed. */
static uint64_t play(uint64_t seed, bool bad_clocks, bool moves)
{
    struct world *w = world_new(seed, bad_clocks, moves);
    cr_assert(sim_run_until(&w->sim, all_lead, w, 10 * SEC_NS), "seed %lu: no leader",
              (unsigned long)seed);
    for (unsigned cut = 4; cut < KEYS; cut += 4) {
        admin(w, OP_SPLIT, cut, w->next_range++);
        run(w, 400 * MS_NS);
    }
    for (int i = 0; i < 40; i++) {
        run(w, rng_below(&w->sim.rng, 120 * MS_NS));
        fault(w);
    }
    w->stop = true;
    heal(w);
    run(w, 20 * SEC_NS);
    cr_assert(any_busy(w), "seed %lu: a transaction did not end", (unsigned long)seed);
    sim_run_for(&w->sim, GATEWAY_LOST_NS + 11 * SEC_NS);
    cr_assert(sim_run_until(&w->sim, all_lead, w, 5 * SEC_NS));
    if (moves) {
        cr_assert(sim_run_until(&w->sim, placed, w, 60 * SEC_NS),
                  "seed %lu: replicas do not come to rest: %s", (unsigned long)seed,
                  placement_text(w));
        /* A new leader asks for the acknowledgements of its decisions anew, and leaderships still
         * move: twice the time between two reports is enough when they are at rest. */
        cr_assert(sim_run_until(&w->sim, at_rest, w, 90 * SEC_NS), "seed %lu: no rest: %s",
                  (unsigned long)seed, placement_text(w));
    }
    check_nothing_left(w);
    check_history(w);
    if (getenv("STORE_FAULT_SEEDS") != NULL) {
        fprintf(stderr,
                "seed %lu: %u transactions, %lu committed, %lu over several ranges, %lu resolved, "
                "%zu snapshot reads, %lu splits, %lu changes of members\n",
                (unsigned long)seed, w->tx_count, (unsigned long)w->committed,
                (unsigned long)w->two_phase, (unsigned long)w->resolved, w->read_count,
                (unsigned long)w->splits, (unsigned long)w->changes);
    }
    uint64_t committed = w->committed;
    world_free(w);
    return committed;
}

static void play_many(unsigned long from, unsigned long count, bool bad_clocks, bool moves)
{
    uint64_t committed = 0;
    const char *env = getenv("STORE_FAULT_SEEDS");
    if (env != NULL) {
        (void)sscanf(env, "%lu,%lu", &from, &count);
    }
    for (unsigned long seed = from; seed < from + count; seed++) {
        committed += play(seed, bad_clocks, moves);
    }
    cr_assert_gt(committed, 30 * count);
}

Test(store_fault, history_is_strictly_serializable_and_everything_ends, .timeout = 300)
{
    play_many(1, 25, false, false);
}

/* Rule B8: atomicity, durability and the serializability of read-write transactions hold with any
 * clocks. */
Test(store_fault, with_wrong_clocks_transactions_stay_atomic_and_serializable, .timeout = 300)
{
    play_many(500, 12, true, false);
}

/* Rules B4, F1, F2: members are added, removed and replaced, by hand and by placement, while the
 * same faults go on; at the end every range has three members and nobody else a replica. */
Test(store_fault, members_change_under_faults_and_nothing_is_lost, .timeout = 300)
{
    play_many(2000, 20, false, true);
}
