// The Python module of one instruction set.
#include "bindings.hpp"

NB_MODULE(TT_MODULE_NAME, m) {
    m.doc() = "The native engine of throughtime, for one instruction set.";
    throughtime::bind_recurrence(m);
    throughtime::bind_loss(m);
    throughtime::bind_generation(m);
    throughtime::bind_ranking(m);
    throughtime::bind_attention(m);
    throughtime::bind_beam(m);
    throughtime::bind_custom(m);
    throughtime::bind_decoupled(m);
}
