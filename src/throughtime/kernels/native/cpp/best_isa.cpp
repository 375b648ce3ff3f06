// Prints the fastest instruction set of the machine that builds.
#include <cstdio>

#include "cpu.hpp"

int main() {
    const auto names = throughtime::supported_isas();
    if (names.empty()) return 1;
    std::fputs(names.front().c_str(), stdout);
    return 0;
}
