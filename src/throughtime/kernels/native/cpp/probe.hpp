// What the processor can do at best: multiply-adds on registers alone.
#pragma once

#include <array>
#include <atomic>
#include <chrono>

#include "formats.hpp"
#include "threads.hpp"

namespace throughtime {

// Operations (a multiplication and an addition are two) per second of all threads together, over about `seconds`.
template <class Format>
double multiply_add_peak(int threads, double seconds) {
    using Real = typename Format::Real;
    using Clock = std::chrono::steady_clock;
    constexpr int kSums = kVectorBytes == 64 ? 24 : 12;
    constexpr std::int64_t kRounds = 20000;
    std::atomic<std::int64_t> rounds{0};
    const auto began = Clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
    run_together(threads, [&](const Member&) {
        std::array<typename Format::Packed, kVectorBytes / sizeof(typename Format::Packed)> ones;
        ones.fill(Format::pack(0));
        auto a = Format::load_units(ones.data());
        auto b = a;
        Vector<Real> sums[kSums] = {};
        do {
            for (std::int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 24
                for (int v = 0; v < kSums; ++v) sums[v] = Format::multiply_add(sums[v], a, b);
                asm volatile("" : "+x"(a), "+x"(b));  // not to be computed once and for all
            }
            rounds += kRounds;
        } while (elapsed() < seconds);
        for (auto& sum : sums) asm volatile("" : : "x"(sum));
    });
    const double per_round = 2.0 * kSums * kLanes<Real> * Format::kUnit;
    return static_cast<double>(rounds.load()) * per_round / elapsed();
}

}  // namespace throughtime
