// What each part of the engine adds to the Python module; module.cpp calls them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string_view>
#include <utility>
#include <vector>

#include "formats.hpp"

namespace throughtime {

void bind_recurrence(nanobind::module_& m);
void bind_loss(nanobind::module_& m);
void bind_generation(nanobind::module_& m);
void bind_ranking(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_beam(nanobind::module_& m);
void bind_custom(nanobind::module_& m);
void bind_decoupled(nanobind::module_& m);

// The tensor of that name, or null: tensors come as addresses by name. The dictionary is read once, and outlives this:
// to look a name up there makes a string of it, and two dozen of them take as long as some steps of a small layer.
class Addresses {
  public:
    explicit Addresses(const nanobind::dict& given) {
        named_.reserve(given.size());
        for (const auto& [name, address] : given) named_.emplace_back(nanobind::borrow<nanobind::str>(name).c_str(), address);
    }

    template <class Element>
    Element* at(std::string_view name) const {
        for (const auto& [known, address] : named_)
            if (known == name) return reinterpret_cast<Element*>(nanobind::cast<std::uintptr_t>(address));
        return nullptr;
    }

  private:
    std::vector<std::pair<std::string_view, nanobind::handle>> named_;
};

// Calls `run` with the format of that name as its template argument.
template <class Run>
auto with_format(const std::string& name, Run run) {
    if (name == "float32") return run.template operator()<Single>();
    if (name == "float64") return run.template operator()<Double>();
    if (name == "bfloat16") return run.template operator()<Bfloat16>();
    throw nanobind::value_error(("no format named " + name).c_str());
}

}  // namespace throughtime
