#include <cstdlib>
#include <new>

#include "problem.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace throughtime {

void* Buffers::take_bytes(Index bytes) {
    constexpr std::size_t kLine = 64;
    constexpr std::size_t kPage = std::size_t{1} << 21;  // a large page
    const auto wanted = static_cast<std::size_t>(bytes);
    const std::size_t alignment = wanted >= kPage ? kPage : kLine;
    const std::size_t size = (wanted + alignment) / alignment * alignment;  // never empty
    taken_.reserve(taken_.size() + 1);
    void* memory = std::aligned_alloc(alignment, size);
    if (!memory) throw std::bad_alloc();
    taken_.push_back(memory);
#if defined(__linux__)
    if (alignment == kPage) madvise(memory, size, MADV_HUGEPAGE);  // advice: what it returns does not matter
#endif
    return memory;
}

Buffers::~Buffers() {
    for (void* memory : taken_) std::free(memory);
}

}  // namespace throughtime
