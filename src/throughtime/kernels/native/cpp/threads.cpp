#include "threads.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "intrinsics.hpp"

namespace throughtime {
namespace {

// Rounds of waiting in a loop before the operating system is asked: some tens of microseconds.
constexpr int kSpins = 4000;

template <class Condition>
bool spin_until(Condition condition) {
    for (int i = 0; i < kSpins; ++i) {
        if (condition()) return true;
        intrinsics::pause();
    }
    return false;
}

// A worker waits for its next task: it spins for a moment, as calls follow one another closely, and then sleeps.
class Worker {
  public:
    Worker() : thread_([this] { loop(); }) {}

    ~Worker() {
        give(nullptr);
        thread_.join();
    }

    void give(std::function<void()> task) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = std::move(task);
            given_.store(true, std::memory_order_release);
        }
        wake_.notify_one();
    }

    void wait_until_done() {
        while (!spin_until([this] { return !given_.load(std::memory_order_acquire); })) sched_yield();
    }

  private:
    void loop() {
        while (true) {
            if (!spin_until([this] { return given_.load(std::memory_order_acquire); })) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [this] { return given_.load(std::memory_order_relaxed); });
            }
            std::function<void()> task;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                task = std::move(task_);
            }
            if (!task) return;
            task();
            given_.store(false, std::memory_order_release);
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::function<void()> task_;
    std::atomic<bool> given_{false};
    std::thread thread_;
};

// GNU OpenMP, if this process has it: the entry points of the library that runs PyTorch's parallel operations.
struct OpenMp {
    using Work = void (*)(void*);
    void (*parallel)(Work, void*, unsigned threads, unsigned flags) = nullptr;
    int (*count)() = nullptr;
    int (*number)() = nullptr;

    OpenMp() {
        void* entry = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        Dl_info found;
        if (!entry || !dladdr(entry, &found) || !found.dli_fname) return;
        // From the same library: another OpenMP in the process would know nothing of these threads.
        void* library = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        if (!library) return;
        count = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_num_threads"));
        number = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_thread_num"));
        if (count && number) parallel = reinterpret_cast<void (*)(Work, void*, unsigned, unsigned)>(entry);
    }
};

struct Pool {
    explicit Pool(bool after_fork) : forked(after_fork) {}
    bool forked;
    std::mutex owner;
    std::vector<std::unique_ptr<Worker>> workers;
};

// Never destroyed: workers may still sleep when the process ends, and after a fork they are not there to be joined.
Pool* pool = nullptr;

Pool& current_pool() {
    static const bool prepared = [] {
        pool = new Pool(false);
        // Threads do not survive a fork: the child leaves the parent's pool alone and begins with a new one.
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool(true); });
        return true;
    }();
    (void)prepared;
    return *pool;
}

// With fewer threads than asked for, where OpenMP gives fewer.
void run_with_openmp(const OpenMp& openmp, int threads, const std::function<void(const Member&)>& work) {
    struct Shared {
        const OpenMp& openmp;
        const std::function<void(const Member&)>& work;
        Barrier barrier;
    } shared{openmp, work, Barrier(threads)};
    openmp.parallel(
        [](void* given) {
            auto& all = *static_cast<Shared*>(given);
            // A thread keeps its number from call to call, and its core's cache what that member last used.
            all.work(Member{all.openmp.number(), all.openmp.count(), &all.barrier});
        },
        &shared, static_cast<unsigned>(threads), 0);
}

void run_with_workers(Pool& shared, int threads, const std::function<void(const Member&)>& work) {
    while (static_cast<int>(shared.workers.size()) < threads - 1) shared.workers.push_back(std::make_unique<Worker>());
    Barrier barrier(threads);
    for (int i = 1; i < threads; ++i) {
        shared.workers[static_cast<std::size_t>(i - 1)]->give([&work, &barrier, i, threads] {
            work(Member{i, threads, &barrier});
        });
    }
    work(Member{0, threads, &barrier});
    for (int i = 1; i < threads; ++i) shared.workers[static_cast<std::size_t>(i - 1)]->wait_until_done();
}

}  // namespace

Barrier::Barrier(int most_members) : places_(static_cast<std::size_t>(most_members)) {}

void Barrier::wait(int index, int members) {
    Place& own = places_[static_cast<std::size_t>(index)];
    const unsigned time = ++own.passed;
    for (int round = 0, distance = 1; distance < members; ++round, distance *= 2) {
        Place& other = places_[static_cast<std::size_t>((index + distance) % members)];
        other.told[time % 2].rounds[round].store(time, std::memory_order_release);
        const std::atomic<unsigned>& heard = own.told[time % 2].rounds[round];
        // Who tells may be ahead already.
        const auto told = [&] { return static_cast<int>(heard.load(std::memory_order_acquire) - time) >= 0; };
        while (!spin_until(told)) sched_yield();
        __builtin_prefetch(&other.told[(time + 1) % 2].rounds[round], 1);
    }
}

void run_together(int threads, const std::function<void(const Member&)>& given) {
    // A property of each thread, so that all of them must be told, and get back what they had.
    const std::function<void(const Member&)> work = [&given](const Member& member) {
        const intrinsics::DenormalsAreZero zero;
        given(member);
    };
    static const OpenMp openmp;
    Pool& shared = current_pool();
    std::unique_lock<std::mutex> owner(shared.owner, std::defer_lock);
    if (threads <= 1 || !owner.try_lock()) {
        work(Member{0, 1, nullptr});
    } else if (openmp.parallel && !shared.forked) {
        run_with_openmp(openmp, threads, work);
    } else {
        run_with_workers(shared, threads, work);
    }
}

}  // namespace throughtime
