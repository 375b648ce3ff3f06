// The Python face of attention. Tensors come as addresses: throughtime.kernels.native.attention, the only caller, has
// made sure of their types, sizes and layout.
#include "attention.hpp"

#include "bindings.hpp"

namespace nb = nanobind;
namespace throughtime {
namespace {

void make(PackedAttention* place, std::uintptr_t weight, Index units, int threads) {
    const nb::gil_scoped_release released;
    new (place) PackedAttention(reinterpret_cast<const float*>(weight), units, threads);
}

void attend(const PackedAttention& attention, const nb::tuple& sizes, const nb::dict& given, int threads) {
    const Addresses tensors(given);
    const AttentionCall call{nb::cast<Index>(sizes[0]),
                             nb::cast<Index>(sizes[1]),
                             nb::cast<Index>(sizes[2]),
                             attention.units(),
                             tensors.at<const float>("h"),
                             tensors.at<const float>("keys"),
                             tensors.at<const float>("values"),
                             tensors.at<const std::uint8_t>("inside"),
                             tensors.at<float>("outputs"),
                             tensors.at<float>("weights")};
    const nb::gil_scoped_release released;
    attention.attend(call, threads);
}

void make_memory(PackedMemory* place, std::uintptr_t of_keys, std::uintptr_t of_values, Index units, int threads) {
    const nb::gil_scoped_release released;
    new (place) PackedMemory(reinterpret_cast<const float*>(of_keys), reinterpret_cast<const float*>(of_values), units,
                             threads);
}

void remember(const PackedMemory& memory, const nb::tuple& sizes, const nb::dict& given, int threads) {
    const Addresses tensors(given);
    const MemoryCall call{nb::cast<Index>(sizes[0]),
                          nb::cast<Index>(sizes[1]),
                          memory.units(),
                          tensors.at<const float>("outputs"),
                          tensors.at<const std::uint8_t>("inside"),
                          tensors.at<float>("keys"),
                          tensors.at<float>("values")};
    const nb::gil_scoped_release released;
    memory.remember(call, threads);
}

}  // namespace

void bind_attention(nb::module_& m) {
    nb::class_<PackedMemory>(m, "PackedMemory", "What attention looks at, made from an encoder's outputs.")
        .def("__init__", &make_memory, nb::arg("of_keys"), nb::arg("of_values"), nb::arg("units"), nb::arg("threads"))
        .def("remember", &remember, nb::arg("sizes"), nb::arg("tensors"), nb::arg("threads"),
             "Keys and values of all positions; sizes are (G, S).");
    nb::class_<PackedAttention>(m, "PackedAttention", "Attention and what a decoder makes of it, W packed once.")
        .def("__init__", &make, nb::arg("weight"), nb::arg("units"), nb::arg("threads"))
        .def("attend", &attend, nb::arg("sizes"), nb::arg("tensors"), nb::arg("threads"),
             "One step of all rows; sizes are (G, K, S).");
}

}  // namespace throughtime
