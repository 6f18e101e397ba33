/* Decisions of the fault hooks. */
#include "shard/net/fault.h"

#define FAULT_DELAY_NS_MAX   (60 * SEC_NS)
#define FAULT_REORDER_NS_MIN (1 * MS_NS)
#define FAULT_REORDER_NS_MAX (5 * MS_NS)

static bool path_ok(const struct transport_fault_path *p)
{
    /* Written so that NaN fails too. */
    return p->drop >= 0.0 && p->drop <= 1.0 && p->duplicate >= 0.0 && p->duplicate <= 1.0 &&
           p->reorder >= 0.0 && p->reorder <= 1.0 && p->delay_ns <= FAULT_DELAY_NS_MAX &&
           p->jitter_ns <= FAULT_DELAY_NS_MAX;
}

span_status fault_check(const struct transport_fault *f, struct span_error *err)
{
    if (!path_ok(&f->out) || !path_ok(&f->in)) {
        return span_fail(err, SPAN_INVALID,
                         "fault: probabilities must be in 0..1 and delays at most 60 s");
    }
    return SPAN_OK;
}

static bool happens(struct rng *r, double probability)
{
    return probability > 0.0 && rng_double(r) < probability;
}

struct fault_verdict fault_decide(struct fault_path *p, struct rng *r, uint64_t now_ns)
{
    const struct transport_fault_path *set = &p->set;
    struct fault_verdict v = {0};
    if (set->cut || happens(r, set->drop)) {
        return v;
    }
    v.copies = happens(r, set->duplicate) ? 2 : 1;
    for (unsigned i = 0; i < v.copies; i++) {
        uint64_t due = now_ns + set->delay_ns;
        if (set->jitter_ns > 0) {
            due += rng_below(r, set->jitter_ns);
        }
        if (happens(r, set->reorder)) {
            v.due_ns[i] = due + rng_between(r, FAULT_REORDER_NS_MIN, FAULT_REORDER_NS_MAX);
            continue;
        }
        /* A delay keeps the order: not before what was sent before. */
        if (due < p->last_due_ns) {
            due = p->last_due_ns;
        }
        if (p->held > 0 && due <= now_ns) {
            due = now_ns + 1;
        }
        p->last_due_ns = due;
        v.due_ns[i] = due;
    }
    return v;
}
