// A cell over the steps of a batch, forward and backward through time.
#pragma once

#include "backward.hpp"
#include "forward.hpp"

namespace throughtime {

// For a tensor of T · B rows that is written first here.
template <class Real>
void advise_rows(const Problem<Real>& problem, const Real* rows, Index width) {
    const Index count = problem.steps * problem.batch * width;
    if (rows) advise_large_pages(rows, count * static_cast<Index>(sizeof(Real)));
}

template <class Format>
void run_forward(const Problem<typename Format::Real>& problem, int threads) {
    advise_rows(problem, problem.outputs, problem.state);
    Forward<Format> forward(problem, threads);
    run_together(threads, [&](const Member& member) { forward.run(member); });
    forward.finish();
}

template <class Format>
void run_backward(const Problem<typename Format::Real>& problem, const Gradients<typename Format::Real>& gradients,
                  int threads) {
    advise_rows(problem, gradients.x, problem.inputs);
    Backward<Format> backward(problem, gradients, threads);
    run_together(threads, [&](const Member& member) { backward.run(member); });
    backward.finish();
}

}  // namespace throughtime
