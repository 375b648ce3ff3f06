// The Python face of decoupled steps. Tensors come as addresses: throughtime.kernels.native.decoupled, the only caller,
// has made sure of their types, sizes and layout.
#include "decoupled.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

void decoupled(const std::string& format, const nb::tuple& sizes, const nb::dict& given, int threads) {
    const Addresses tensors(given);
    const auto run = [&]<class Format>() {
        using Real = typename Format::Real;
        DecoupledProblem<Real> problem{};
        Index* const of_sizes[] = {&problem.rows, &problem.batch, &problem.inputs, &problem.units, &problem.outputs};
        for (std::size_t i = 0; i < std::size(of_sizes); ++i) *of_sizes[i] = nb::cast<Index>(sizes[i]);
        problem.x = tensors.at<const Real>("x");
        problem.weight = tensors.at<const Real>("weight");
        problem.bias = tensors.at<const Real>("bias");
        problem.readout = tensors.at<const Real>("readout");
        problem.readout_bias = tensors.at<const Real>("readout_bias");
        problem.categories = tensors.at<const std::int64_t>("categories");
        problem.numbers = tensors.at<const Real>("numbers");
        problem.inside = tensors.at<const std::uint8_t>("inside");
        problem.h = tensors.at<Real>("h");
        problem.o = tensors.at<Real>("o");
        problem.nats = tensors.at<Real>("nats");
        problem.d_o = tensors.at<const Real>("d_o");
        problem.d_h = tensors.at<const Real>("d_h");
        problem.d_x = tensors.at<Real>("d_x");
        problem.d_weight = tensors.at<Real>("d_weight");
        problem.d_bias = tensors.at<Real>("d_bias");
        problem.d_readout = tensors.at<Real>("d_readout");
        problem.d_readout_bias = tensors.at<Real>("d_readout_bias");
        const nb::gil_scoped_release released;
        Decoupled<Format> steps(problem, threads);
        run_together(steps.members(), [&](const Member& member) { steps.run(member); });
    };
    if (format == "float32") return run.template operator()<Single>();
    if (format == "float64") return run.template operator()<Double>();
    throw nb::value_error(("no format named " + format).c_str());
}

}  // namespace

void bind_decoupled(nb::module_& m) {
    m.def("decoupled", &decoupled, nb::arg("format"), nb::arg("sizes"), nb::arg("tensors"), nb::arg("threads"),
          "Steps that do not wait for each other, their losses and gradients; sizes are (N, B, X, H, O).");
}

}  // namespace throughtime
