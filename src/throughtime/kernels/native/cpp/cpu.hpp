// Which of the instruction sets that the engine is built for this processor and operating system run.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <string>
#include <vector>

namespace throughtime {

#if defined(__x86_64__)
// A bit of ECX in a leaf of CPUID, for what __builtin_cpu_supports does not know in every compiler.
inline bool cpuid_ecx(unsigned leaf, int bit) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(leaf, &a, &b, &c, &d) && (c >> bit & 1u);
}
#endif

// The names, fastest first. The levels are those of the x86-64 psABI.
inline std::vector<std::string> supported_isas() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool cx16 = cpuid_ecx(1, 13), movbe = cpuid_ecx(1, 22), f16c = cpuid_ecx(1, 29);
    const bool lahf = cpuid_ecx(0x80000001u, 0), lzcnt = cpuid_ecx(0x80000001u, 5);
    const bool v2 = cx16 && lahf && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("sse3") &&
                    __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
                    __builtin_cpu_supports("sse4.2");
    const bool v3 = v2 && movbe && f16c && lzcnt && __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    const bool v4_vnni = v4 && __builtin_cpu_supports("avx512vnni");
    const bool v4_bf16 = v4_vnni && __builtin_cpu_supports("avx512bf16");
    std::vector<std::string> names;
    if (v4_bf16) names.emplace_back("v4_bf16");
    if (v4_vnni) names.emplace_back("v4_vnni");
    if (v4) names.emplace_back("v4");
    if (v3) names.emplace_back("v3");
    if (v2) names.emplace_back("v2");
    return names;
#elif defined(__aarch64__)
    return {"neon"};
#else
#error "throughtime: the native engine is for x86-64 and arm64"
#endif
}

}  // namespace throughtime
