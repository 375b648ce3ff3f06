// The Python face of the loss. Tensors come as addresses: throughtime.kernels.native.loss, the only caller, has made
// sure of their types, sizes and layout.
#include "loss.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

template <class Real>
Loss<Real> loss_of(const nb::tuple& sizes, std::int64_t ignored, const nb::dict& tensors) {
    const Addresses a(tensors);
    Loss<Real> loss{};
    loss.positions = nb::cast<Index>(sizes[0]);
    loss.units = nb::cast<Index>(sizes[1]);
    loss.words = nb::cast<Index>(sizes[2]);
    loss.h = a.at<const Real>("h");
    loss.weight = a.at<const Real>("weight");
    loss.bias = a.at<const Real>("bias");
    loss.targets = a.at<const std::int64_t>("targets");
    loss.ignored = ignored;
    loss.nats = a.at<Real>("nats");
    loss.normaliser = a.at<Real>("normaliser");
    loss.logits = a.at<Real>("logits");
    return loss;
}

// What stands at a target is read: none may be out of bounds.
template <class Real>
void check_targets(const Loss<Real>& loss) {
    for (Index i = 0; i < loss.positions; ++i) {
        const std::int64_t target = loss.targets[i];
        if (target == loss.ignored || (0 <= target && target < loss.words)) continue;
        const std::string words = std::to_string(loss.words - 1), ignored = std::to_string(loss.ignored);
        throw nb::index_error(("linear_cross_entropy: targets must be 0 to " + words + ", or " + ignored +
                               " where none counts, got " + std::to_string(target)).c_str());
    }
}

void forward(const std::string& format, const nb::tuple& sizes, std::int64_t ignored, const nb::dict& tensors,
             int threads) {
    with_format(format, [&]<class Format>() {
        const auto loss = loss_of<typename Format::Real>(sizes, ignored, tensors);
        check_targets(loss);
        const nb::gil_scoped_release released;
        run_loss_forward<Format>(loss, threads);
    });
}

void backward(const std::string& format, const nb::tuple& sizes, std::int64_t ignored, const nb::dict& tensors,
              int threads) {
    with_format(format, [&]<class Format>() {
        using Real = typename Format::Real;
        const auto loss = loss_of<Real>(sizes, ignored, tensors);
        check_targets(loss);
        const Addresses a(tensors);
        const LossGradients<Real> gradients{a.at<const Real>("d_nats"), a.at<Real>("d_h"), a.at<Real>("d_weight"),
                                            a.at<Real>("d_bias")};
        const nb::gil_scoped_release released;
        run_loss_backward<Format>(loss, gradients, threads);
    });
}

}  // namespace

void bind_loss(nb::module_& m) {
    m.def("loss_forward", &forward, nb::arg("format"), nb::arg("sizes"), nb::arg("ignored"), nb::arg("tensors"),
          nb::arg("threads"), "The loss at each position; tensors are addresses by name, sizes are (N, H, V).");
    m.def("loss_backward", &backward, nb::arg("format"), nb::arg("sizes"), nb::arg("ignored"), nb::arg("tensors"),
          nb::arg("threads"), "The gradients of h, W and b from those of the losses.");
}

}  // namespace throughtime
