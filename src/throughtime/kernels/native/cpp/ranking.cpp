// The Python face of ranking. Tensors come as addresses: throughtime.kernels.native.ranking, the only caller, has made
// sure of their types, sizes and layout.
#include "ranking.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

template <class Element>
Element* at(std::uintptr_t address) {
    return reinterpret_cast<Element*>(address);
}

// `to` has the addresses of log_p, ids and of_end; sizes are (N, V, k).
Ranking ranking_of(const nb::tuple& sizes, Index end, const nb::tuple& to) {
    return {nb::cast<Index>(sizes[0]), nb::cast<Index>(sizes[1]), nb::cast<Index>(sizes[2]), end,
            at<double>(nb::cast<std::uintptr_t>(to[0])), at<std::int64_t>(nb::cast<std::uintptr_t>(to[1])),
            at<double>(nb::cast<std::uintptr_t>(to[2]))};
}

void rank(const nb::tuple& sizes, Index end, std::uintptr_t logits, const nb::tuple& to, int threads) {
    const Ranking ranking = ranking_of(sizes, end, to);
    const nb::gil_scoped_release released;
    rank_logits(ranking, at<const float>(logits), threads);
}

void make_readout(PackedReadout* place, std::uintptr_t weight, std::uintptr_t bias, Index tokens, Index units,
                  int threads) {
    const nb::gil_scoped_release released;
    new (place) PackedReadout(at<const float>(weight), at<const float>(bias), tokens, units, threads);
}

void readout_logits(const PackedReadout& readout, std::uintptr_t h, Index rows, std::uintptr_t to, int threads) {
    const nb::gil_scoped_release released;
    readout.logits(at<const float>(h), rows, at<float>(to), threads);
}

void readout_rank(const PackedReadout& readout, const nb::tuple& sizes, Index end, std::uintptr_t h,
                  const nb::tuple& to, int threads) {
    const Ranking ranking = ranking_of(sizes, end, to);
    const nb::gil_scoped_release released;
    readout.rank(at<const float>(h), ranking, threads);
}

}  // namespace

void bind_ranking(nb::module_& m) {
    m.def("rank_logits", &rank, nb::arg("sizes"), nb::arg("end"), nb::arg("logits"), nb::arg("to"), nb::arg("threads"),
          "The likeliest tokens of each row of logits; sizes are (N, V, k), `to` the addresses of log_p, ids, of_end.");
    nb::class_<PackedReadout>(m, "PackedReadout", "A readout c + V h, packed once.")
        .def("__init__", &make_readout, nb::arg("weight"), nb::arg("bias"), nb::arg("tokens"), nb::arg("units"),
             nb::arg("threads"))
        .def("logits", &readout_logits, nb::arg("h"), nb::arg("rows"), nb::arg("to"), nb::arg("threads"),
             "Write the logits (N, V) of h (N, H).")
        .def("rank", &readout_rank, nb::arg("sizes"), nb::arg("end"), nb::arg("h"), nb::arg("to"), nb::arg("threads"),
             "The same as rank_logits, of rows h (N, H).");
}

}  // namespace throughtime
