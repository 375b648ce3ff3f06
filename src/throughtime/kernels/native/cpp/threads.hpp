// A team of threads that run one function together and can wait for each other within it.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

namespace throughtime {

// All members wait here for the last one, in log2(members) rounds in each of which everybody tells one and hears from one
// (Hensgen, Finkel & Manber 1988). Short waits spin; long ones give the core to whoever needs it.
class Barrier {
  public:
    explicit Barrier(int most_members);
    void wait(int index, int members);

  private:
    static constexpr int kRounds = 15;  // enough for 32,768 members
    // Lines of the cache to themselves: others write to what one is told, and in turns, so that the line of the next time
    // can be fetched while nobody looks at it.
    struct alignas(64) Told {
        std::atomic<unsigned> rounds[kRounds] = {};
    };
    struct Place {
        alignas(64) unsigned passed = 0;  // how often its owner has waited here
        Told told[2];
    };
    std::vector<Place> places_;
};

// One member's view of its team.
struct Member {
    int index;
    int count;
    Barrier* barrier;

    void wait() const {
        if (count > 1) barrier->wait(index, count);
    }
};

// Runs `work` on up to `threads` threads, the caller's among them, and returns when all are done.
//
// They are the threads that PyTorch's own operations use, where those are GNU OpenMP's: after such an operation they
// keep their cores busy for some milliseconds, waiting for the next, and threads of our own would have to share with
// them. Elsewhere, and in a process that has forked, which OpenMP does not survive, they are our own, made once and kept.
// While one Python thread has them, another's call runs on its own thread alone, so that the cores are never
// oversubscribed; results are the same for any number of threads. Denormal numbers are zero to them while they are at it.
void run_together(int threads, const std::function<void(const Member&)>& work);

}  // namespace throughtime
