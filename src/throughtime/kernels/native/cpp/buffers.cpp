#include <cstdlib>
#include <new>

#include "problem.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace throughtime {
namespace {

constexpr std::size_t kLargePage = std::size_t{1} << 21;

}  // namespace

void advise_large_pages(const void* memory, Index bytes) {
#if defined(__linux__)
    const auto begin = (reinterpret_cast<std::uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
    const auto end = (reinterpret_cast<std::uintptr_t>(memory) + static_cast<std::uintptr_t>(bytes)) / kLargePage * kLargePage;
    // Advice: what it returns does not matter.
    if (memory && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

void* Buffers::take_bytes(Index bytes) {
    constexpr std::size_t kLine = 64;
    const auto wanted = static_cast<std::size_t>(bytes);
    const std::size_t alignment = wanted >= kLargePage ? kLargePage : kLine;
    const std::size_t size = (wanted + alignment) / alignment * alignment;  // never empty
    taken_.reserve(taken_.size() + 1);
    void* memory = std::aligned_alloc(alignment, size);
    if (!memory) throw std::bad_alloc();
    taken_.push_back(memory);
    if (alignment == kLargePage) advise_large_pages(memory, static_cast<Index>(size));
    return memory;
}

Buffers::~Buffers() {
    for (void* memory : taken_) std::free(memory);
}

}  // namespace throughtime
