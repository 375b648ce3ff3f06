// A Python module that any processor can load: it says which of the others this one runs.
#include "cpu.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

NB_MODULE(TT_MODULE_NAME, m) {
    m.def("supported_isas", &throughtime::supported_isas,
          "The instruction sets that this processor and operating system run, fastest first.");
}
