// What a pass over the steps of a batch is made of, in either direction.
#pragma once

#include "cells.hpp"
#include "team.hpp"

namespace throughtime {

// What both directions know of a problem.
template <class Format>
class Pass {
  public:
    using Real = typename Format::Real;
    using Packed = typename Format::Packed;

  protected:
    explicit Pass(const Problem<Real>& problem)
        : problem_(problem),
          schedule_(problem),
          h_(problem.units),
          p_(problem.state),
          gates_(gates_of(problem.cell)),
          saved_(saved_of(problem.cell)) {}

    // Calls run<cell>() for the problem's cell.
    template <class Run>
    void with_cell(Run run) const {
        switch (problem_.cell) {
            case Cell::kRnnTanh: return run.template operator()<Cell::kRnnTanh>();
            case Cell::kRnnRelu: return run.template operator()<Cell::kRnnRelu>();
            case Cell::kLstm: return run.template operator()<Cell::kLstm>();
            case Cell::kLstmProjected: return run.template operator()<Cell::kLstmProjected>();
            case Cell::kGru: return run.template operator()<Cell::kGru>();
            case Cell::kGruBefore: return run.template operator()<Cell::kGruBefore>();
        }
    }

    bool fresh(Index place) const { return problem_.resets && problem_.resets[place]; }

    const Real* mask_of(Index j) const {
        return problem_.mask ? problem_.mask + schedule_.sequence(j) * p_ : nullptr;
    }

    static const Real* row_of(const Real* rows, Index place, Index width) { return rows ? rows + place * width : nullptr; }

    // Packed rows (B, stride) for the operand of a product within a step, all zero.
    Packed* take_operand(Index stride) {
        Packed* rows = buffers_.template take<Packed>(problem_.batch * stride);
        std::fill_n(rows, problem_.batch * stride, Format::pack(0));
        return rows;
    }

    static void pack_row(const Real* from, Index begin, Index end, Packed* to) {
        throughtime::pack_row<Format>(from + begin, end - begin, to + begin);
    }

    const Problem<Real>& problem_;
    Schedule schedule_;
    Index h_, p_;  // the sizes H and P
    Index gates_, saved_;
    Buffers buffers_;
};

}  // namespace throughtime
