// What each part of the engine adds to the Python module; module.cpp calls them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

namespace throughtime {

void bind_recurrence(nanobind::module_& m);

// The tensor of that name, or null: tensors come as addresses by name.
class Addresses {
  public:
    explicit Addresses(const nanobind::dict& given) : given_(given) {}

    template <class Element>
    Element* at(const char* name) const {
        if (!given_.contains(name)) return nullptr;
        return reinterpret_cast<Element*>(nanobind::cast<std::uintptr_t>(given_[name]));
    }

  private:
    const nanobind::dict& given_;
};

}  // namespace throughtime
