#include <pthread.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>

#include "problem.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace throughtime {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = std::size_t{1} << 12;
constexpr std::size_t kLargePage = std::size_t{1} << 21;
// About from here on the allocator asks the operating system each time, for pages to be cleared.
constexpr std::size_t kWorthKeeping = std::size_t{1} << 16;

struct Block {
    void* memory;
    std::size_t size;
};

// What has been given back, the latest last. Small blocks are left to the allocator, which is quick with them.
class Kept {
  public:
    void* take(std::size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto best = free_.end();
        for (auto block = free_.begin(); block != free_.end(); ++block) {
            const bool fits = block->size >= size && block->size <= size + size / 4;
            if (fits && (best == free_.end() || block->size < best->size)) best = block;
        }
        if (best == free_.end()) return nullptr;
        const Block taken = *best;
        free_.erase(best);
        bytes_ -= taken.size;
        sizes_[taken.memory] = taken.size;
        return taken.memory;
    }

    void remember(void* memory, std::size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        sizes_[memory] = size;
    }

    // Whether it is one of those to keep; too many, and the oldest go.
    bool give_back(void* memory) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = sizes_.find(memory);
        if (found == sizes_.end()) return false;
        free_.push_back({memory, found->second});
        bytes_ += found->second;
        sizes_.erase(found);
        while (bytes_ > static_cast<std::size_t>(kKeptBytes)) {
            bytes_ -= free_.front().size;
            std::free(free_.front().memory);
            free_.erase(free_.begin());
        }
        return true;
    }

    std::mutex& mutex() { return mutex_; }

  private:
    std::mutex mutex_;
    std::vector<Block> free_;
    std::unordered_map<void*, std::size_t> sizes_;  // of those in use
    std::size_t bytes_ = 0;
};

// Never destroyed: tensors may outlive the module.
Kept& kept() {
    static Kept* const instance = [] {
        static Kept* const made = new Kept;
        // Nobody may hold the lock in a child that has no thread to open it again.
        pthread_atfork([] { made->mutex().lock(); }, [] { made->mutex().unlock(); }, [] { made->mutex().unlock(); });
        return made;
    }();
    return *instance;
}

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

void* take_memory(Index bytes) {
    const auto wanted = static_cast<std::size_t>(bytes);
    const bool keep = wanted >= kWorthKeeping;
    const std::size_t alignment = wanted >= kLargePage ? kLargePage : keep ? kPage : kLine;
    const std::size_t size = (wanted + alignment) / alignment * alignment;  // never empty
    if (keep)
        if (void* memory = kept().take(size)) return memory;
    void* memory = std::aligned_alloc(alignment, size);
    if (!memory) throw std::bad_alloc();
    if (wanted >= kLargePage) advise_large_pages(memory, static_cast<Index>(size));
    if (keep) kept().remember(memory, size);
    return memory;
}

void give_memory_back(void* memory) {
    if (!kept().give_back(memory)) std::free(memory);
}

}  // namespace throughtime
