// The Python face of the recurrences. Tensors come as addresses: throughtime.kernels.native.operators, the only caller,
// has made sure of their types, sizes and layout.
#include "recurrence.hpp"

#include <nanobind/ndarray.h>

#include "bindings.hpp"
#include "probe.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

Cell cell_named(const std::string& name) {
    if (name == "rnn_tanh") return Cell::kRnnTanh;
    if (name == "rnn_relu") return Cell::kRnnRelu;
    if (name == "lstm") return Cell::kLstm;
    if (name == "lstm_projected") return Cell::kLstmProjected;
    if (name == "gru") return Cell::kGru;
    if (name == "gru_before") return Cell::kGruBefore;
    throw nb::value_error(("no cell named " + name).c_str());
}

struct Sizes {
    Index steps, batch, inputs, units, state;
};

Sizes sizes_of(const nb::tuple& sizes) {
    return {nb::cast<Index>(sizes[0]), nb::cast<Index>(sizes[1]), nb::cast<Index>(sizes[2]), nb::cast<Index>(sizes[3]),
            nb::cast<Index>(sizes[4])};
}

template <class Real>
Problem<Real> problem_of(const std::string& cell, const nb::tuple& sizes, bool reverse, const nb::dict& tensors) {
    const Addresses a(tensors);
    const Sizes n = sizes_of(sizes);
    Problem<Real> problem{};
    problem.cell = cell_named(cell);
    problem.steps = n.steps;
    problem.batch = n.batch;
    problem.inputs = n.inputs;
    problem.units = n.units;
    problem.state = n.state;
    problem.reverse = reverse;
    problem.x = a.at<const Real>("inputs");
    problem.tokens = a.at<const std::int64_t>("tokens");
    problem.table = a.at<const Real>("table");
    problem.weight_ih = a.at<const Real>("weight_ih");
    problem.weight_hh = a.at<const Real>("weight_hh");
    problem.weight_hr = a.at<const Real>("weight_hr");
    problem.bias_ih = a.at<const Real>("bias_ih");
    problem.bias_hh = a.at<const Real>("bias_hh");
    problem.peephole = a.at<const Real>("weight_peephole");
    problem.h_first = a.at<const Real>("h_first");
    problem.c_first = a.at<const Real>("c_first");
    problem.lengths = a.at<const std::int64_t>("lengths");
    problem.resets = a.at<const std::uint8_t>("resets");
    problem.mask = a.at<const Real>("recurrent_mask");
    problem.zoneout_h = a.at<const Real>("zoneout_h");
    problem.zoneout_c = a.at<const Real>("zoneout_c");
    problem.outputs = a.at<Real>("outputs");
    problem.h_last = a.at<Real>("h_last");
    problem.c_last = a.at<Real>("c_last");
    problem.saved = a.at<Real>("saved");
    problem.cells = a.at<Real>("cells");
    return problem;
}

template <class Real>
Gradients<Real> gradients_of(const nb::dict& tensors) {
    const Addresses a(tensors);
    Gradients<Real> gradients{};
    gradients.outputs = a.at<const Real>("d_outputs");
    gradients.h_last = a.at<const Real>("d_h_last");
    gradients.c_last = a.at<const Real>("d_c_last");
    gradients.cells = a.at<const Real>("d_cells");
    gradients.saved = a.at<const Real>("d_saved");
    gradients.x = a.at<Real>("d_inputs");
    gradients.table = a.at<Real>("d_table");
    gradients.weight_ih = a.at<Real>("d_weight_ih");
    gradients.weight_hh = a.at<Real>("d_weight_hh");
    gradients.weight_hr = a.at<Real>("d_weight_hr");
    gradients.bias_ih = a.at<Real>("d_bias_ih");
    gradients.bias_hh = a.at<Real>("d_bias_hh");
    gradients.peephole = a.at<Real>("d_weight_peephole");
    gradients.h_first = a.at<Real>("d_h_first");
    gradients.c_first = a.at<Real>("d_c_first");
    gradients.sums = a.at<Real>("d_sums");
    gradients.states = a.at<Real>("d_states");
    gradients.cells_of_steps = a.at<Real>("d_cells_of_steps");
    return gradients;
}

void forward(const std::string& cell, const std::string& format, const nb::tuple& sizes, bool reverse,
             const nb::dict& tensors, int threads) {
    with_format(format, [&]<class Format>() {
        const auto problem = problem_of<typename Format::Real>(cell, sizes, reverse, tensors);
        const nb::gil_scoped_release released;
        run_forward<Format>(problem, threads);
    });
}

void backward(const std::string& cell, const std::string& format, const nb::tuple& sizes, bool reverse,
              const nb::dict& tensors, int threads) {
    with_format(format, [&]<class Format>() {
        const auto problem = problem_of<typename Format::Real>(cell, sizes, reverse, tensors);
        const auto gradients = gradients_of<typename Format::Real>(tensors);
        const nb::gil_scoped_release released;
        run_backward<Format>(problem, gradients, threads);
    });
}

// A tensor (steps, batch, width) of memory that the engine keeps for itself when the tensor is gone.
nb::ndarray<> workspace(const std::string& format, const std::vector<std::size_t>& shape) {
    return with_format(format, [&]<class Format>() {
        using Real = typename Format::Real;
        std::size_t bytes = sizeof(Real);
        for (const std::size_t size : shape) bytes *= size;
        void* memory = take_memory(static_cast<Index>(bytes));
        const nb::capsule owner(memory, [](void* taken) noexcept { give_memory_back(taken); });
        return nb::ndarray<>(memory, shape.size(), shape.data(), owner, nullptr, nb::dtype<Real>());
    });
}

double peak(const std::string& format, int threads, double seconds) {
    return with_format(format, [&]<class Format>() {
        const nb::gil_scoped_release released;
        return multiply_add_peak<Format>(threads, seconds);
    });
}

}  // namespace

void bind_recurrence(nb::module_& m) {
    m.def("forward", &forward, nb::arg("cell"), nb::arg("format"), nb::arg("sizes"), nb::arg("reverse"),
          nb::arg("tensors"), nb::arg("threads"),
          "Run a recurrence; tensors are addresses by name, sizes are (T, B, I, H, P).");
    m.def("backward", &backward, nb::arg("cell"), nb::arg("format"), nb::arg("sizes"), nb::arg("reverse"),
          nb::arg("tensors"), nb::arg("threads"), "Run a recurrence backward through time.");
    m.def("workspace", &workspace, nb::arg("format"), nb::arg("shape"),
          "An uninitialised tensor of kept memory, for torch.from_dlpack.");
    m.def("peak", &peak, nb::arg("format"), nb::arg("threads"), nb::arg("seconds") = 0.2,
          "Operations per second that multiply-adds on registers reach.");
    m.attr("bfloat16_in_hardware") = Bfloat16::kUnit == 2;
}

}  // namespace throughtime
