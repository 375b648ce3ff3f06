// The Python face of cells of the user's own. Tensors come as addresses: throughtime.kernels.native.custom.engine, the
// only caller, has made sure of their types, sizes and layout, and the plan is of its making.
#include "custom.hpp"

#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "linear.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

using namespace custom;

template <class Value>
Value item(const nb::handle& of, const char* name) {
    return nb::cast<Value>(of[name]);
}

template <class Read>
auto each_of(const nb::handle& list, Read read) {
    std::vector<decltype(read(list))> found;
    for (const nb::handle element : list) found.push_back(read(element));
    return found;
}

Operand operand_of(const nb::handle& given) {
    return {nb::cast<std::int32_t>(given[0]), nb::cast<std::int32_t>(given[1])};
}

Product product_of(const nb::handle& given) {
    Product product{item<Index>(given, "gates"), item<Index>(given, "units"), item<Index>(given, "depth"), {}, {}};
    product.segments = each_of(given["segments"], [](const nb::handle& segment) {
        return Segment{static_cast<Place>(nb::cast<int>(segment[0])), nb::cast<Index>(segment[1]),
                       nb::cast<Index>(segment[2]), nb::cast<Index>(segment[3]), nb::cast<int>(segment[4]) != 0};
    });
    product.gradients = each_of(given["gradients"], operand_of);
    return product;
}

Section section_of(const nb::handle& given) {
    Section section{item<Index>(given, "units"), item<int>(given, "registers"), item<std::vector<int>>(given, "products"),
                    {}, {}, {}};
    section.bases = each_of(given["bases"], [](const nb::handle& base) {
        return Base{static_cast<Place>(nb::cast<int>(base[0])), nb::cast<int>(base[1])};
    });
    if (section.bases.size() > kMaxBases) throw nb::value_error("a section has too many bases");
    section.code = each_of(given["code"], [](const nb::handle& i) {
        return Instruction{static_cast<Op>(nb::cast<int>(i[0])), operand_of(i[1]), operand_of(i[2]), operand_of(i[3]),
                           operand_of(i[4])};
    });
    section.packings = each_of(given["packings"], [](const nb::handle& packing) {
        return Packing{nb::cast<int>(packing[0]), nb::cast<Index>(packing[1]),
                       static_cast<Place>(nb::cast<int>(packing[2])), nb::cast<Index>(packing[3])};
    });
    return section;
}

Plan plan_of(const nb::dict& given) {
    Plan plan;
    plan.fields = item<std::vector<Index>>(given, "fields");
    plan.inputs = item<Index>(given, "inputs");
    plan.saved = item<Index>(given, "saved");
    plan.rows = item<Index>(given, "rows");
    plan.values = item<Index>(given, "values");
    plan.constants = item<std::vector<double>>(given, "constants");
    plan.products = each_of(given["products"], product_of);
    plan.forward = each_of(given["forward"], section_of);
    plan.backward = each_of(given["backward"], section_of);
    plan.vectors = each_of(given["vectors"], [](const nb::handle& vector) {
        return VectorGradient{static_cast<Place>(nb::cast<int>(vector[0])), nb::cast<Index>(vector[1]),
                              nb::cast<Index>(vector[2]), nb::cast<Index>(vector[3])};
    });
    return plan;
}

// The tensors `name`0, `name`1, ...
template <class Element>
std::vector<Element*> numbered(const Addresses& a, const std::string& name, std::size_t count) {
    std::vector<Element*> found;
    for (std::size_t i = 0; i < count; ++i) found.push_back(a.at<Element>((name + std::to_string(i)).c_str()));
    return found;
}

template <class Real>
CustomProblem<Real> problem_of(const Plan& plan, Index steps, Index batch, bool reverse, const nb::dict& tensors) {
    const Addresses a(tensors);
    CustomProblem<Real> problem{};
    problem.steps = steps;
    problem.batch = batch;
    problem.reverse = reverse;
    problem.lengths = a.at<const std::int64_t>("lengths");
    problem.resets = a.at<const std::uint8_t>("resets");
    problem.x = a.at<const Real>("inputs");
    problem.vectors = a.at<const Real>("vectors");
    problem.weights = numbered<const Real>(a, "weight", plan.products.size());
    problem.first = numbered<const Real>(a, "first", plan.fields.size());
    problem.after = numbered<Real>(a, "after", plan.fields.size());
    problem.last = numbered<Real>(a, "last", plan.fields.size());
    problem.saved = a.at<Real>("saved");
    return problem;
}

template <class Real>
CustomGradients<Real> gradients_of(const Plan& plan, const nb::dict& tensors) {
    const Addresses a(tensors);
    CustomGradients<Real> gradients{};
    gradients.outputs = numbered<const Real>(a, "d_after", plan.fields.size());
    gradients.last = numbered<const Real>(a, "d_last", plan.fields.size());
    gradients.x = a.at<Real>("d_inputs");
    gradients.vectors = a.at<Real>("d_vectors");
    gradients.weights = numbered<Real>(a, "d_weight", plan.products.size());
    gradients.first = numbered<Real>(a, "d_first", plan.fields.size());
    gradients.rows = a.at<Real>("rows");
    return gradients;
}

void forward(const Plan& plan, const std::string& format, Index steps, Index batch, bool reverse,
             const nb::dict& tensors, int threads) {
    with_format(format, [&]<class Format>() {
        const auto problem = problem_of<typename Format::Real>(plan, steps, batch, reverse, tensors);
        const nb::gil_scoped_release released;
        CustomForward<Format> pass(plan, problem, threads);
        run_together(threads, [&](const Member& member) { pass.run(member); });
        pass.finish();
    });
}

void backward(const Plan& plan, const std::string& format, Index steps, Index batch, bool reverse,
              const nb::dict& tensors, int threads) {
    with_format(format, [&]<class Format>() {
        const auto problem = problem_of<typename Format::Real>(plan, steps, batch, reverse, tensors);
        const auto gradients = gradients_of<typename Format::Real>(plan, tensors);
        const nb::gil_scoped_release released;
        CustomBackward<Format> pass(plan, problem, gradients, threads);
        run_together(threads, [&](const Member& member) { pass.run(member); });
        pass.finish();
    });
}

void linear(const std::string& format, Index rows, Index inputs, Index outputs, const nb::dict& tensors, int threads) {
    with_format(format, [&]<class Format>() {
        using Real = typename Format::Real;
        const Addresses a(tensors);
        const LinearProblem<Real> problem{
            rows, inputs, outputs, a.at<const Real>("x"), a.at<const Real>("weight"), a.at<const Real>("bias"),
            a.at<Real>("y"), a.at<const Real>("d_y"), a.at<Real>("d_x"), a.at<Real>("d_weight"), a.at<Real>("d_bias")};
        const nb::gil_scoped_release released;
        Linear<Format> product(problem, problem.d_y != nullptr, threads);
        run_together(threads, [&](const Member& member) { product.run(member); });
    });
}

}  // namespace

void bind_custom(nb::module_& m) {
    nb::set_leak_warnings(false);  // Python keeps plans until the process ends
    nb::class_<Plan>(m, "Plan", "How the steps of a cell of the user's own are computed.")
        .def("__init__", [](Plan* self, const nb::dict& given) { new (self) Plan(plan_of(given)); }, nb::arg("description"));
    m.def("custom_forward", &forward, nb::arg("plan"), nb::arg("format"), nb::arg("steps"), nb::arg("batch"),
          nb::arg("reverse"), nb::arg("tensors"), nb::arg("threads"), "Run a planned cell; tensors are addresses by name.");
    m.def("custom_backward", &backward, nb::arg("plan"), nb::arg("format"), nb::arg("steps"), nb::arg("batch"),
          nb::arg("reverse"), nb::arg("tensors"), nb::arg("threads"), "Run a planned cell backward through time.");
    m.def("linear", &linear, nb::arg("format"), nb::arg("rows"), nb::arg("inputs"), nb::arg("outputs"),
          nb::arg("tensors"), nb::arg("threads"), "y = x Wᵀ + b, or its gradients where d_y is given.");
    m.attr("custom_operations") = static_cast<int>(Op::kCount);
}

}  // namespace throughtime
